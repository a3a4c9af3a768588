"""The service's calls: on sessions where there are any, else as calls of their own.

All of a process share one session (and one more for what is large): threads a blocking one, each
event loop one of its own.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from time import monotonic
from typing import Any, Generic, TypeVar

from google.protobuf.message import Message

from . import async_session, blocking_session, call_span, messages
from .address import Address
from .async_session import AsyncSession
from .blocking_session import BlockingSession
from .call_span import CallSpan
from .credential import Credential, Headers
from .errors import CheckpointdError, NotCarried, closed, timed_out
from .http1 import Exchange
from .messages import OpenSessionRequest, OpenSessionResponse
from .retry import Retry, Tries
from .value_cache import ValueCache

# Larger requests, and the pages of lists, have a session of their own, so that small operations
# need not wait behind them.
SMALL_BYTES = 256 * 1024
_WRITES = frozenset(
    (
        "put",
        "put_extending",
        "put_extending.offset",
        "put_writes",
        "delete_thread",
        "copy_thread",
        "delete_runs",
    )
)

# By the names of the operations the calls that are the same.
_METHODS = {
    "get_tuple": "CheckpointService/GetTuple",
    "put": "CheckpointService/Put",
    "put_writes": "CheckpointService/PutWrites",
    "delete_thread": "CheckpointService/DeleteThread",
    "get_thread": "ThreadService/GetThread",
    "claim_threads": "ThreadService/ClaimThreads",
    "renew_claim": "ThreadService/RenewClaim",
    "release_claim": "ThreadService/ReleaseClaim",
    "copy_thread": "ThreadService/CopyThread",
    "delete_runs": "ThreadService/DeleteRuns",
}
_STREAMS = {
    "List": "CheckpointService/List",
    "ListThreads": "ThreadService/ListThreads",
    "GetChannelHistory": "ThreadService/GetChannelHistory",
    "PruneThreads": "ThreadService/PruneThreads",
}

# Held while a child of a fork begins anew; by nobody in a child that was just made.
_forking = threading.Lock()


def _forked() -> None:
    global _forking
    _forking = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)

Each = TypeVar("Each", AsyncSession, BlockingSession)


class _Place(Generic[Each]):
    """Holds one session at a time, and none for a while after there was none."""

    __slots__ = ("_refusals", "session", "turn")

    def __init__(self) -> None:
        self.session: Each | None = None
        # Of the token that it was opened with.
        self.turn = 0
        # How often in a row there was no session.
        self._refusals = 0

    def is_at_rest(self) -> bool:
        """Whether there are no sessions, as it turned out a moment ago."""
        found_none = self.session.found_none if self.session is not None else None
        if found_none is None:
            self._refusals = 0
            return False
        self._refusals = max(1, self._refusals)
        found_none_at, is_passing = found_none
        # It may have been a balancer without a server behind it for a moment.
        longest = 4.0 if is_passing else 600.0
        if monotonic() < found_none_at + min(longest, 2.0 ** (self._refusals - 1)):
            return True
        self._refusals += 1
        return False

    def is_behind(self, turn: int) -> bool:
        """Whether the session was opened with a token that is used no more."""
        return self.session is not None and self.turn != turn

    def leave(self) -> None:
        """Has what comes next go to another session."""
        session, self.session = self.session, None
        if session is not None:
            session.leave()


class _Loop:
    """What an event loop has: its sessions, closed when the loop ends."""

    def __init__(self) -> None:
        self.small: _Place[AsyncSession] = _Place()
        self.large: _Place[AsyncSession] = _Place()
        self._guard = self._until_the_end()

    async def watch(self) -> None:
        """Has the end of `asyncio.run`, which ends asynchronous generators, end the sessions."""
        await self._guard.__anext__()

    async def _until_the_end(self) -> AsyncIterator[None]:
        try:
            yield
        finally:
            for session in self.sessions():
                session.abort()

    def sessions(self) -> list[AsyncSession]:
        """Those that are open."""
        return [it.session for it in (self.small, self.large) if it.session is not None]


class Client:
    """Makes the calls of a saver and of all its copies in this process, and in its children."""

    def __init__(
        self,
        address: Address,
        credential: Credential,
        timeout: float,
        retry: Retry,
        most_bytes: int,
        cache_bytes: int,
    ) -> None:
        self._address = address
        self._credential = credential
        self._timeout = timeout
        self._retry = retry
        self._most_bytes = most_bytes
        self._cache_bytes = cache_bytes
        self._is_closed = False
        self._begin()

    @property
    def timeout(self) -> float:
        """How long a call may take."""
        return self._timeout

    @property
    def values(self) -> ValueCache:
        """The values that were put last."""
        if self._pid != os.getpid():
            self._after_fork()
        return self._values

    def _begin(self) -> None:
        self._loops: dict[asyncio.AbstractEventLoop, _Loop] = {}
        self._small: _Place[BlockingSession] = _Place()
        self._large: _Place[BlockingSession] = _Place()
        self._lock = threading.Lock()
        self._values = ValueCache(self._cache_bytes)
        # Also when the interpreter ends: nobody needs to close a saver.
        weakref.finalize(self, _drop, self._small, self._large)
        # At last: who sees it, uses what is above.
        self._pid = os.getpid()

    def _after_fork(self) -> None:
        with _forking:
            if self._pid == os.getpid():
                return
            sessions = [self._small.session, self._large.session]
            loops = self._loops
            self._credential.after_fork()
            self._begin()
        # The parent's connections stay the parent's: only the copies are closed.
        for session in sessions:
            if session is not None:
                session.drop()
        for loop in loops.values():
            for each in loop.sessions():
                each.drop()

    # Blocking.

    def call(
        self, name: str, request: OpenSessionRequest, idempotent: bool = True
    ) -> OpenSessionResponse:
        """Makes one call, repeated while the service cannot be reached. Raises CheckpointdError.

        One that is not idempotent is repeated only where the service certainly did not begin it.
        """
        timeout = self._timeout
        deadline = monotonic() + timeout
        tries: Tries | None = None
        is_renewed = False
        data = request.SerializeToString()
        while True:
            turn = self._credential.turn
            try:
                return self._once(name, request, data, deadline, timeout)
            except CheckpointdError as error:
                if not is_renewed and not self._is_closed and self._renew(error, turn):
                    is_renewed = True
                    # Refused before it was begun, but for those whose credential ended meanwhile.
                    if not error.is_of_begun:
                        continue
                if self._is_closed or not (idempotent or error.is_not_begun):
                    raise
                tries = tries or Tries(self._retry, timeout, deadline)
                pause = tries.pause_after(error)
            time.sleep(pause)

    def _once(
        self, name: str, request: OpenSessionRequest, data: bytes, deadline: float, timeout: float
    ) -> OpenSessionResponse:
        span = self._span(name, request)
        if span is None:
            return self._carry(name, request, data, (), deadline, timeout)
        with span:
            data += span.fields
            return self._carry(name, request, data, span.headers, deadline, timeout)

    def _carry(
        self,
        name: str,
        request: OpenSessionRequest,
        data: bytes,
        more: Headers,
        deadline: float,
        timeout: float,
    ) -> OpenSessionResponse:
        if self._pid != os.getpid():
            self._after_fork()
        if self._is_closed:
            raise closed()
        try:
            session = self._session(name, data, deadline)
            if session is not None:
                return session.run(data, name, deadline, timeout)
        except NotCarried:
            pass
        method, body, answer = _unary(name, request)
        headers = self._credential.headers(deadline) + more
        exchange = self._exchange(method, body, headers, deadline)
        for message in blocking_session.call(self._address, exchange, deadline):
            getattr(answer, name).MergeFromString(message)
        return answer

    def _session(self, name: str, data: bytes, deadline: float) -> BlockingSession | None:
        place = self._large if _is_large(name, data) else self._small
        session = place.session
        if session is not None and not session.is_leaving:
            session.look()
            if not session.is_leaving:
                return session
        # Before the lock, since it may take its time.
        if session is not None and session.was_asked_to_leave:
            headers = self._credential.next_headers(deadline)
        else:
            headers = self._credential.headers(deadline)
        turn = self._credential.turn
        if not self._lock.acquire(timeout=max(0.0, deadline - monotonic())):
            raise timed_out()
        try:
            session = place.session
            if session is None or session.is_leaving:
                if place.is_at_rest():
                    return None
                session = BlockingSession(self._address, headers, self._most_bytes, deadline)
                place.session = session
                place.turn = turn
                if self._is_closed:
                    session.leave()
            return session
        finally:
            self._lock.release()

    def stream(
        self,
        name: str,
        request: Message,
        kind: type[Any],
        took: Callable[[Any], None],
        begins: Callable[[], None] | None = None,
        opens: Callable[[], None] | None = None,
    ) -> Iterator[Any]:
        """The messages of a stream, opened again where it broke off.

        `took` is told of each message, and has to see to it that the request goes on after it then;
        or `begins`, which is called before each opening, that all begins anew. `opens` is only told
        of each opening.
        """
        tries: Tries | None = None
        is_renewed = False
        while True:
            if self._is_closed:
                raise closed()
            timeout = self._timeout
            if tries is None or begins is None:
                deadline = monotonic() + timeout
            if begins is not None:
                begins()
            if opens is not None:
                opens()
            turn = self._credential.turn
            headers = self._credential.headers(deadline)
            body = request.SerializeToString()
            span = call_span.begin(_STREAMS[name], request, self._address)
            headers += span.headers if span is not None else ()
            exchange = self._exchange(_STREAMS[name], body, headers, None)
            parts = blocking_session.call(self._address, exchange, deadline)
            try:
                while True:
                    # Only around our own reading: a reader's own errors are none of ours.
                    try:
                        part = next(parts, None)
                    except CheckpointdError as error:
                        if span is not None:
                            span.end(error)
                        if not is_renewed and self._renew(error, turn):
                            is_renewed, pause = True, 0.0
                            break
                        tries = tries or Tries(self._retry, timeout, deadline)
                        pause = tries.pause_after(error)
                        break
                    if part is None:
                        return
                    message = kind.FromString(part)
                    took(message)
                    is_renewed = False
                    if begins is None:
                        tries = None
                    yield message
            finally:
                parts.close()  # type: ignore[attr-defined]
                if span is not None:
                    span.end()
            time.sleep(pause)

    # On an event loop.

    async def acall(
        self, name: str, request: OpenSessionRequest, idempotent: bool = True
    ) -> OpenSessionResponse:
        """As `call`."""
        timeout = self._timeout
        deadline = monotonic() + timeout
        tries: Tries | None = None
        is_renewed = False
        data = request.SerializeToString()
        while True:
            turn = self._credential.turn
            try:
                return await self._aonce(name, request, data, deadline, timeout)
            except CheckpointdError as error:
                if not is_renewed and not self._is_closed and self._arenew(error, turn):
                    is_renewed = True
                    # Refused before it was begun, but for those whose credential ended meanwhile.
                    if not error.is_of_begun:
                        continue
                if self._is_closed or not (idempotent or error.is_not_begun):
                    raise
                tries = tries or Tries(self._retry, timeout, deadline)
                pause = tries.pause_after(error)
            await asyncio.sleep(pause)

    def post(self, name: str, request: OpenSessionRequest) -> None:
        """Has a write carried out that nobody waits for any more, if there is a session."""
        data = request.SerializeToString()
        loop = self._loops.get(asyncio.get_running_loop())
        if loop is None:
            return
        session = (loop.large if _is_large(name, data) else loop.small).session
        if session is not None and not session.is_leaving:
            session.post(data, name, monotonic() + self._timeout, self._timeout)

    async def _aonce(
        self, name: str, request: OpenSessionRequest, data: bytes, deadline: float, timeout: float
    ) -> OpenSessionResponse:
        span = self._span(name, request)
        if span is None:
            return await self._acarry(name, request, data, (), deadline, timeout)
        with span:
            data += span.fields
            return await self._acarry(name, request, data, span.headers, deadline, timeout)

    async def _acarry(
        self,
        name: str,
        request: OpenSessionRequest,
        data: bytes,
        more: Headers,
        deadline: float,
        timeout: float,
    ) -> OpenSessionResponse:
        if self._pid != os.getpid():
            self._after_fork()
        if self._is_closed:
            raise closed()
        try:
            session = await self._asession(name, data, deadline)
            if session is not None:
                return await session.run(data, name, deadline, timeout, name in _WRITES)
        except NotCarried:
            pass
        method, body, answer = _unary(name, request)
        headers = await self._credential.aheaders(deadline) + more
        exchange = self._exchange(method, body, headers, deadline)
        async for message in async_session.call(self._address, exchange, deadline):
            getattr(answer, name).MergeFromString(message)
        return answer

    async def _asession(self, name: str, data: bytes, deadline: float) -> AsyncSession | None:
        running = asyncio.get_running_loop()
        loop = self._loops.get(running)
        if loop is None:
            loop = self._loops[running] = _Loop()
            for other in list(self._loops):
                gone = self._loops.pop(other, None) if other.is_closed() else None
                for session in gone.sessions() if gone is not None else ():
                    session.drop()
            await loop.watch()
        place = loop.large if _is_large(name, data) else loop.small
        current = place.session
        if current is not None and not current.is_leaving:
            return current
        if current is not None and current.was_asked_to_leave:
            headers = await self._credential.anext_headers(deadline)
        else:
            headers = await self._credential.aheaders(deadline)
        if place.session is not current:
            # Others were here meanwhile.
            return await self._asession(name, data, deadline)
        if place.is_at_rest():
            return None
        place.session = AsyncSession(self._address, headers, self._most_bytes)
        place.turn = self._credential.turn
        return place.session

    async def astream(
        self,
        name: str,
        request: Message,
        kind: type[Any],
        took: Callable[[Any], None],
        begins: Callable[[], None] | None = None,
        opens: Callable[[], None] | None = None,
    ) -> AsyncIterator[Any]:
        """As `stream`."""
        tries: Tries | None = None
        is_renewed = False
        while True:
            if self._is_closed:
                raise closed()
            timeout = self._timeout
            if tries is None or begins is None:
                deadline = monotonic() + timeout
            if begins is not None:
                begins()
            if opens is not None:
                opens()
            turn = self._credential.turn
            headers = await self._credential.aheaders(deadline)
            body = request.SerializeToString()
            span = call_span.begin(_STREAMS[name], request, self._address)
            headers += span.headers if span is not None else ()
            exchange = self._exchange(_STREAMS[name], body, headers, None)
            parts = async_session.call(self._address, exchange, deadline)
            try:
                while True:
                    try:
                        part = await anext(parts, None)
                    except CheckpointdError as error:
                        if span is not None:
                            span.end(error)
                        if not is_renewed and self._arenew(error, turn):
                            is_renewed, pause = True, 0.0
                            break
                        tries = tries or Tries(self._retry, timeout, deadline)
                        pause = tries.pause_after(error)
                        break
                    if part is None:
                        return
                    message = kind.FromString(part)
                    took(message)
                    is_renewed = False
                    if begins is None:
                        tries = None
                    yield message
            finally:
                if span is not None:
                    span.end()
                await parts.aclose()  # type: ignore[attr-defined]
            await asyncio.sleep(pause)

    # The end.

    def close(self) -> None:
        """Fails new calls; those under way finish. Idempotent."""
        if self._pid != os.getpid():
            self._after_fork()
        self._is_closed = True
        for place in (self._small, self._large):
            if place.session is not None:
                place.session.leave()
        for running, loop in list(self._loops.items()):
            for session in loop.sessions():
                if running.is_closed():
                    session.drop()
                elif _is_current(running):
                    session.leave()
                else:
                    try:
                        running.call_soon_threadsafe(session.leave)
                    except RuntimeError:
                        session.drop()

    async def aclose(self) -> None:
        """As `close`, and waits for the calls that are under way in this event loop."""
        self.close()
        loop = self._loops.pop(asyncio.get_running_loop(), None)
        for session in loop.sessions() if loop is not None else ():
            await session.wait_closed()

    def _renew(self, error: CheckpointdError, turn: int) -> bool:
        """Whether the call may be made once more, with another token."""
        return self._renews(error, turn, (self._small, self._large))

    def _arenew(self, error: CheckpointdError, turn: int) -> bool:
        """As `_renew`, on an event loop."""
        loop = self._loops.get(asyncio.get_running_loop())
        return self._renews(error, turn, () if loop is None else (loop.small, loop.large))

    def _renews(self, error: CheckpointdError, turn: int, places: tuple[_Place[Any], ...]) -> bool:
        credential = self._credential
        if not credential.is_refused(error):
            return False
        # Where another loop has had another token already, it was only the session that was old.
        is_behind = any(place.is_behind(credential.turn) for place in places)
        if not credential.renew(turn if not is_behind else -1):
            return False
        for place in places:
            if place.is_behind(credential.turn):
                place.leave()
        return True

    def _span(self, name: str, request: OpenSessionRequest) -> CallSpan | None:
        # A put of what is new of its values is the saver's put.
        own = "put" if name.startswith("put_extending") else name
        method = _METHODS.get(own, "SessionService/ListPage")
        return call_span.begin(method, request, self._address)

    def _exchange(
        self, method: str, body: bytes, headers: Headers, deadline: float | None
    ) -> Exchange:
        if len(body) > self._most_bytes:
            raise CheckpointdError(
                "resource_exhausted",
                f"the request has {len(body)} bytes, more than max_request_bytes allows "
                f"({self._most_bytes})",
                reason="TOO_LONG",
                limit=self._most_bytes,
            )
        timeout = None if deadline is None else deadline - monotonic()
        return Exchange(
            self._address,
            method,
            body,
            headers,
            is_stream=method in _STREAMS.values(),
            timeout=timeout,
        )


def _drop(*places: _Place[BlockingSession]) -> None:
    for place in places:
        if place.session is not None:
            place.session.drop()


def _is_large(name: str, data: bytes) -> bool:
    return len(data) > SMALL_BYTES or name == "list_page"


def _unary(name: str, request: OpenSessionRequest) -> tuple[str, bytes, OpenSessionResponse]:
    method = _METHODS.get(name)
    if method is None:
        raise NotCarried(f"no call of its own: only sessions have {name}")
    answer = messages.OpenSessionResponse()
    getattr(answer, name).SetInParent()
    return method, getattr(request, name).SerializeToString(), answer


def _is_current(loop: asyncio.AbstractEventLoop) -> bool:
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False
