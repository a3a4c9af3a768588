"""A session's wire, without I/O: operations out, answers in, on one long-lived connection.

Two drivers move the bytes, `async_session.py` and `blocking_session.py`. A driver opens a
connection, writes `handshake`, gives what it reads to `receive`, and what `take_output` returns to
the network.
"""

from __future__ import annotations

import math
import struct
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import count
from time import monotonic

from .errors import (
    CheckpointdError,
    NoSessions,
    NotCarried,
    broken,
    end_error,
    from_detail,
    not_sent,
    one_more,
    timed_out,
)
from .foreign_status import is_passing
from .messages import OpenSessionRequest, OpenSessionResponse

SESSION_PATH = "/checkpointd.v1.SessionService/OpenSession"
SESSION_UPGRADE = "checkpointd-session"

# Of an envelope: a byte of flags, the length in four bytes.
HEAD = struct.Struct(">BI")
END_OF_STREAM = 2

# From how many bytes on a part is written without being copied to the others.
WHOLE_BYTES = 128 * 1024

# A peer that vanished without a word answers neither operations nor pings: known in 5 s.
PING_AFTER = 2.0
PING_TIMEOUT = 3.0
# A ping waits behind what was sent before it. The slowest network on which a server is not taken
# for dead meanwhile, in bytes a second.
LEAST_BYTES_PER_SECOND = 100_000
# Within which a server that was reached answers the handshake and greets; longer, and something on
# the way holds back what it does not know.
GREETING_TIMEOUT = 2.5
# How long the other side has to end a session that was left.
PARTING_TIMEOUT = 5.0


# Not made again where the first time may have been carried out: a second one is something else.
ONCE = frozenset({"claim_threads", "copy_thread"})


class Pending:
    """An operation on its way. A driver's class says in `settle` whom to tell what came of it."""

    __slots__ = ("data", "deadline", "id", "name", "sent_bytes", "size", "timeout")

    def __init__(self, name: str, deadline: float, timeout: float) -> None:
        self.name = name
        self.deadline = deadline
        self.timeout = timeout
        self.id = 0
        self.data: tuple[bytes, ...] = ()
        self.size = 0
        self.sent_bytes = 0

    def settle(self, answer: OpenSessionResponse | None, error: Exception | None) -> None:
        """Is called once, with the answer or the error."""
        raise NotImplementedError


class Envelopes:
    """Takes a stream's chunks apart into its messages."""

    __slots__ = ("_held", "_needed", "_size")

    def __init__(self) -> None:
        self._held: list[bytes] = []
        self._size = 0
        self._needed = 5

    @property
    def missing(self) -> int:
        """How many bytes there are to come at least before there is another message."""
        return self._needed - self._size

    def feed(self, chunk: bytes) -> Iterator[tuple[int, bytes]]:
        """The messages that the chunk completes, each with its flags."""
        self._size += len(chunk)
        if self._size < self._needed:
            self._held.append(chunk)
            return
        if self._held:
            self._held.append(chunk)
            chunk = b"".join(self._held)
        at, size = 0, len(chunk)
        needed = 5
        while size - at >= 5:
            flags, length = HEAD.unpack_from(chunk, at)
            if size - at < 5 + length:
                needed = 5 + length
                break
            at += 5 + length
            yield flags, chunk[at - length : at]
        rest = chunk[at:]
        self._held = [rest] if rest else []
        self._size = len(rest)
        self._needed = needed


