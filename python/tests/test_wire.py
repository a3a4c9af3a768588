"""The wire without a network: what goes out, what comes in, in pieces of any size."""

from __future__ import annotations

import json
import ssl
import time

import pytest

from checkpointd import errors, wire
from checkpointd.address import Address, Tls
from checkpointd.credential import Credential
from checkpointd.errors import CheckpointdError, NoSessions, NotCarried
from checkpointd.http1 import Exchange
from checkpointd.messages import GetTupleResponse, OpenSessionRequest, OpenSessionResponse
from checkpointd.retry import Retry, Tries
from checkpointd.wire import HEAD, WHOLE_BYTES, Envelopes, Pending, Session

UPGRADED = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: checkpointd-session\r\nx-request-id: r1\r\n\r\n"
)
KNOWN = ["get_tuple", "put", "ping"]


class Operation(Pending):
    """An operation that notes what came of it."""

    __slots__ = ("told",)

    def __init__(self, name: str = "get_tuple", within: float = 10) -> None:
        super().__init__(name, time.monotonic() + within, within)
        self.told: list = []

    def settle(self, answer, error):
        self.told.append(answer or error)


def envelope(message: OpenSessionResponse) -> bytes:
    data = message.SerializeToString()
    return HEAD.pack(0, len(data)) + data


def welcome(max_in_flight: int = 2, operations=KNOWN) -> bytes:
    message = OpenSessionResponse()
    message.welcome.max_in_flight = max_in_flight
    message.welcome.operations.extend(operations)
    return envelope(message)


def answer(id: int) -> bytes:
    message = OpenSessionResponse(id=id)
    message.get_tuple.SetInParent()
    return envelope(message)


def opened(**options) -> Session:
    session = Session("host", "/prefix", [("authorization", "Bearer x")], 1000)
    session.begin()
    session.receive(UPGRADED + welcome(**options))
    return session


def submit(session: Session, operation: Operation) -> Operation:
    request = OpenSessionRequest()
    getattr(request, operation.name).SetInParent()
    session.encode(operation, request.SerializeToString(), time.monotonic())
    session.submit(operation)
    return operation


def sent(session: Session) -> list[OpenSessionRequest]:
    return [
        OpenSessionRequest.FromString(it)
        for _, it in Envelopes().feed(b"".join(session.take_output()))
    ]


def test_handshake():
    session = Session("host:1", "/prefix", [("authorization", "Bearer x")], 1)
    assert session.handshake == (
        b"GET /prefix/checkpointd.v1.SessionService/OpenSession HTTP/1.1\r\nHost: host:1\r\n"
        b"Connection: Upgrade\r\nUpgrade: checkpointd-session\r\nauthorization: Bearer x\r\n\r\n"
    )


@pytest.mark.parametrize("size", [1, 2, 7, 10_000])
def test_answers_in_pieces(size):
    session = Session("host", "", [], 1000)
    session.begin()
    operations = [submit(session, Operation()) for _ in range(2)]
    assert not session.output_parts
    data = UPGRADED + welcome() + answer(2) + answer(1)
    for at in range(0, len(data), size):
        session.receive(data[at : at + size])
    assert [it.id for it in sent(session)] == [1, 2]
    assert session.is_idle and [len(it.told) for it in operations] == [1, 1]
    assert [it.told[0].id for it in operations] == [1, 2]


def test_no_more_at_a_time_than_the_server_takes():
    session = opened(max_in_flight=2)
    for _ in range(4):
        submit(session, Operation())
    assert [it.id for it in sent(session)] == [1, 2]
    session.receive(answer(2))
    assert [it.id for it in sent(session)] == [3]


def test_deadline_is_sent_and_kept():
    session = opened()
    late, other = submit(session, Operation(within=1.5)), submit(session, Operation())
    assert 1400 < sent(session)[0].timeout_ms <= 1500
    session.check(time.monotonic() + 1.6)
    assert [it.told[0].code for it in (late,)] == ["deadline_exceeded"] and not other.told
    assert [(it.id, it.WhichOneof("operation")) for it in sent(session)] == [(1, "cancel")]
    # What comes too late is nobody's.
    session.receive(answer(1))
    assert len(late.told) == 1


