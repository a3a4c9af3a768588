"""The session for threads, without a thread of its own, and single calls beside it."""

from __future__ import annotations

import os
import select
import socket
import ssl
import struct
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from time import monotonic

from .address import CONNECT_TIMEOUT, Address, prepare, turned
from .credential import Headers
from .errors import CheckpointdError, NoSessions, broken, not_sent, timed_out
from .http1 import Exchange
from .messages import OpenSessionResponse
from .wire import Pending, Session

# How long a thread reads before it looks at deadlines.
TICK = 0.25
# Not heard of for so long, a session is looked at before it is used.
SUSPECT_AFTER = 1.0
READ_BYTES = 64 * 1024
# Operations that are not written yet, because threads that are just being answered may add theirs;
# in pieces of the output, three each.
GATHERED = 8 * 3


class _Pending(Pending):
    __slots__ = ("answer", "error", "is_done", "settled", "wake")

    def __init__(
        self, name: str, deadline: float, timeout: float, settled: deque[threading.Lock]
    ) -> None:
        self.name = name
        self.deadline = deadline
        self.timeout = timeout
        self.sent_bytes = 0
        self.answer: OpenSessionResponse | None = None
        self.error: Exception | None = None
        self.is_done = False
        self.settled = settled
        self.wake: threading.Lock | None = None

    def settle(self, answer: OpenSessionResponse | None, error: Exception | None) -> None:
        self.answer = answer
        self.error = error
        self.is_done = True
        if self.wake is not None:
            self.settled.append(self.wake)
            self.wake = None


