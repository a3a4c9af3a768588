"""What goes wrong on the way, and what processes, threads and event loops do with a saver."""

from __future__ import annotations

import asyncio
import copy
import gc
import os
import pickle
import signal
import ssl
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import Service
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from relay import Relay
from test_interop import checkpoint_of, config_of

from checkpointd import CheckpointdError, ConnectSaver, Retry, blocking_session
from checkpointd.client import _Place


def put(saver, config, value="x"):
    version = saver.get_next_version(None)
    checkpoint = checkpoint_of({"c": [value]}, {"c": version})
    return saver.put(config, checkpoint, {"step": 1}, {"c": version})


async def aput(saver, config, value="x"):
    version = saver.get_next_version(None)
    checkpoint = checkpoint_of({"c": [value]}, {"c": version})
    return await saver.aput(config, checkpoint, {"step": 1}, {"c": version})


def value_of(told):
    return told and told.checkpoint["channel_values"]["c"][0]


@pytest.fixture
def relay(service):
    made = Relay(service.port)
    yield made
    made.close()


@pytest.fixture
def own(service):
    """A service of its own on the same database."""
    made = Service("--database-url", service.dsn, "--session-age", "1s")
    yield made
    if made.process.poll() is None:
        made.stop()


def test_server_is_killed_and_started_anew_under_load(own, thread):
    saver = ConnectSaver(own.url, timeout=60)
    stored, over = [], threading.Event()

    def work(at):
        config = config_of(f"{thread}-{at}")
        while not over.is_set():
            config = put(saver, config, len(stored))
            stored.append(config)
            assert saver.get_tuple(config) is not None

    async def awork(at):
        config = config_of(f"{thread}-a{at}")
        while not over.is_set():
            config = await aput(saver, config)
            stored.append(config)
            assert await saver.aget_tuple(config) is not None

    async def aworks():
        await asyncio.gather(*(awork(at) for at in range(16)))

    with ThreadPoolExecutor(9) as pool:
        running = [pool.submit(work, at) for at in range(8)] + [pool.submit(asyncio.run, aworks())]
        for _ in range(2):
            time.sleep(1.5)
            before = len(stored)
            own.kill()
            own.start(own.port)
            until = time.monotonic() + 60
            while len(stored) < before + 50 and time.monotonic() < until:
                time.sleep(0.05)
            assert len(stored) >= before + 50
        over.set()
        for each in running:
            each.result(60)
    assert all(saver.get_tuple(config) is not None for config in stored)
    saver.close()


def test_sessions_move_at_their_age(own, thread):
    saver = ConnectSaver(own.url, retry=Retry(attempts=1))

    async def load():
        until = time.monotonic() + 4
        seen = set()
        while time.monotonic() < until:
            await asyncio.gather(*(aput(saver, config_of(f"{thread}-{at}")) for at in range(8)))
            put(saver, config_of(thread))
            loop = saver._client._loops[asyncio.get_running_loop()]
            seen.add(id(loop.small.session))
        return seen

    assert len(asyncio.run(load())) > 1


def test_two_runs_of_asyncio_and_threads_with_loops(saver, thread):
    async def once(at):
        config = await aput(saver, config_of(f"{thread}-{at}"), at)
        return value_of(await saver.aget_tuple(config))

    assert [asyncio.run(once(at)) for at in range(3)] == [0, 1, 2]
    with ThreadPoolExecutor(8) as pool:
        told = [pool.submit(asyncio.run, once(at)) for at in range(8)]
        assert [it.result(30) for it in told] == list(range(8))
    # What loops left that are over.
    asyncio.run(once(0))
    assert len(saver._client._loops) == 1


def test_loop_that_is_closed_without_ado(saver, thread):
    for at in range(3):
        loop = asyncio.new_event_loop()
        config = loop.run_until_complete(aput(saver, config_of(thread), at))
        assert value_of(loop.run_until_complete(saver.aget_tuple(config))) == at
        loop.close()


async def test_synchronous_methods_in_a_running_loop(saver, thread):
    config = await aput(saver, config_of(thread), 1)
    assert value_of(saver.get_tuple(config)) == 1
    assert [value_of(it) for it in saver.list(config_of(thread))] == [1]


