"""Claims and copies, which are made once: again only where the service did not begin them."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from base64 import b64encode
from collections.abc import Callable

import pytest

from checkpointd import CheckpointdError, ConnectSaver
from checkpointd.messages import ErrorDetail, OpenSessionRequest, OpenSessionResponse
from checkpointd.wire import HEAD, Envelopes

UPGRADED = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: checkpointd-session\r\n\r\n"
NO_UPGRADE = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
# By their numbers, as a session tells them.
CODES = {"resource_exhausted": 8, "unavailable": 14}

# What is told of a call: (code, reason, field), or None for an answer.
Told = tuple[str, str, str] | None


class Server:
    """Tells of the calls, counted from 1, what `meets` says; an OSError cuts the connection."""

    def __init__(self, has_sessions: bool, meets: Callable[[int], Told]) -> None:
        self.has_sessions = has_sessions
        self.meets = meets
        self.calls = 0
        self.lock = threading.Lock()
        self.listener = socket.socket()
        # Until it listens, connections to it are refused.
        self.listener.bind(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"

    def start(self) -> Server:
        self.listener.listen()
        threading.Thread(target=self.accept, daemon=True).start()
        return self

    def accept(self) -> None:
        while True:
            try:
                near, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self.serve, args=(near,), daemon=True).start()

    def serve(self, near: socket.socket) -> None:
        with near:
            try:
                head = near.recv(65536)
                if b"Upgrade:" not in head:
                    near.sendall(self.told_alone(self.meet()))
                elif self.has_sessions:
                    self.serve_session(near)
                else:
                    near.sendall(NO_UPGRADE)
            except OSError:
                pass

    def meet(self) -> Told:
        with self.lock:
            self.calls += 1
            call = self.calls
        return self.meets(call)

    def serve_session(self, near: socket.socket) -> None:
        welcome = OpenSessionResponse()
        # One at a time, so that a second one waits.
        welcome.welcome.max_in_flight = 1
        welcome.welcome.operations.extend(["claim_threads", "copy_thread"])
        near.sendall(UPGRADED + self.envelope(welcome))
        envelopes = Envelopes()
        while data := near.recv(65536):
            for _, payload in envelopes.feed(data):
                request = OpenSessionRequest.FromString(payload)
                answer = OpenSessionResponse(id=request.id)
                told = self.meet()
                if told is None:
                    getattr(answer, request.WhichOneof("operation")).SetInParent()
                else:
                    answer.error.code = CODES[told[0]]
                    answer.error.message = "as asked"
                    answer.error.detail.CopyFrom(self.detail(*told[1:]))
                near.sendall(self.envelope(answer))

    def told_alone(self, told: Told) -> bytes:
        kind, status, body = "application/proto", "200 OK", b""
        if told is not None:
            value = b64encode(self.detail(*told[1:]).SerializeToString()).decode()
            detail = {"type": "checkpointd.v1.ErrorDetail", "value": value}
            error = {"code": told[0], "message": "as asked", "details": [detail]}
            kind, status, body = "application/json", "503 No", json.dumps(error).encode()
        head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
        return head.encode() + body

    @staticmethod
    def detail(reason: str, field: str) -> ErrorDetail:
        detail = ErrorDetail(reason=reason, field=field)
        detail.retry_delay.nanos = 10_000_000
        return detail

    @staticmethod
    def envelope(message: OpenSessionResponse) -> bytes:
        data = message.SerializeToString()
        return HEAD.pack(0, len(data)) + data


@pytest.fixture(params=["a session", "calls"])
def make(request):
    made = []

    def server(meets: Callable[[int], Told]) -> Server:
        made.append(Server(request.param == "a session", meets))
        return made[-1]

    yield server
    for each in made:
        each.listener.close()


@pytest.fixture(params=["blocking", "asyncio"])
def claims(request):
    """Makes so many claims at a time, and a copy; returns what came of each."""

    def outcome(call):
        try:
            return call()
        except CheckpointdError as error:
            return error

    def blocking(url: str, count: int, copies: int) -> list:
        saver = ConnectSaver(url)
        told = []

        def work(call):
            told.append(outcome(call))

        calls = [lambda: saver.threads.claim(owner="worker")] * count
        calls += [lambda: saver.copy_thread("a", "b")] * copies
        threads = [threading.Thread(target=work, args=(call,)) for call in calls]
        for each in threads:
            each.start()
        for each in threads:
            each.join(60)
        saver.close()
        return told

    def on_a_loop(url: str, count: int, copies: int) -> list:
        async def work():
            saver = ConnectSaver(url)
            calls = [saver.threads.aclaim(owner="worker") for _ in range(count)]
            calls += [saver.acopy_thread("a", "b") for _ in range(copies)]
            told = await asyncio.gather(*calls, return_exceptions=True)
            await saver.aclose()
            return told

        return asyncio.run(work())

    run = blocking if request.param == "blocking" else on_a_loop
    return lambda url, count=1, copies=0: run(url, count, copies)


@pytest.mark.parametrize(
    "told",
    [
        ("unavailable", "SCHEMA_NEW", ""),
        ("unavailable", "NOT_READY", ""),
        ("resource_exhausted", "LIMIT_REACHED", "calls"),
    ],
    ids=lambda told: told[1],
)
def test_made_again_where_the_service_refused_it_before(make, claims, told):
    server = make(lambda call: told if call % 2 else None).start()
    assert claims(server.url) == [[]]
    assert server.calls == 2
    assert claims(server.url, 0, 1) == [None]
    assert server.calls == 4


@pytest.mark.parametrize(
    "told",
    [
        ("resource_exhausted", "LIMIT_REACHED", "leases"),
        ("resource_exhausted", "QUEUE_FULL", ""),
        ("resource_exhausted", "OVERLOADED", ""),
        ("unavailable", "DRAINING", ""),
        ("unavailable", "DATABASE_UNAVAILABLE", ""),
        ("unavailable", "SCHEMA_OLD", ""),
    ],
    ids=lambda told: told[1],
)
def test_not_made_again_where_it_may_have_been_begun(make, claims, told):
    server = make(lambda _: told).start()
    [error] = claims(server.url)
    assert (error.code, error.reason) == told[:2]
    assert server.calls == 1


def test_made_again_where_no_connection_was_made(make, claims):
    server = make(lambda _: None)
    starting = threading.Timer(0.3, server.start)
    starting.start()
    assert not any(isinstance(told, Exception) for told in claims(server.url, 1, 1))
    assert server.calls == 2


def test_not_made_again_where_the_connection_broke(make, claims):
    def cut(_):
        raise ConnectionError

    server = make(cut).start()
    [error] = claims(server.url)
    assert error.code == "unavailable"
    assert server.calls == 1


def test_made_again_that_waited_on_a_session_that_broke(claims):
    def cut_first(call):
        if call == 1:
            # The other one is to wait for its turn by then.
            time.sleep(0.2)
            raise ConnectionError

    server = Server(True, cut_first).start()
    told = claims(server.url, 2)
    server.listener.close()
    assert sorted(isinstance(each, CheckpointdError) for each in told) == [False, True]
    assert server.calls == 2


def test_error_says_whether_the_call_was_begun():
    refused = CheckpointdError("unavailable", "x", reason="SCHEMA_NEW")
    assert refused.is_not_begun
    refused.is_of_begun = True
    assert not refused.is_not_begun
    assert not CheckpointdError("unavailable", "x").is_not_begun