def test_page_may_be_late_while_it_arrives():
    session = opened(operations=["list_page"])
    page = submit(session, Operation("list_page", within=1))
    session.heard_at = time.monotonic() + 1.5
    session.check(time.monotonic() + 2)
    assert not page.told


def test_silent_server_is_pinged_and_left():
    session = opened()
    submit(session, Operation(within=100))
    sent(session)
    now = time.monotonic()
    session.check(now + 1.9)
    assert not session.output_parts
    session.check(now + 2.1)
    assert [it.WhichOneof("operation") for it in sent(session)] == ["ping"]
    session.check(now + 5)
    with pytest.raises(CheckpointdError, match="answered no ping"):
        session.check(now + 5.2)


def test_no_greeting():
    session = Session("host", "", [], 1000)
    session.check(time.monotonic() + 100)
    session.begin()
    session.check(time.monotonic() + 2)
    with pytest.raises(NoSessions):
        session.check(time.monotonic() + 3)


def test_goodbye_and_what_follows():
    session = opened()
    operation = submit(session, Operation())
    message = OpenSessionResponse()
    message.goodbye.SetInParent()
    session.receive(envelope(message))
    assert session.is_leaving and not operation.told
    session.receive(answer(1))
    assert operation.told and session.is_idle


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ({}, CheckpointdError),
        ({"error": {"code": "resource_exhausted", "message": "too large"}}, NotCarried),
    ],
)
def test_end_of_stream(body, error):
    session = opened()
    payload = json.dumps(body).encode()
    with pytest.raises(error):
        session.receive(HEAD.pack(wire.END_OF_STREAM, len(payload)) + payload)


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 404 Not Found\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n",
        b"SSH-2.0-OpenSSH\r\n",
    ],
)
def test_no_upgrade(head):
    session = Session("host", "", [], 1000)
    with pytest.raises(NoSessions):
        session.receive(head)


def test_what_a_session_does_not_carry():
    session = opened(operations=["get_tuple"])
    unknown = submit(session, Operation("put"))
    assert isinstance(unknown.told[0], NotCarried)
    large = Operation()
    request = OpenSessionRequest()
    request.get_tuple.thread_id = "x" * 2000
    session.encode(large, request.SerializeToString(), time.monotonic())
    session.submit(large)
    assert isinstance(large.told[0], NotCarried) and session.is_idle


def test_end_settles_everything_once():
    session = opened(max_in_flight=1)
    operations = [submit(session, Operation()) for _ in range(3)]
    session.end(errors.broken("a"))
    session.end(errors.broken("b"))
    assert [[str(it) for it in each.told] for each in operations] == [
        ["[unavailable] the session broke: a"]
    ] * 3
    late = [submit(session, Operation()) for _ in range(2)]
    assert [str(each.told[0]) for each in late] == ["[unavailable] the session broke: a"] * 2
    # An error collects the frames of all who raise it: each is told its own.
    told = [each.told[0] for each in (*operations, *late)]
    assert len({id(error) for error in (*told, session.over)}) == 6


def test_end_by_anything():
    session = opened()
    operation = submit(session, Operation())
    session.end(KeyboardInterrupt())
    assert str(operation.told[0]) == "[unavailable] the session broke: KeyboardInterrupt()"
    session = opened()
    operation = submit(session, Operation())
    cause = OSError("gone")
    try:
        raise errors.NotCarried("too large") from cause
    except errors.NotCarried as error:
        session.end(error)
    told = operation.told[0]
    assert isinstance(told, errors.NotCarried) and told.__cause__ is cause
    assert session.over.__traceback__ is session.over.__cause__ is None


def test_error_with_its_detail():
    session = opened()
    operation = submit(session, Operation())
    message = OpenSessionResponse(id=1)
    message.error.code = 8
    message.error.message = "too many"
    message.error.detail.reason = "QUEUE_FULL"
    message.error.detail.limit = 5000
    message.error.detail.retry_delay.FromMilliseconds(1500)
    session.receive(envelope(message))
    error = operation.told[0]
    assert (error.code, error.reason, error.limit) == ("resource_exhausted", "QUEUE_FULL", 5000)
    assert (error.retry_delay, error.request_id, error.is_retryable) == (1.5, "r1/1", True)