def test_every_thread_that_was_answered_is_woken(saver, thread, monkeypatch):
    """By another thread, not because it looks for itself after a while: it never would here."""
    monkeypatch.setattr(blocking_session, "TICK", 1000.0)
    configs = [put(saver, config_of(f"{thread}-{n}"), n) for n in range(4)]

    def work(n: int) -> int:
        for i in range(60):
            if i % 7 == n % 7:
                with pytest.raises(CheckpointdError, match="thread_id"):
                    saver.get_tuple(config_of("x" * 100_000))
            elif i % 2:
                assert value_of(saver.get_tuple(configs[n % 4])) == n % 4
            else:
                saver.put_writes(configs[n % 4], [("a", n)], f"{n}-{i}")
        return n

    # Not a pool, whose threads would be waited for when the test has failed.
    done: list[int] = []
    threads = [
        threading.Thread(target=lambda n=n: done.append(work(n)), daemon=True) for n in range(32)
    ]
    for each in threads:
        each.start()
    until = time.monotonic() + 120
    for each in threads:
        each.join(max(0.0, until - time.monotonic()))
    assert sorted(done) == list(range(32))


def test_32_threads(saver, thread):
    def work(at):
        config = config_of(f"{thread}-{at}")
        for step in range(40):
            config = put(saver, config, (at, step))
            saver.put_writes(config, [("c", step)], f"t{at}")
            told = saver.get_tuple(config)
            assert value_of(told) == [at, step] and told.pending_writes == [(f"t{at}", "c", step)]
        return sum(1 for _ in saver.list(config_of(f"{thread}-{at}")))

    with ThreadPoolExecutor(32) as pool:
        assert list(pool.map(work, range(32))) == [40] * 32


def test_deadline_of_a_thread_that_waits_while_another_reads(service, relay, thread):
    with ConnectSaver(relay.url, timeout=1.5, retry=Retry(attempts=1)) as saver:
        put(saver, config_of(thread))
        relay.freeze()
        begun = time.monotonic()
        with ThreadPoolExecutor(8) as pool:
            told = [pool.submit(saver.get_tuple, config_of(thread)) for _ in range(8)]
            for each in told:
                with pytest.raises(CheckpointdError) as failure:
                    each.result(30)
                assert failure.value.code == "deadline_exceeded"
        assert time.monotonic() - begun < 29


FORK = """
import asyncio, os, sys
from checkpointd import ConnectSaver
saver = ConnectSaver(sys.argv[1])
config = {"configurable": {"thread_id": sys.argv[2], "checkpoint_ns": ""}}
async def read():
    return await saver.aget_tuple(config)
assert saver.get_tuple(config) is not None and asyncio.run(read()) is not None
children = []
for _ in range(3):
    child = os.fork()
    if child == 0:
        assert saver.get_tuple(config) is not None and asyncio.run(read()) is not None
        sys.exit(0)
    children.append(child)
    # The parent's sessions are its own still.
    assert saver.get_tuple(config) is not None and asyncio.run(read()) is not None
print([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children])
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_fork(saver, service, thread):
    put(saver, config_of(thread))
    assert script(FORK, service.url, thread) == "[0, 0, 0]\n"


def script(code, *args):
    """Runs it with all warnings; nothing may be told on standard error."""
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", code, *args],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=Path(__file__).parent,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


EXIT = """
import asyncio, sys, threading
from checkpointd import ConnectSaver
saver = ConnectSaver(sys.argv[1])
config = {"configurable": {"thread_id": sys.argv[2], "checkpoint_ns": ""}}
async def read():
    first = [it async for it in saver.alist(config)]
    return len(first) + (await saver.aget_tuple(config) is not None)