class BlockingSession:
    """A session for any number of threads: one that waits for its answer reads for all.

    Threads that were answered are woken one by the other: as only one of them can run at a time, to
    wake all at once costs each of them another wait, for the interpreter's lock. Measured with 32
    threads: half the switches, up to a tenth less CPU, put_writes 1.0 to 1.5 times as often,
    get_tuple 0.9 to 1.2 times, the more the busier the machine is otherwise. Tried and dropped:
    each woken after the one before had decoded its answer (more switches), a pause before each
    write to gather more (put_writes 0.6 to 0.8 times), two sessions (get_tuple 1.1 times,
    put_writes 0.7 times).
    """

    def __init__(
        self, address: Address, headers: Headers, most_bytes: int, deadline: float
    ) -> None:
        """Connects. Raises CheckpointdError if there is no way to the server."""
        self._wire = Session(address.authority, address.prefix, headers, most_bytes)
        # Of what follows, and of the wire.
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._is_reading = False
        # What wakes those that were answered and still sleep: while there are any, one is about to
        # wake the next.
        self._settled: deque[threading.Lock] = deque()
        try:
            sock = open_socket(address, deadline)
        except OSError as error:
            raise address.explain(error) from error
        self._socket: socket.socket | _TlsSocket = sock
        if isinstance(sock, ssl.SSLSocket):
            self._socket = _TlsSocket(sock)
        else:
            _wait_in_the_system(sock)
        self._wire.begin()
        try:
            self._send(self._wire.handshake)
        except CheckpointdError as error:
            raise not_sent(error) from error.__cause__

    @property
    def is_leaving(self) -> bool:
        """Whether new operations should go to another session."""
        return self._wire.is_leaving

    @property
    def was_asked_to_leave(self) -> bool:
        """Whether the service said that its client is to go on with another session."""
        return self._wire.was_asked_to_leave

    @property
    def found_none(self) -> tuple[float, bool] | None:
        """When it turned out that there are no sessions, and whether that may pass."""
        over = self._wire.over
        return (self._wire.over_at, over.is_passing) if isinstance(over, NoSessions) else None

    def look(self) -> None:
        """Reads what came while nobody waited: that the server left, most likely."""
        if monotonic() < self._wire.heard_at + SUSPECT_AFTER:
            return
        with self._lock:
            if self._is_reading or self._wire.over is not None:
                return
            self._is_reading = True
        try:
            while self._is_readable():
                self._read()
        except Exception as error:
            self._end(error)
        finally:
            with self._lock:
                self._is_reading = False

    def run(
        self, request: bytes, name: str, deadline: float, timeout: float
    ) -> OpenSessionResponse:
        """Carries out one operation. Raises as an AsyncSession's does."""
        wire = self._wire
        pending = _Pending(name, deadline, timeout, self._settled)
        now = monotonic()
        wire.encode(pending, request, now)
        try:
            with self._lock:
                wire.submit(pending)
                # Idle for so long that something on the way may have forgotten it.
                if now > wire.heard_at + 2 * SUSPECT_AFTER and not wire.is_idle:
                    wire.ping(now)
            if not self._settled or wire.output_parts > GATHERED:
                self._flush()
            while True:
                with self._lock:
                    if pending.is_done:
                        break
                    wake = None
                    if self._is_reading:
                        wake = pending.wake = threading.Lock()
                        wake.acquire()
                    else:
                        self._is_reading = True
                if wake is None:
                    self._read_for(pending)
                elif not wake.acquire(timeout=TICK):
                    self._flush()
        except BaseException as error:
            self._forget(pending, error)
            raise
        self._wake_next()
        if wire.output_parts and not self._settled:
            self._flush()
        if pending.error is not None:
            raise pending.error
        assert pending.answer is not None
        return pending.answer

    def leave(self) -> None:
        """Ends it when what is under way is answered."""
        with self._lock:
            self._wire.move()
            if not self._wire.is_idle:
                return
        self._end(broken("it is over"))

    def drop(self) -> None:
        """Closes the connection, of which another process has its own copy."""
        self._socket.close()

    def _read_for(self, mine: _Pending) -> None:
        """Reads until this one is answered, and has another one go on."""
        try:
            while not mine.is_done:
                self._read()
                self._flush()
        except BaseException as error:
            # Of a message that was read in part nobody knows how it goes on.
            self._end(error)
            if not isinstance(error, Exception):
                raise
        finally:
            with self._lock:
                self._is_reading = False
                self._hand_on()
            if self._wire.is_moving:
                self.leave()

    def _read(self) -> None:
        try:
            chunk = self._socket.recv(max(READ_BYTES, min(self._wire.missing, 1 << 20)))
        except (TimeoutError, BlockingIOError):
            chunk = None
        except OSError as error:
            raise self._wire.lost(error) from error
        with self._lock:
            if chunk:
                self._wire.receive(chunk)
            elif chunk is not None:
                raise self._wire.lost("the connection was closed")
            else:
                self._wire.check(monotonic())
        self._wake_next()

    def _wake_next(self) -> None:
        # Each thread does it that was answered, so that none is forgotten.
        with suppress(IndexError):
            self._settled.popleft().release()

    def _hand_on(self) -> None:
        for other in self._wire.sent.values():
            assert isinstance(other, _Pending)
            if other.wake is not None:
                other.wake.release()
                other.wake = None
                return

    def _forget(self, pending: _Pending, error: BaseException) -> None:
        with self._lock:
            if not pending.is_done:
                pending.is_done = True
                pending.wake = None
                self._wire.give_up(pending)
            if not self._is_reading:
                self._hand_on()
        self._wake_next()

    def _flush(self) -> None:
        # Who writes also writes what others give out meanwhile.
        while self._wire.output_parts and self._writing.acquire(blocking=False):
            try:
                with self._lock:
                    output = self._wire.take_output()
                for part in output:
                    self._send(part)
            except BaseException as error:
                self._end(error)
                if not isinstance(error, Exception):
                    raise
            finally:
                self._writing.release()

    def _send(self, data: bytes) -> None:
        view = memoryview(data)
        by = monotonic() + CONNECT_TIMEOUT
        while view:
            try:
                view = view[self._socket.send(view) :]
                by = monotonic() + CONNECT_TIMEOUT
            except (TimeoutError, BlockingIOError):
                if monotonic() > by:
                    raise broken("the server reads nothing") from None
            except OSError as error:
                raise broken(error) from error

    def _is_readable(self) -> bool:
        return _is_ready(self._socket.fileno(), False, 0)

    def _end(self, error: BaseException) -> None:
        with self._lock:
            self._wire.end(error)
        self._wake_next()
        self._socket.close()