def exchange(**options) -> Exchange:
    address = Address("http://host:1/x")
    return Exchange(address, "A/B", b"message", (), timeout=1.5, **{"is_stream": False, **options})


def feed(call: Exchange, data: bytes, size: int) -> list[bytes]:
    messages = []
    for at in range(0, len(data), size):
        messages += call.feed(data[at : at + size])
    return messages


@pytest.mark.parametrize("size", [1, 3, 10_000])
@pytest.mark.parametrize("is_chunked", [True, False])
def test_unary_call(size, is_chunked):
    call = exchange()
    assert b"POST /x/checkpointd.v1.A/B HTTP/1.1\r\nHost: host:1\r\n" in call.request
    assert b"\r\nConnect-Timeout-Ms: 1500\r\n\r\nmessage" in call.request
    data = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Type: application/proto\r\n"
    if is_chunked:
        data += b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n1;x=y\r\n!\r\n0\r\nA: b\r\n\r\n"
    else:
        data += b"Content-Length: 6\r\n\r\nhello!"
    assert feed(call, data, size) == [b"hello!"] and call.done


def test_unary_call_until_the_connection_ends():
    call = exchange()
    assert not call.feed(b"HTTP/1.0 200 OK\r\nContent-Type: application/proto\r\n\r\nhel")
    assert not call.feed(b"lo") and call.feed_end() == [b"hello"]
    call = exchange()
    call.feed(b"HTTP/1.1 200 OK\r\nContent-Type: application/proto\r\nContent-Length: 9\r\n\r\nhel")
    with pytest.raises(CheckpointdError, match="before the answer was complete"):
        call.feed_end()


@pytest.mark.parametrize("size", [1, 4, 10_000])
def test_stream(size):
    head = (
        b"HTTP/1.1 200 OK\r\nContent-Type: application/connect+proto\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n"
    )
    parts = [HEAD.pack(0, 3) + b"one", HEAD.pack(0, 3) + b"two"]
    ends = {
        b"{}": None,
        b'{"error": {"code": "unavailable", "message": "gone"}}': r"\[unavailable\] gone",
    }
    for end, error in ends.items():
        chunks = [*parts, HEAD.pack(2, len(end)) + end]
        body = b"".join(b"%x\r\n%s\r\n" % (len(it), it) for it in chunks) + b"0\r\n\r\n"
        call = exchange(is_stream=True)
        if error is None:
            assert feed(call, head + body, size) == [b"one", b"two"] and call.done
        else:
            with pytest.raises(CheckpointdError, match=error):
                feed(call, head + body, size)
    call = exchange(is_stream=True)
    cut = b"%x\r\n%s\r\n0\r\n\r\n" % (len(parts[0]), parts[0])
    with pytest.raises(CheckpointdError, match="the stream ended before its end"):
        feed(call, head + cut, 10_000)


def test_unary_error():
    body = json.dumps(
        {"code": "not_a_code", "message": "m", "details": [{"type": "other"}]}
    ).encode()
    data = b"HTTP/1.1 400 Bad\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
    with pytest.raises(CheckpointdError, match="m") as failure:
        exchange().feed(data % (len(body), body))
    assert failure.value.code == "not_a_code"


@pytest.mark.parametrize("status", [500, 502, 503, 429, 408])
def test_passing_trouble_of_a_proxy(status):
    with pytest.raises(CheckpointdError) as failure:
        exchange().feed(b"HTTP/1.1 %d X\r\nRetry-After: 3\r\nContent-Length: 0\r\n\r\n" % status)
    assert failure.value.is_retryable and failure.value.retry_delay == 3


