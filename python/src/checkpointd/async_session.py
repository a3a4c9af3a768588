"""The session on a running event loop, and single calls beside it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from time import monotonic
from typing import Any

from .address import CONNECT_TIMEOUT, Address, prepare, turned
from .credential import Headers
from .errors import NoSessions, broken, timed_out
from .http1 import Exchange
from .messages import OpenSessionResponse
from .wire import GREETING_TIMEOUT, PARTING_TIMEOUT, Pending, Session

# How often deadlines are looked at while operations wait.
SWEEP = 0.1
# What is written without waiting for the rest of the tick, so that the service works meanwhile.
PORTION_BYTES = 64 * 1024


class _Pending(Pending):
    __slots__ = ("future",)

    def __init__(
        self,
        name: str,
        deadline: float,
        timeout: float,
        future: asyncio.Future[OpenSessionResponse],
    ) -> None:
        self.name = name
        self.deadline = deadline
        self.timeout = timeout
        self.future = future
        self.sent_bytes = 0

    def settle(self, answer: OpenSessionResponse | None, error: Exception | None) -> None:
        if self.future.done():
            return
        if answer is not None:
            self.future.set_result(answer)
        else:
            self.future.set_exception(error or broken())


class AsyncSession(asyncio.Protocol):
    """A session of one event loop. Everything of it happens in that loop."""

    def __init__(self, address: Address, headers: Headers, most_bytes: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._address = address
        self._wire = Session(address.authority, address.prefix, headers, most_bytes)
        self._transport: asyncio.Transport | None = None
        self._socket: socket.socket | None = None
        self._is_flushing = False
        self._is_sweeping = False
        self._closed = self._loop.create_future()
        self._opening = self._loop.create_task(self._open())

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop that it belongs to."""
        return self._loop

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

    async def run(
        self, request: bytes, name: str, deadline: float, timeout: float, is_write: bool
    ) -> OpenSessionResponse:
        """Carries out one operation, an encoded request without an id.

        Raises the error that a call of its own would have, "unavailable" when the session breaks
        (it may or may not have been carried out), "deadline_exceeded", and NotCarried. A cancelled
        read is given up; a cancelled write is carried out all the same, for it stores what a run
        has done by then.
        """
        pending = self._submit(request, name, deadline, timeout)
        future = pending.future
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                # Nobody else looks at it any more.
                future.exception()
            elif not is_write:
                self._wire.give_up(pending)
                self._flush()
                self._rest_if_idle()
            raise

    def post(self, request: bytes, name: str, deadline: float, timeout: float) -> None:
        """Has an operation carried out, whatever comes of it."""
        pending = self._submit(request, name, deadline, timeout)
        pending.future.add_done_callback(asyncio.Future.exception)

    def _submit(self, request: bytes, name: str, deadline: float, timeout: float) -> _Pending:
        wire = self._wire
        future: asyncio.Future[OpenSessionResponse] = self._loop.create_future()
        pending = _Pending(name, deadline, timeout, future)
        wire.encode(pending, request, monotonic())
        # All of a tick in one write; but neither the first nor a large one waits for others.
        is_at_once = not wire.sent or pending.size > PORTION_BYTES
        wire.submit(pending)
        if is_at_once:
            self._flush()
        elif not self._is_flushing:
            self._is_flushing = True
            self._loop.call_soon(self._flush_tick)
        if not self._is_sweeping:
            self._is_sweeping = True
            self._loop.call_later(SWEEP, self._sweep)
        return pending

    def leave(self) -> None:
        """Ends it when what is under way is answered."""
        self._wire.move()
        self._rest_if_idle()

    def abort(self) -> None:
        """Ends it at once; what is under way fails. Idempotent."""
        self._end(broken("it was left"))

    async def wait_closed(self) -> None:
        """Waits for its end."""
        await asyncio.shield(self._closed)

    def drop(self) -> None:
        """Closes the connection of a loop that runs no more."""
        self._wire.over = self._wire.over or broken("its event loop was closed")
        if self._socket is not None:
            self._socket.close()

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begins."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._wire.begin()
        transport.write(self._wire.handshake)

    def data_received(self, data: bytes) -> None:
        """Takes answers."""
        try:
            self._wire.receive(data)
        except BaseException as error:
            self._end(error)
            if not isinstance(error, Exception):
                raise
            return
        self._flush()
        if self._wire.is_moving:
            self._rest_if_idle()

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends."""
        self._end(self._wire.lost(exc or "the connection was closed"))

    # What is our own.

    async def _open(self) -> None:
        sock = None
        try:
            sock = await open_socket(self._address)
            self._socket = sock
            await self._loop.create_connection(lambda: self, sock=sock, **_tls(self._address))
            self._loop.call_later(GREETING_TIMEOUT + SWEEP, self._check)
        except BaseException as error:
            if sock is not None:
                sock.close()
            if isinstance(error, OSError):
                self._end(self._address.explain(error))
            else:
                self._end(error)
            if not isinstance(error, Exception):
                raise

    def _flush_tick(self) -> None:
        self._is_flushing = False
        self._flush()

    def _flush(self) -> None:
        transport = self._transport
        # The handshake is written, and nothing is to come before the answer to it.
        if transport is not None and self._wire.output_parts:
            for part in self._wire.take_output():
                transport.write(part)

    def _sweep(self) -> None:
        if self._wire.is_idle or self._wire.over is not None:
            self._is_sweeping = False
            return
        self._loop.call_later(SWEEP, self._sweep)
        # What arrived in time is read first: the timer comes before it in a loop that was busy.
        self._loop.call_soon(self._check)

    def _check(self) -> None:
        if self._wire.over is not None:
            return
        try:
            self._wire.check(monotonic())
        except Exception as error:
            self._end(error)
            return
        self._flush()
        self._rest_if_idle()

    def _rest_if_idle(self) -> None:
        wire = self._wire
        if not wire.is_moving or not wire.is_idle or wire.over is not None:
            return
        transport = self._transport
        if transport is None:
            self._opening.cancel()
            return
        if transport.can_write_eof() and not transport.is_closing():
            transport.write_eof()
            self._loop.call_later(PARTING_TIMEOUT, self._end, broken("it is over"))
        else:
            self._end(broken("it is over"))

    def _end(self, error: BaseException) -> None:
        self._wire.end(error)
        if self._transport is not None:
            self._transport.abort()
        if not self._closed.done():
            self._closed.set_result(None)


def _tls(address: Address) -> dict[str, Any]:
    context = address.context
    if context is None:
        return {}
    return {
        "ssl": context,
        "server_hostname": address.host,
        "ssl_handshake_timeout": CONNECT_TIMEOUT,
    }


async def open_socket(address: Address) -> socket.socket:
    """A connection to one of the address's hosts. Raises OSError."""
    loop = asyncio.get_running_loop()
    if address.socket_path is not None:
        local = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            local.setblocking(False)
            await asyncio.wait_for(loop.sock_connect(local, address.socket_path), CONNECT_TIMEOUT)
            return local
        except asyncio.TimeoutError:
            local.close()
            raise TimeoutError("timed out") from None
        except BaseException:
            local.close()
            raise
    try:
        infos: list[Any] = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST
        )
    except socket.gaierror:
        infos = list(
            await asyncio.wait_for(
                loop.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM),
                CONNECT_TIMEOUT,
            )
        )
    failure: OSError | None = None
    for (family, kind, protocol, _, name), within in turned(infos):
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setblocking(False)
            prepare(sock)
            await asyncio.wait_for(loop.sock_connect(sock, name), within)
            return sock
        except (OSError, asyncio.TimeoutError) as error:
            sock.close()
            failure = error if isinstance(error, OSError) else TimeoutError("timed out")
        except BaseException:
            sock.close()
            raise
    raise failure or OSError("its name has no address")


async def call(address: Address, exchange: Exchange, deadline: float) -> AsyncIterator[bytes]:
    """The messages that come back. Raises the call's error; "deadline_exceeded" at the deadline.

    Between two messages the reader may take its time: each has the time that the first had.
    """
    within = deadline - monotonic()
    try:
        sock = await asyncio.wait_for(open_socket(address), within)
        reader, writer = await asyncio.wait_for(
            asyncio.open_connection(sock=sock, **_tls(address)), within
        )
    except asyncio.TimeoutError:
        raise timed_out() from None
    except OSError as error:
        raise address.explain(error) from error
    try:
        writer.write(exchange.request)
        while not exchange.done:
            try:
                chunk = await asyncio.wait_for(reader.read(256 * 1024), within)
            except asyncio.TimeoutError:
                raise timed_out() from None
            except OSError as error:
                raise broken(error) from error
            for message in exchange.feed(chunk) if chunk else exchange.feed_end():
                yield message
    finally:
        writer.close()
