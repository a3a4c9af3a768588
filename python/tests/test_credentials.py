"""Who calls: tokens that end, certificates of both sides, and sockets of Unix."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import pickle
import ssl
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
from conftest import MAIN, Service
from relay import Relay
from test_interop import config_of

from checkpointd import CheckpointdError, ConnectSaver

GRANTS = [{"operations": ["read", "write", "copy"], "threads": ["*"]}]


class Auth:
    """A service that asks who calls, and the keys that it takes at the moment."""

    def __init__(self, dsn: str, folder: Path) -> None:
        self.folder = folder
        self.made: list[tuple[str, dict[str, str]]] = []
        self.file = folder / "auth.json"
        self.allow()
        self.service = Service("--database-url", dsn, "--auth-file", str(self.file))
        self.url = self.service.url

    def make(self) -> str:
        """Another key, which is not allowed yet."""
        command = ["node", str(MAIN), "keys", "new", "--id", f"k{len(self.made)}"]
        key, told = subprocess.run(command, check=True, capture_output=True).stdout.splitlines()
        self.made.append((key.decode(), json.loads(told)))
        return key.decode()

    def allow(self, *keys: str) -> None:
        told = [entry for key, entry in self.made if key in keys]
        # There has to be one.
        principals = [{"name": "nobody", "certificates": ["CN=nobody"], "grants": GRANTS}]
        if told:
            ids = [it["id"] for it in told]
            principals.append({"name": "all", "keys": ids, "grants": GRANTS})
        new = self.folder / "new"
        new.write_text(json.dumps({"keys": told, "principals": principals}))
        os.replace(new, self.file)

    def allow_only(self, *keys: str) -> None:
        """And waits until it is so."""
        seen = self.service.output().count("auth file")
        self.allow(*keys)
        until = time.monotonic() + 30
        while self.service.output().count("auth file") == seen:
            assert time.monotonic() < until, self.service.output()
            time.sleep(0.05)


@pytest.fixture(scope="module")
def auth(service, tmp_path_factory):
    made = Auth(service.dsn, tmp_path_factory.mktemp("auth"))
    yield made
    made.service.stop()


@pytest.fixture(params=["sessions", "calls"])
def url(request, auth):
    """The service, and a proxy before it that lets no sessions through."""
    if request.param == "sessions":
        yield auth.url
        return
    relay = Relay(auth.service.port)
    relay.allows_upgrades = False
    yield f"http://127.0.0.1:{relay.port}"
    relay.close()


class Counting:
    """A token function that gives what it is told to, and counts."""

    def __init__(self, token: str) -> None:
        self.token = token
        self.times = 0

    def __call__(self) -> str:
        self.times += 1
        time.sleep(0.02)
        return self.token


def in_threads(saver, count=32):
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(lambda _: saver.get_tuple(config_of("t")), range(count)))


def in_a_loop(saver, count=32):
    async def run():
        return await asyncio.gather(*(saver.aget_tuple(config_of("t")) for _ in range(count)))

    return asyncio.run(run())


@pytest.mark.parametrize("calls", [in_threads, in_a_loop])
def test_token_is_asked_for_once_and_anew_when_it_was_taken_back(auth, url, calls):
    first, second = auth.make(), auth.make()
    auth.allow_only(first)
    give = Counting(first)
    with ConnectSaver(url, token=give) as saver:
        calls(saver)
        calls(saver)
        assert give.times == 1
        auth.allow_only(second)
        give.token = second
        calls(saver)
        assert give.times == 2
        # Also by a stream, whose first message tells.
        auth.allow_only(first)
        give.token = first
        assert list(saver.threads.list(limit=1)) is not None
        assert give.times == 3
    with ConnectSaver(url, token="ckpd_wrong") as saver, pytest.raises(CheckpointdError) as it:
        saver.get_tuple(config_of("t"))
    assert it.value.code == "unauthenticated"
    assert "ckpd_wrong" not in str(it.value)


def test_tokens_are_replaced_under_load(auth, url):
    keys = [auth.make() for _ in range(4)]
    auth.allow_only(keys[0])
    give = Counting(keys[0])
    over = threading.Event()

    def work():
        calls = 0
        while not over.is_set():
            saver.get_tuple(config_of("t"))
            calls += 1
        return calls

    async def awork():
        calls = 0
        while not over.is_set():
            await saver.aget_tuple(config_of("t"))
            calls += 1
        return calls

    async def aworks():
        return sum(await asyncio.gather(*(awork() for _ in range(8))))

    with ConnectSaver(url, token=give) as saver, ThreadPoolExecutor(9) as pool:
        futures = [pool.submit(work) for _ in range(8)] + [pool.submit(asyncio.run, aworks())]
        try:
            for old, new in itertools.pairwise(keys):
                auth.allow_only(old, new)
                give.token = new
                auth.allow_only(new)
                time.sleep(0.3)
        finally:
            over.set()
        assert all(future.result(60) > 0 for future in futures)
        # Of threads and of the loop.
        assert 4 <= give.times <= 8


@pytest.mark.parametrize("is_blocking", [True, False])
def test_copy_whose_token_ends_meanwhile_is_not_made_twice(auth, service, is_blocking):
    first, second = auth.make(), auth.make()
    auth.allow_only(first)
    give = Counting(first)
    before = auth.service.output().count('"action":"copyThread"')

    def copy():
        if is_blocking:
            saver.copy_thread("t", "c")
        else:
            asyncio.run(saver.acopy_thread("t", "c"))

    waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted"
    with ConnectSaver(auth.url, token=give) as saver, ThreadPoolExecutor(1) as pool:
        saver.get_tuple(config_of("t"))
        with psycopg.connect(service.dsn) as held, psycopg.connect(service.dsn) as sql:
            held.execute("LOCK TABLE checkpoints")
            copied = pool.submit(copy)
            until = time.monotonic() + 30
            while sql.execute(waiting).fetchone() == (0,):
                assert time.monotonic() < until
                time.sleep(0.05)
            give.token = second
            auth.allow_only(second)
            with pytest.raises(CheckpointdError) as it:
                copied.result(30)
            held.rollback()
        assert it.value.code == "unauthenticated"
        assert saver.get_tuple(config_of("t")) is None
    # The audit log has each that was begun.
    assert auth.service.output().count('"action":"copyThread"') == before + 1


def test_token_function_that_fails(auth, url):
    auth.allow_only(key := auth.make())
    told = [OSError("the vault is sealed"), 7, "a b", key]
    asked = []

    def give():
        asked.append(1)
        if isinstance(answer := told[len(asked) - 1], Exception):
            raise answer
        return answer

    with ConnectSaver(url, token=give) as saver:
        with pytest.raises(
            CheckpointdError, match="the token function failed: the vault is sealed"
        ) as it:
            saver.get_tuple(config_of("t"))
        assert isinstance(it.value.__cause__, OSError) and it.value.code == "unauthenticated"
        assert len(asked) == 1
        with pytest.raises(CheckpointdError, match="the token function must give text"):
            asyncio.run(saver.aget_tuple(config_of("t")))
        with pytest.raises(CheckpointdError, match="the token function must give text"):
            list(saver.threads.list())
        assert saver.get_tuple(config_of("t")) is None
        assert len(asked) == 4


def test_asynchronous_token_function(auth, url):
    auth.allow_only(key := auth.make())

    async def give():
        await asyncio.sleep(0.01)
        return key

    async def never():
        await asyncio.sleep(60)
        return key

    with ConnectSaver(url, token=give) as saver:
        with pytest.raises(CheckpointdError, match="the token function is asynchronous"):
            saver.get_tuple(config_of("t"))
        in_a_loop(saver)
        # Once it is there, everybody has it.
        assert saver.get_tuple(config_of("t")) is None
    with ConnectSaver(url, token=lambda: give()) as saver:
        with pytest.raises(CheckpointdError, match="the token function is asynchronous"):
            saver.get_tuple(config_of("t"))
        in_a_loop(saver)
    with ConnectSaver(url, token=never, timeout=0.3) as saver:
        for _ in range(2):
            with pytest.raises(CheckpointdError) as it:
                in_a_loop(saver)
            assert it.value.code == "deadline_exceeded"


def from_environment():
    return os.environ["CHECKPOINTD_TEST_TOKEN"]


def test_token_function_is_pickled(auth, monkeypatch):
    auth.allow_only(key := auth.make())
    monkeypatch.setenv("CHECKPOINTD_TEST_TOKEN", key)
    with ConnectSaver(auth.url, token=from_environment) as saver:
        assert pickle.loads(pickle.dumps(saver)).get_tuple(config_of("t")) is None
    with (
        ConnectSaver(auth.url, token=lambda: key) as saver,
        pytest.raises(Exception, match="pickle"),
    ):
        pickle.dumps(saver)


class Certificates:
    """Made by the service's own tests' means, as there need not be an openssl here."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._run(
            'for (const name of ["service", "clients"]) {'
            "  const it = createAuthority(name);"
            "  write(name, it);"
            "}"
        )

    def make(self, name: str, host: str, authority: str, ends_in: float = 86_400) -> None:
        self._run(
            f"const issuer = {{ name: {json.dumps(authority)}, "
            f'cert: readFileSync("{self.folder}/{authority}.crt", "utf8"), '
            f'key: readFileSync("{self.folder}/{authority}.key", "utf8") }};'
            f"write({json.dumps(name)}, createCertificate({json.dumps(host)}, "
            f"{{ issuer, notAfter: Date.now() + {ends_in * 1000} }}));"
        )

    def path(self, name: str) -> str:
        return str(self.folder / name)

    def _run(self, code: str) -> None:
        module = MAIN.parents[2] / "src/testing/certificate.js"
        begin = (
            f'import {{ createAuthority, createCertificate }} from "{module.as_uri()}";'
            'import { readFileSync, renameSync, writeFileSync } from "node:fs";'
            "const write = (name, it) => {"
            '  for (const [end, text] of [["crt", it.cert], ["key", it.key]]) {'
            f'    writeFileSync("{self.folder}/new", text, {{ mode: 0o600 }});'
            f'    renameSync("{self.folder}/new", `{self.folder}/${{name}}.${{end}}`);'
            "  }"
            "};"
        )
        subprocess.run(["node", "--input-type=module", "-e", begin + code], check=True)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def tls(service, certificates):
    """A service with TLS, that knows its callers by the name of their certificate: "ann"."""
    certificates.make("server", "127.0.0.1", "service")
    file = certificates.folder / "auth.json"
    principal = {"name": "ann", "certificates": ["CN=ann"], "grants": GRANTS}
    file.write_text(json.dumps({"principals": [principal]}))
    made = Service(
        *("--database-url", service.dsn, "--auth-file", str(file), "--session-age", "1s"),
        *("--tls-cert", certificates.path("server.crt"), "--tls-key"),
        *(certificates.path("server.key"), "--tls-client-ca", certificates.path("clients.crt")),
    )
    yield made
    made.stop()