class Session:
    """One session, from its handshake to its end. Not safe for threads: its driver sees to that."""

    def __init__(
        self, host: str, prefix: str, headers: Iterable[tuple[str, str]], most: int
    ) -> None:
        lines = [
            f"GET {prefix}{SESSION_PATH} HTTP/1.1",
            f"Host: {host}",
            "Connection: Upgrade",
            f"Upgrade: {SESSION_UPGRADE}",
            *(f"{name}: {value}" for name, value in headers),
        ]
        self.handshake = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
        self.request_id = ""
        self.sent: dict[int, Pending] = {}
        self.queued: deque[Pending] = deque()
        self.is_moving = False
        self.was_asked_to_leave = False
        self.over: Exception | None = None
        self.over_at = 0.0
        now = monotonic()
        self.heard_at = now
        self._most_bytes = most
        self._ids = count(1)
        self._output: list[bytes] = []
        self._head: bytes | None = b""
        self._envelopes = Envelopes()
        self._begun_at = math.inf
        self._max_in_flight = 0
        self._known: frozenset[str] = frozenset()
        self._pinged_at: float | None = None
        self._moved_at = 0.0
        self._sent_bytes = 0
        self._arrived_bytes = 0

    @property
    def is_leaving(self) -> bool:
        """Whether new operations should go to another session."""
        return self.is_moving or self.over is not None

    @property
    def is_idle(self) -> bool:
        """Whether nothing is without an answer."""
        return not self.sent and not self.queued

    @property
    def missing(self) -> int:
        """How many bytes there are to come at least before there is another message."""
        return self._envelopes.missing

    def encode(self, pending: Pending, data: bytes, now: float) -> None:
        """Gives the operation, a request without an id, an id. Safe for threads."""
        pending.id = next(self._ids)
        timeout_ms = max(1, int((pending.deadline - now) * 1000))
        # What comes later in a message adds to it.
        begin = OpenSessionRequest(id=pending.id, timeout_ms=timeout_ms).SerializeToString()
        pending.data = begin, data
        pending.size = len(begin) + len(data)

    def submit(self, pending: Pending) -> None:
        """Sends the operation, or has it wait for its turn."""
        if self.over is not None:
            pending.settle(None, not_sent(self.over))
        elif len(self.sent) < self._max_in_flight:
            self._send(pending)
        else:
            self.queued.append(pending)

    def give_up(self, pending: Pending) -> None:
        """Forgets an operation and tells the server that nobody waits for it."""
        if self.sent.pop(pending.id, None) is not None:
            self._tell(OpenSessionRequest(id=pending.id), "cancel")
        else:
            try:
                self.queued.remove(pending)
            except ValueError:
                return
        self._send_queued()

    def take_output(self) -> list[bytes]:
        """What is to be written now, one after the other."""
        output = self._output
        if not output:
            return output
        self._output = []
        if max(map(len, output)) < WHOLE_BYTES:
            return [b"".join(output)]
        # To copy what is large costs more than to write it by itself.
        parts: list[bytes] = []
        small: list[bytes] = []
        for part in output:
            if len(part) < WHOLE_BYTES:
                small.append(part)
            else:
                parts += (b"".join(small), part)
                small = []
        return [*parts, b"".join(small)] if small else parts

    @property
    def output_parts(self) -> int:
        """How many pieces are to be written."""
        return len(self._output)

    def receive(self, chunk: bytes) -> None:
        """Takes what was read, and settles what it answers. Raises what the session ends with."""
        self.heard_at = monotonic()
        if self._head is not None:
            rest = self._read_head(chunk)
            if rest is None:
                return
            chunk = rest
        for flags, payload in self._envelopes.feed(chunk):
            if flags:
                self._receive_end(flags, payload)
                return
            message = OpenSessionResponse.FromString(payload)
            pending = self.sent.pop(message.id, None)
            if pending is None:
                self._receive_word(message)
                continue
            if pending.sent_bytes > self._arrived_bytes:
                self._arrived_bytes = pending.sent_bytes
            if message.HasField("error"):
                error = self._to_error(pending.id, message)
                # The service ends what is under way when its credential ends: "unauthenticated".
                error.is_of_begun = pending.name in ONCE and not error.is_not_begun
                pending.settle(None, error)
            else:
                pending.settle(message, None)
            if self.queued:
                self._send_queued()

    def check(self, now: float) -> None:
        """Is to be called every now and then while an operation is without an answer.

        Gives up what is past its deadline, and pings a server that was not heard of for long.
        Raises what the session ends with.
        """
        late = [
            pending
            for pending in (*self.sent.values(), *self.queued)
            # A page is no later than a stream would be whose next tuple arrives in time.
            if now > pending.deadline
            and not (pending.name == "list_page" and now <= self.heard_at + pending.timeout)
        ]
        for pending in late:
            self.give_up(pending)
            pending.settle(None, timed_out())
        if self._max_in_flight == 0:
            if now > self._begun_at + GREETING_TIMEOUT:
                raise NoSessions("no greeting")
        elif now <= self.heard_at + PING_AFTER:
            self._pinged_at = None
        elif self._pinged_at is None:
            self.ping(now)
        else:
            unread = (self._sent_bytes - self._arrived_bytes) / LEAST_BYTES_PER_SECOND
            if now > self._pinged_at + PING_TIMEOUT + unread:
                raise broken("the server answered no ping")

    def ping(self, now: float) -> None:
        """Asks for a sign of life."""
        if self._pinged_at is None:
            self._pinged_at = now
            self._tell(OpenSessionRequest(id=next(self._ids)), "ping")

    def begin(self) -> None:
        """The connection is made: the time for the greeting starts."""
        self._begun_at = self.heard_at = monotonic()

    def move(self) -> None:
        """No new operations; the driver ends the connection when those under way are answered."""
        if not self.is_moving:
            self.is_moving = True
            self._moved_at = monotonic()

    def lost(self, why: object) -> Exception:
        """What the session ends with when its connection does."""
        if self._head is not None:
            # Reached, but not answered: other calls tell what is there.
            return NoSessions(f"no upgrade: {why}")
        return broken(why)

    def end(self, error: BaseException) -> None:
        """Fails what is under way. Idempotent."""
        if self.over is not None:
            return
        self.over = one_more(error)
        self.over_at = monotonic()
        sent, queued = [*self.sent.values()], [*self.queued]
        self.sent.clear()
        self.queued.clear()
        self._output.clear()
        for pending in sent:
            is_once = pending.name in ONCE
            told = broken(error) if is_once and isinstance(error, NotCarried) else one_more(error)
            if isinstance(told, CheckpointdError):
                told.is_of_begun = is_once
            told.__cause__ = error.__cause__
            pending.settle(None, told)
        for pending in queued:
            told = not_sent(error)
            told.__cause__ = error.__cause__
            pending.settle(None, told)

    def _send(self, pending: Pending) -> None:
        data = pending.data
        if pending.name not in self._known:
            pending.settle(None, NotCarried(f"the server knows no {pending.name} on a session"))
            return
        size = pending.size
        if size > self._most_bytes:
            pending.settle(None, NotCarried(f"{size} bytes are above the limit"))
            return
        self._sent_bytes += size
        pending.sent_bytes = self._sent_bytes
        self.sent[pending.id] = pending
        self._output += (HEAD.pack(0, size), *data)
        # What is sent waits in the answer's place only.
        pending.data = ()

    def _send_queued(self) -> None:
        while self.queued and len(self.sent) < self._max_in_flight:
            self._send(self.queued.popleft())

    def _tell(self, request: OpenSessionRequest, name: str) -> None:
        getattr(request, name).SetInParent()
        data = request.SerializeToString()
        self._output += (HEAD.pack(0, len(data)), data)

    def _receive_word(self, message: OpenSessionResponse) -> None:
        if message.HasField("welcome"):
            self._max_in_flight = message.welcome.max_in_flight
            self._known = frozenset(message.welcome.operations)
            self._send_queued()
        elif message.HasField("goodbye"):
            self.was_asked_to_leave = True
            self.move()

    def _receive_end(self, flags: int, payload: bytes) -> None:
        if not flags & END_OF_STREAM:
            raise broken("unexpected flags")
        error = end_error(payload)
        # One of the operations caused it: as a call of its own each is told its own.
        raise NotCarried(error.message) if error else broken("it is over")

    def _read_head(self, chunk: bytes) -> bytes | None:
        """Reads the answer to the handshake; returns what comes after it, once it is there."""
        head = (self._head or b"") + chunk
        at = head.find(b"\r\n\r\n")
        if at < 0:
            if len(head) > 64 * 1024 or not b"HTTP/".startswith(head[:5]):
                raise NoSessions("no upgrade: no answer in HTTP")
            self._head = head
            return None
        status, *lines = head[:at].decode("latin-1").split("\r\n")
        headers = {
            name.strip().lower(): value.strip()
            for name, _, value in (line.partition(":") for line in lines)
        }
        if not status.startswith("HTTP/1.1 101"):
            code = status.split(" ")[1] if " " in status else ""
            passes = code.isdigit() and is_passing(int(code))
            raise NoSessions(f"no upgrade: {status}", passes)
        if headers.get("upgrade", "").lower() != SESSION_UPGRADE:
            raise NoSessions("no upgrade: to something else")
        self.request_id = headers.get("x-request-id", "")
        self._head = None
        return head[at + 4 :]

    def _to_error(self, id: int, message: OpenSessionResponse) -> CheckpointdError:
        error = message.error
        detail = error.detail if error.HasField("detail") else None
        request_id = f"{self.request_id}/{id}" if self.request_id else ""
        return from_detail(error.code, error.message, detail, request_id)
