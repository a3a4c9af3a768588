"""What proves to the service who calls: headers that stay, and a token that is asked for anew."""

from __future__ import annotations

import asyncio
import inspect
import re
import threading
from collections.abc import Awaitable, Callable, Mapping
from time import monotonic
from typing import Any

from .errors import CheckpointdError, NoToken, timed_out

Token = str | Callable[[], str | Awaitable[str]]
Headers = tuple[tuple[str, str], ...]

# For so long the next token is waited for before the one that there is is used on, since it may
# have a minute or an hour left.
NEXT_TIMEOUT = 5.0
_OF_CONNECTION = frozenset(
    ("connection", "host", "keep-alive", "proxy-connection", "te", "transfer-encoding", "upgrade")
)
_WANTED = "text of the letters that a header can have, without spaces and line breaks"


class Credential:
    """The headers of every call of a client. A function for the token is asked by the first."""

    def __init__(self, headers: Mapping[str, str] | None, token: Token | None) -> None:
        """Raises ValueError or TypeError, naming what cannot be sent and never its value."""
        given = dict(headers or {})
        if token is not None and any(name.lower() == "authorization" for name in given):
            raise ValueError('give either a token or headers with "authorization", not both')
        self._fixed = _checked(given)
        self._give: Callable[[], Any] | None = None
        if isinstance(token, str):
            if not _is_token(token):
                raise ValueError(f"token must be {_WANTED}")
            self._fixed = self._with(token)
        elif callable(token):
            self._give = token
        elif token is not None:
            raise TypeError(f"token must be a string or a function, not {type(token).__name__}")
        self._kept: Headers | None = None
        self._turn = 0
        self.after_fork()

    def after_fork(self) -> None:
        """Forgets who was asking."""
        self._lock = threading.Lock()
        self._asking_lock = threading.Lock()
        self._asked = 0
        self._failure: NoToken | None = None
        self._tasks: dict[asyncio.AbstractEventLoop, asyncio.Task[Headers]] = {}

    @property
    def turn(self) -> int:
        """Which token is used now: to be noted by each try, and by what is opened with it."""
        return self._turn

    @staticmethod
    def is_refused(error: CheckpointdError) -> bool:
        """Whether the error says that the token is no good."""
        return error.code == "unauthenticated" and not isinstance(error, NoToken)

    def renew(self, turn: int) -> bool:
        """Has the token asked for anew that was used in that turn; whether there can be another."""
        if self._give is None:
            return False
        with self._lock:
            if turn == self._turn:
                self._turn += 1
                self._kept = None
        return True

    # Blocking.

    def headers(self, deadline: float) -> Headers:
        """The headers for what begins. Raises NoToken if the function does, or gives no token."""
        if self._give is None:
            return self._fixed
        kept = self._kept
        if kept is not None:
            return kept
        asked = self._asked
        if not self._asking_lock.acquire(timeout=max(0.0, deadline - monotonic())):
            raise timed_out()
        try:
            kept = self._kept
            if kept is not None:
                return kept
            # Of those who waited nobody asks once more.
            if self._failure is not None and self._asked != asked:
                raise NoToken(self._failure.code, self._failure.message) from self._failure
            return self._keep(self._ask())
        finally:
            self._asking_lock.release()

    def next_headers(self, deadline: float) -> Headers:
        """As `headers`, for what follows something that the service wanted to end in peace.

        It may have because the token ends. The old one is used on if there is no next one.
        """
        old = self._kept
        if old is None:
            return self.headers(deadline)
        with self._asking_lock:
            if self._kept is not old and self._kept is not None:
                return self._kept
            try:
                return self._next(self._ask())
            except NoToken:
                return old

    def _ask(self) -> Headers:
        assert self._give is not None
        self._asked += 1
        self._failure = None
        try:
            if inspect.iscoroutinefunction(self._give):
                raise _asynchronous()
            try:
                token = self._give()
            except Exception as error:
                raise _failed(error) from error
            if inspect.isawaitable(token):
                if inspect.iscoroutine(token):
                    token.close()
                raise _asynchronous()
            return self._with(token)
        except NoToken as failure:
            self._failure = failure
            raise

    # On an event loop.

    async def aheaders(self, deadline: float) -> Headers:
        """As `headers`. A function that is not asynchronous is called in a thread of its own."""
        if self._give is None:
            return self._fixed
        kept = self._kept
        if kept is not None:
            return kept
        try:
            return await asyncio.wait_for(self._asking(self._keep), deadline - monotonic())
        except asyncio.TimeoutError:
            raise timed_out() from None

    async def anext_headers(self, deadline: float) -> Headers:
        """As `next_headers`."""
        old = self._kept
        if old is None:
            return await self.aheaders(deadline)
        within = min(NEXT_TIMEOUT, deadline - monotonic())
        try:
            return await asyncio.wait_for(self._asking(self._next), within)
        except (NoToken, asyncio.TimeoutError):
            return old

    def _asking(self, keep: Callable[[Headers], Headers]) -> asyncio.Future[Headers]:
        """Shared by all who ask at the same time, and not ended by one who gives up."""
        loop = asyncio.get_running_loop()
        task = self._tasks.get(loop)
        if task is None:

            async def ask() -> Headers:
                try:
                    return keep(await self._aask())
                finally:
                    self._tasks.pop(loop, None)

            task = self._tasks[loop] = loop.create_task(ask())
            # It may be that nobody looks any more.
            task.add_done_callback(lambda it: it.cancelled() or it.exception())
        return asyncio.shield(task)

    async def _aask(self) -> Headers:
        assert self._give is not None
        try:
            if inspect.iscoroutinefunction(self._give):
                token = await self._give()
            else:
                token = await asyncio.to_thread(self._give)
                if inspect.isawaitable(token):
                    token = await token
        except Exception as error:
            raise _failed(error) from error
        return self._with(token)

    # Both.

    def _keep(self, headers: Headers) -> Headers:
        self._kept = headers
        return headers

    def _next(self, headers: Headers) -> Headers:
        with self._lock:
            self._turn += 1
            self._kept = headers
        return headers

    def _with(self, token: object) -> Headers:
        if not _is_token(token):
            raise NoToken("unauthenticated", f"the token function must give {_WANTED}")
        return (*self._fixed, ("authorization", f"Bearer {token}"))


def _is_token(token: object) -> bool:
    return isinstance(token, str) and re.fullmatch(r"[\x21-\x7e]+", token) is not None


def _failed(error: Exception) -> NoToken:
    why = str(error) or type(error).__name__
    return NoToken("unauthenticated", f"the token function failed: {why}")


def _asynchronous() -> NoToken:
    return NoToken(
        "unauthenticated",
        "the token function is asynchronous, and only the asynchronous methods can wait for it",
    )


def _checked(given: dict[str, str]) -> Headers:
    for name, value in given.items():
        if not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name):
            raise ValueError(f"headers: {name!r} is no name of a header")
        if name.lower() in _OF_CONNECTION:
            raise ValueError(f'headers: "{name}" belongs to the connection and cannot be set')
        # Without the value, which is a secret more often than not.
        if not isinstance(value, str) or not re.fullmatch(r"[\t\x20-\x7e\x80-\xff]*", value):
            raise ValueError(
                f'headers: the value of "{name}" must be text without line breaks and control '
                "characters"
            )
    return tuple(given.items())