def everything(saver):
    in_threads(saver, 8)
    in_a_loop(saver, 8)
    assert list(saver.threads.list(limit=1)) is not None


def test_certificates_of_both_sides(tls, certificates):
    certificates.make("ann", "ann", "clients")
    ca = certificates.path("service.crt")
    pair = {"cert": certificates.path("ann.crt"), "key": certificates.path("ann.key")}
    with ConnectSaver(tls.url, ca=ca, **pair) as saver:
        everything(saver)
        everything(pickle.loads(pickle.dumps(saver)))
    context = ssl.create_default_context(cafile=ca)
    context.load_cert_chain(*pair.values())
    with ConnectSaver(tls.url, tls=context) as saver:
        everything(saver)
        with pytest.raises(TypeError, match="pickle"):
            pickle.dumps(saver)
    with ConnectSaver(tls.url, ca=ca) as saver, pytest.raises(CheckpointdError) as it:
        saver.get_tuple(config_of("t"))
    assert it.value.code == "unauthenticated"
    with ConnectSaver(tls.url.replace("https:", "http:")) as saver:
        for call in (saver.get_tuple, lambda it: asyncio.run(saver.aget_tuple(it))):
            with pytest.raises(
                CheckpointdError, match="speaks TLS: begin the URL with https"
            ) as it:
                call(config_of("t"))
            assert it.value.code == "failed_precondition"