print(asyncio.run(read()), sum(1 for _ in saver.list(config)), saver.get_tuple(config) is not None)
list(map(lambda it: it.start(), [threading.Thread(target=saver.get_tuple, args=(config,))]))
"""


def test_interpreter_ends_in_silence_without_close(saver, service, thread):
    put(saver, config_of(thread))
    assert script(EXIT, service.url, thread) == "2 1 True\n"


def test_pickle(service, thread):
    saver = ConnectSaver(service.url, headers={"x-a": "b"}, timeout=7, retry=Retry(3), graph="g")
    config = put(saver, config_of(thread), 5)
    for made in (pickle.loads(pickle.dumps(saver)), copy.copy(saver), copy.deepcopy(saver)):
        assert value_of(made.get_tuple(config)) == 5 and made.graph == "g"
        assert made._options == saver._options
    strict = ConnectSaver(service.url, serde=JsonPlusSerializer(allowed_msgpack_modules=None))
    allowing = strict.with_allowlist([("fractions", "Fraction")])
    assert allowing is not strict and allowing._client is strict._client
    made = pickle.loads(pickle.dumps(allowing))
    assert made.serde._allowed_msgpack_modules == {("fractions", "Fraction")}
    saver.close()
    strict.close()


async def test_cancelled_read_leaves_the_session(saver, thread):
    config = await aput(saver, config_of(thread), 0)
    session = saver._client._loops[asyncio.get_running_loop()].small.session
    for at in range(60):
        reads = [asyncio.create_task(saver.aget_tuple(config)) for _ in range(8)]
        await asyncio.sleep(at % 3 * 0.001)
        for each in reads[1:]:
            each.cancel()
        assert value_of(await reads[0]) == 0
        await asyncio.gather(*reads, return_exceptions=True)
    assert session._wire.is_idle
    assert saver._client._loops[asyncio.get_running_loop()].small.session is session


async def test_cancelled_write_is_carried_out(saver, thread):
    # Also the first, which still waits for its session.
    config = config_of(thread)
    version = saver.get_next_version(None)
    for ticks in range(4):
        checkpoint = checkpoint_of({"c": [ticks]}, {"c": version})
        task = asyncio.create_task(saver.aput(config, checkpoint, {}, {"c": version}))
        for _ in range(ticks + 1):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        until = time.monotonic() + 20
        named = config_of(thread, checkpoint_id=checkpoint["id"])
        while await saver.aget_tuple(named) is None:
            assert time.monotonic() < until
            await asyncio.sleep(0.01)


def test_exception_in_the_middle_of_a_read_ends_the_session(service, relay, thread):
    class Interrupted(BaseException):
        pass

    def interrupt(*_):
        raise Interrupted

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with ConnectSaver(relay.url) as saver:
            config = put(saver, config_of(thread), 3)
            session = saver._client._small.session
            relay.freeze()
            waiting = threading.Thread(target=saver.get_tuple, args=(config,))
            signal.setitimer(signal.ITIMER_REAL, 0.3)
            with pytest.raises(Interrupted):
                saver.get_tuple(config)
            assert session.is_leaving
            waiting.start()
            assert value_of(saver.get_tuple(config)) == 3
            waiting.join(10)
            assert not waiting.is_alive()
    finally:
        signal.signal(signal.SIGALRM, before)


def test_connection_that_vanished_is_known_in_seconds(service, relay, thread):
    with ConnectSaver(relay.url, timeout=120) as saver:
        config = put(saver, config_of(thread), 3)

        async def read():
            assert value_of(await saver.aget_tuple(config)) == 3
            relay.freeze()
            begun = time.monotonic()
            assert value_of(await saver.aget_tuple(config)) == 3
            return time.monotonic() - begun

        assert 4 < asyncio.run(read()) < 60
        begun = time.monotonic()
        assert value_of(saver.get_tuple(config)) == 3
        # Frozen with the other one.
        assert 2 < time.monotonic() - begun < 60


def test_connections_that_are_cut(service, relay, thread):
    with ConnectSaver(relay.url) as saver:
        config = put(saver, config_of(thread), 3)

        async def read():
            for _ in range(5):
                told = [asyncio.create_task(saver.aget_tuple(config)) for _ in range(10)]
                await asyncio.sleep(0)
                relay.cut()
                assert [value_of(await it) for it in told] == [3] * 10

        asyncio.run(read())
        for _ in range(5):
            relay.cut()
            assert value_of(saver.get_tuple(config)) == 3


def test_without_sessions(service, relay, thread):
    relay.allows_upgrades = False
    with ConnectSaver(relay.url, token="secret") as saver:
        config = put(saver, config_of(thread), 3)
        everything(saver, config, thread)
        asyncio.run(aeverything(saver, config, thread))
    assert sum(b"Upgrade: checkpointd-session" in head for head in relay.heads) < 12
    assert sum(b"POST /checkpointd.v1.CheckpointService/GetTuple" in it for it in relay.heads) == 3
    assert all(b"authorization: Bearer secret\r\n" in head for head in relay.heads)


class Work:
    """What an agent works on."""


@pytest.mark.parametrize("is_async", [False, True])
def test_what_failed_keeps_nothing_of_an_agent_alive(relay, thread, is_async):
    def read(saver, work):
        if is_async:
            return asyncio.run(saver.aget_tuple(config_of(thread)))
        return saver.get_tuple(config_of(thread))

    relay.allows_upgrades = False
    with ConnectSaver(relay.url) as saver:
        work = Work()
        gone = weakref.ref(work)
        assert read(saver, work) is None
        del work
        gc.collect()
        assert gone() is None


def everything(saver, config, thread):
    saver.put_writes(config, [("c", 1)], "t")
    assert saver.get_tuple(config).pending_writes == [("t", "c", 1)]
    for at in range(30):
        put(saver, config, at)
    assert len(list(saver.list(config_of(thread)))) == 31
    assert [value_of(it) for it in saver.list(config_of(thread), limit=2)] == [29, 28]
    history = saver.get_delta_channel_history(config=config_of(thread), channels=["c", "d"])
    assert history == {"c": {"writes": [("t", "c", 1)], "seed": [3]}, "d": {"writes": []}}
    saver.copy_thread(thread, f"{thread}-copy")
    with pytest.raises(CheckpointdError) as failure:
        saver.copy_thread(thread, f"{thread}-copy")
    assert failure.value.reason == "TARGET_NOT_EMPTY"
    assert failure.value.code == "failed_precondition" and failure.value.request_id
    saver.prune([f"{thread}-copy"])
    assert len(list(saver.list(config_of(f"{thread}-copy")))) == 1
    saver.prune([f"{thread}-copy"], strategy="delete")
    saver.delete_for_runs(["no such run"])
    assert saver.get_tuple(config_of(f"{thread}-copy")) is None


async def aeverything(saver, config, thread):
    await saver.aput_writes(config, [("c", 2)], "t2")
    assert (await saver.aget_tuple(config)).pending_writes == [("t", "c", 1), ("t2", "c", 2)]
    assert len([it async for it in saver.alist(config_of(thread))]) == 31
    assert len([it async for it in saver.alist(config_of(thread), limit=2)]) == 2
    history = await saver.aget_delta_channel_history(config=config_of(thread), channels=["c"])
    assert history["c"]["seed"] == [3]
    await saver.acopy_thread(thread, f"{thread}-copy")
    await saver.aprune([f"{thread}-copy"], strategy="delete")
    await saver.adelete_for_runs(["no such run"])
    await saver.adelete_thread(thread)
    assert [it async for it in saver.alist(config_of(thread))] == []


def test_the_same_with_sessions(saver, thread):
    config = put(saver, config_of(thread), 3)
    everything(saver, config, thread)
    asyncio.run(aeverything(saver, config, thread))


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """Made by the service's own tests' means, as there need not be an openssl here."""
    folder = tmp_path_factory.mktemp("certificate")
    module = Path(__file__).parents[2] / "dist/src/testing/certificate.js"
    code = (
        f'import {{ createCertificate }} from "{module.as_uri()}"; '
        'import { writeFileSync } from "node:fs"; const it = createCertificate("localhost"); '
        f'writeFileSync("{folder}/cert.pem", it.cert); writeFileSync("{folder}/key.pem", it.key);'
    )
    subprocess.run(["node", "--input-type=module", "-e", code], check=True)
    return folder


def test_tls(service, certificate, thread):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
    relay = Relay(service.port, tls=context)
    try:
        for options in ({"verify": False}, {"ca": str(certificate / "cert.pem")}):
            with ConnectSaver(relay.url, **options) as saver:
                # The certificate is too plain: it names its host in the old way, and no purpose.
                own = saver._client._address.context
                own.check_hostname = False
                own.verify_flags &= ~ssl.VERIFY_X509_STRICT
                config = put(
                    saver, config_of(f"{thread}-{len(options)}-{'ca' in options}"), "y" * 1_000_000
                )
                everything_small(saver, config)
                asyncio.run(aeverything_small(saver, config))
        with ConnectSaver(relay.url, timeout=5) as saver:
            for call in (saver.get_tuple, lambda it: asyncio.run(saver.aget_tuple(it))):
                with pytest.raises(
                    CheckpointdError, match=r"is not trusted .* the option ca"
                ) as it:
                    call(config_of(thread))
                assert it.value.code == "failed_precondition"
                assert "gave up" not in str(it.value)
        with ConnectSaver(f"https://127.0.0.1:{service.port}", timeout=3) as saver:
            with pytest.raises(
                CheckpointdError, match="does not speak TLS: begin the URL with http"
            ):
                saver.get_tuple(config_of(thread))
    finally:
        relay.close()


def everything_small(saver, config):
    assert len(value_of(saver.get_tuple(config))) == 1_000_000
    with ThreadPoolExecutor(8) as pool:
        told = pool.map(lambda _: value_of(saver.get_tuple(config)), range(12))
        assert {len(it) for it in told} == {1_000_000}
    assert len(list(saver.list({"configurable": {**config["configurable"]}}))) == 1


async def aeverything_small(saver, config):
    told = await asyncio.gather(*(saver.aget_tuple(config) for _ in range(12)))
    assert {len(value_of(it)) for it in told} == {1_000_000}


def test_large_values(service, thread):
    with ConnectSaver(service.url, max_request_bytes=30_000_000) as saver:
        config = put(saver, config_of(thread), "z" * 20_000_000)
        assert len(value_of(saver.get_tuple(config))) == 20_000_000
        assert len(value_of(asyncio.run(saver.aget_tuple(config)))) == 20_000_000
        asyncio.run(aput(saver, config_of(thread), "z" * 20_000_000))
        with pytest.raises(CheckpointdError, match="max_request_bytes") as failure:
            put(saver, config_of(thread), "z" * 31_000_000)
        assert (failure.value.code, failure.value.reason) == ("resource_exhausted", "TOO_LONG")


def test_what_is_no_service(thread, relay):
    class Says(Relay):
        def _begin(self, near):
            near.recv(65536)
            near.sendall(self.text)
            near.close()

    for text, words in (
        (
            b"HTTP/1.1 404 Not Found\r\nContent-Type: text/html\r\nContent-Length: 2\r\n\r\nno",
            "HTTP 404, text/html",
        ),
        (b"HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n", "are the headers right"),
        (b"HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n", "--allowed-hosts localhost"),
        (b"HTTP/1.1 413 No\r\nContent-Length: 0\r\n\r\n", "client_max_body_size 0"),
        (b"HTTP/1.1 400 No\r\nContent-Length: 0\r\n\r\n", "large_client_header_buffers"),
        (b"HTTP/1.1 502 No\r\nContent-Length: 0\r\n\r\n", "proxy_pass.+gave up after"),
        (b"HTTP/1.1 504 No\r\nContent-Length: 0\r\n\r\n", "proxy_read_timeout"),
        (b"SSH-2.0-OpenSSH_9\r\n", "it speaks no HTTP"),
        (b"\x15\x03\x01\x00\x02\x02\x46", "begin the URL with https://"),
    ):
        says = Says(0)
        says.text = text
        with ConnectSaver(says.url, timeout=5) as saver:
            for call in (saver.get_tuple, lambda it: asyncio.run(saver.aget_tuple(it))):
                with pytest.raises(CheckpointdError, match=words):
                    call(config_of(thread))
        says.close()


@pytest.mark.parametrize(("is_passing", "longest"), [(True, 4.0), (False, 600.0)])
def test_rest_where_there_are_no_sessions(monkeypatch, is_passing, longest):
    now = 0.0
    monkeypatch.setattr("checkpointd.client.monotonic", lambda: now)
    place = _Place()
    rests = []
    for _ in range(14):
        place.session = SimpleNamespace(found_none=(now, is_passing))
        began = now
        while place.is_at_rest():
            now += 1.0
        rests.append(now - began)
    assert max(rests) == longest


def test_nothing_there_is_told_with_causes_and_count(thread):
    with ConnectSaver("http://127.0.0.1:9", timeout=1) as saver:
        for call in (saver.get_tuple, lambda it: asyncio.run(saver.aget_tuple(it))):
            with pytest.raises(CheckpointdError) as failure:
                call(config_of(thread))
            assert failure.value.code == "unavailable"
            assert "cannot reach http://127.0.0.1:9: nothing listens there" in str(failure.value)
            assert "; gave up after " in str(failure.value)
    with ConnectSaver("http://127.0.0.1:9", retry=Retry(attempts=1)) as saver:
        with pytest.raises(CheckpointdError) as failure:
            saver.get_tuple(config_of(thread))
        assert "gave up" not in str(failure.value)
    with ConnectSaver("http://127.0.0.1:9", retry=Retry(attempts=2, initial_delay=0)) as saver:

        async def all_at_once():
            calls = [saver.aget_tuple(config_of(thread)) for _ in range(5)]
            return await asyncio.gather(*calls, return_exceptions=True)

        for error in asyncio.run(all_at_once()):
            assert str(error).count("gave up after 2 tries") == str(error).count("gave up") == 1


def test_lost_lease(saver, service, thread):
    config = config_of(thread, __checkpointd_lease="not held")
    with pytest.raises(CheckpointdError) as failure:
        put(saver, config)
    assert (failure.value.code, failure.value.reason) == ("failed_precondition", "LEASE_LOST")
    assert pickle.loads(pickle.dumps(failure.value)).reason == "LEASE_LOST"
    assert saver.get_tuple(config_of(thread)) is None


async def test_closed(service, thread):
    saver = ConnectSaver(service.url)
    task = asyncio.create_task(aput(saver, config_of(thread), 4))
    await asyncio.sleep(0)
    await saver.aclose()
    assert task.done() and await task
    with pytest.raises(CheckpointdError, match="was closed"):
        await saver.aget_tuple(config_of(thread))
    with pytest.raises(CheckpointdError, match="was closed"):
        saver.get_tuple(config_of(thread))
    saver.close()