def test_tries():
    def error(code="unavailable", **more):
        return CheckpointdError(code, "m", **more)

    deadline = time.monotonic() + 10
    tries = Tries(Retry(initial_delay=0.1, max_delay=0.3), 10, deadline)
    assert all(0 <= tries.pause_after(error()) <= 0.3 for _ in range(20))
    assert 1 <= tries.pause_after(error("aborted", retry_delay=1.0)) <= 1.6
    with pytest.raises(CheckpointdError, match="gave up after 22 tries in 0.0 s"):
        tries.pause_after(error("internal"))
    with pytest.raises(CheckpointdError, match="^.internal. m$"):
        Tries(Retry(), 10, deadline).pause_after(error("internal"))
    with pytest.raises(CheckpointdError, match="gave up after 2 tries"):
        tries = Tries(Retry(attempts=2), 10, deadline)
        tries.pause_after(error())
        tries.pause_after(error())
    # What went wrong before says more than that the deadline passed.
    tries = Tries(Retry(initial_delay=0), 10, time.monotonic())
    with pytest.raises(CheckpointdError, match=r"\[unavailable\]"):
        tries.pause_after(error(retry_delay=1.0))
    tries = Tries(Retry(initial_delay=0, max_delay=0), 10, time.monotonic() + 0.5)
    tries.pause_after(error())
    time.sleep(0.55)
    with pytest.raises(CheckpointdError, match=r"\[unavailable\] m; gave up after 2 tries"):
        tries.pause_after(error("deadline_exceeded"))


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("ftp://host", "must begin with http://, https:// or unix:, not 'ftp://host'"),
        ("host:8080", "must begin with http"),
        ("http://", "has no host"),
        ("http://u:secret@host", "must not hold a user or password"),
        ("x://u:secret@host", "must begin with http://, https:// or unix:; such as"),
        ("http://host?a=b", "must not have a query"),
        ("http://host:port", "must begin with http"),
        ("unix:relative.sock", "must have an absolute path"),
        ("unix://host/path", "must have an absolute path"),
        ("unix:/path?a=b", "must not have a query"),
    ],
)
def test_urls_that_are_none(url, words):
    with pytest.raises(ValueError, match=words) as failure:
        Address(url)
    assert "secret" not in str(failure.value)


@pytest.mark.parametrize(
    ("headers", "token", "words"),
    [
        ({"a b": "c"}, None, "headers: 'a b' is no name"),
        ({"host": "x"}, None, 'headers: "host" belongs'),
        ({"x": "sec\nret"}, None, 'headers: the value of "x"'),
        ({}, "sec\rret", "token must be text"),
        ({}, "sec ret", "token must be text"),
        ({}, "", "token must be text"),
        ({"Authorization": "Bearer sec"}, "sec", "either a token or headers"),
    ],
)
def test_what_cannot_be_sent(headers, token, words):
    with pytest.raises(ValueError, match=words) as failure:
        Credential(headers, token)
    assert "sec" not in str(failure.value)
    with pytest.raises(TypeError, match="a string or a function, not int"):
        Credential(None, 7)


def test_what_does_not_go_together():
    for options, words in (
        ({"cert": "c"}, "cert and key need each other"),
        ({"context": ssl.create_default_context(), "ca": "c"}, "give either tls or ca"),
        ({"context": ssl.create_default_context(), "verify": False}, "give either tls or ca"),
    ):
        with pytest.raises(ValueError, match=words):
            Tls(**options)
    with pytest.raises(ValueError, match="for URLs that begin with https"):
        Address("http://host", Tls(verify=False))
    with pytest.raises(FileNotFoundError):
        Address("https://host", Tls(ca="/no/such/file"))


def test_stored_message_of_a_later_server_is_read():
    assert GetTupleResponse.FromString(b"\xf8\x07\x01") == GetTupleResponse.FromString(
        b"\xf8\x07\x01"
    )


def test_what_is_large_is_written_without_being_copied():
    session = Session("host", "", [], 1 << 30)
    session.begin()
    session.receive(UPGRADED + welcome(max_in_flight=9, operations=["put"]))
    large = b"x" * WHOLE_BYTES
    operations = []
    for data in (b"", large, b"", b"", large):
        operation = Operation("put")
        request = OpenSessionRequest()
        request.put.thread_id = "t"
        encoded = request.SerializeToString()
        # An unknown field, in the place of a large value.
        encoded += b"\xfa\x7f" + bytes([len(data) & 127 | 128, len(data) >> 7 & 127 | 128])
        encoded += bytes([len(data) >> 14]) + data if data else b"\x00"
        operations.append(encoded)
        session.encode(operation, encoded, time.monotonic())
        session.submit(operation)
    parts = session.take_output()
    assert [part is operations[at] for at, part in ((1, parts[1]), (4, parts[3]))] == [True, True]
    assert len(parts) == 4
    assert len(list(Envelopes().feed(b"".join(parts)))) == 5
    assert not session.take_output()