class _TlsSocket:
    """A socket with TLS that one thread may read and another write: OpenSSL wants them in turn."""

    def __init__(self, sock: ssl.SSLSocket) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._lock = threading.Lock()

    def fileno(self) -> int:
        return self._socket.fileno()

    def recv(self, size: int) -> bytes:
        by = monotonic() + TICK
        while True:
            try:
                with self._lock:
                    return self._socket.recv(size)
            except ssl.SSLWantReadError:
                self._wait(by, False)
            except ssl.SSLWantWriteError:
                self._wait(by, True)

    def send(self, data: memoryview) -> int:
        by = monotonic() + TICK
        while True:
            try:
                with self._lock:
                    return self._socket.send(data[: 256 * 1024])
            except ssl.SSLWantWriteError:
                self._wait(by, True)
            except ssl.SSLWantReadError:
                self._wait(by, False)

    def close(self) -> None:
        self._socket.close()

    def _wait(self, by: float, to_write: bool) -> None:
        if not _is_ready(self._socket.fileno(), to_write, max(0.0, by - monotonic())):
            raise TimeoutError("timed out")


def _wait_in_the_system(sock: socket.socket) -> None:
    """Has reads and writes end after a tick by the system's own timeout.

    With Python's each of them is two system calls, and the interpreter's lock is given up twice.
    """
    if os.name == "nt":
        # Which takes milliseconds there.
        sock.settimeout(TICK)
        return
    sock.settimeout(None)
    ticks = struct.pack("@ll", int(TICK), int(TICK % 1 * 1e6))
    for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        sock.setsockopt(socket.SOL_SOCKET, option, ticks)


def _is_ready(fd: int, to_write: bool, within: float) -> bool:
    if hasattr(select, "poll"):
        # Also for the many files that select has no room for.
        poll = select.poll()
        poll.register(fd, select.POLLOUT if to_write else select.POLLIN)
        return bool(poll.poll(within * 1000))
    reading, writing = ([], [fd]) if to_write else ([fd], [])
    return any(select.select(reading, writing, [], within))


def open_socket(address: Address, deadline: float) -> socket.socket:
    """A connection to one of the address's hosts. Raises OSError."""
    if address.socket_path is not None:
        local = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            local.settimeout(max(0.001, min(CONNECT_TIMEOUT, deadline - monotonic())))
            local.connect(address.socket_path)
            return local
        except BaseException:
            local.close()
            raise
    failure: OSError | None = None
    infos = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    for (family, kind, protocol, _, name), within in turned(list(infos)):
        left = deadline - monotonic()
        if left <= 0:
            break
        sock = socket.socket(family, kind, protocol)
        try:
            prepare(sock)
            sock.settimeout(min(within, left))
            sock.connect(name)
            context = address.context
            if context is not None:
                return context.wrap_socket(sock, server_hostname=address.host)
            return sock
        except OSError as error:
            sock.close()
            failure = error
        except BaseException:
            sock.close()
            raise
    raise failure or TimeoutError("timed out")


def call(address: Address, exchange: Exchange, deadline: float) -> Iterator[bytes]:
    """The messages that come back. As the asynchronous one."""
    within = deadline - monotonic()
    try:
        sock = open_socket(address, deadline)
    except OSError as error:
        raise address.explain(error) from error
    try:
        sock.settimeout(max(0.001, within))
        sock.sendall(exchange.request)
        while not exchange.done:
            chunk = sock.recv(256 * 1024)
            yield from exchange.feed(chunk) if chunk else exchange.feed_end()
    except TimeoutError:
        raise timed_out() from None
    except CheckpointdError:
        raise
    except OSError as error:
        raise broken(error) from error
    finally:
        sock.close()