def test_certificates_are_replaced_under_load(tls, certificates):
    certificates.make("rotating", "ann", "clients", 6)
    over = threading.Event()
    pair = {"cert": certificates.path("rotating.crt"), "key": certificates.path("rotating.key")}
    with ConnectSaver(tls.url, ca=certificates.path("service.crt"), **pair) as saver:

        def work():
            while not over.is_set():
                saver.get_tuple(config_of("t"))
            return True

        async def awork():
            while not over.is_set():
                await saver.aget_tuple(config_of("t"))
            return True

        with ThreadPoolExecutor(5) as pool:
            futures = [pool.submit(work) for _ in range(4)] + [pool.submit(asyncio.run, awork())]
            try:
                # The first one's connections end at its end, while these are made; no other ends.
                for _ in range(4):
                    time.sleep(2)
                    certificates.make("rotating", "ann", "clients", 60)
                    certificates.make("server", "127.0.0.1", "service")
            finally:
                over.set()
            assert all(future.result(60) for future in futures)


def test_socket_of_unix(service, tmp_path):
    path = tmp_path / "a socket"
    made = Service("--database-url", service.dsn, "--listen-socket", str(path))
    try:
        for url in (f"unix:{path}", f"unix://{path}".replace(" ", "%20")):
            with ConnectSaver(url) as saver:
                everything(saver)
                everything(pickle.loads(pickle.dumps(saver)))
    finally:
        made.stop()
    with ConnectSaver(f"unix:{path}", timeout=0.5) as saver:
        for call in (saver.get_tuple, lambda it: asyncio.run(saver.aget_tuple(it))):
            with pytest.raises(CheckpointdError, match="there is no such socket; is the service"):
                call(config_of("t"))
