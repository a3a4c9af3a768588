"""The one error that calls of the service fail with, and what is behind it."""

from __future__ import annotations

import json
from base64 import b64decode
from copy import copy
from typing import TYPE_CHECKING, Any

from . import messages

if TYPE_CHECKING:
    from .messages import ErrorDetail

# The status codes of gRPC by number, in Connect's spelling.
_CODES = (
    "ok",
    "canceled",
    "unknown",
    "invalid_argument",
    "deadline_exceeded",
    "not_found",
    "already_exists",
    "permission_denied",
    "resource_exhausted",
    "failed_precondition",
    "aborted",
    "out_of_range",
    "unimplemented",
    "internal",
    "unavailable",
    "data_loss",
    "unauthenticated",
)

# What the service says only before it begins a call (ErrorDetail has the promise). What it says of
# its database or its queue may come of a later statement of a call that has stored something, and
# DRAINING and OVERLOADED of one that ran.
_SAID_BEFORE = frozenset(("SCHEMA_NEW", "NOT_READY", "LIMIT_REACHED"))


class CheckpointdError(Exception):
    """A call failed.

    Attributes:
        code: gRPC's status code as Connect spells it, for example ``"invalid_argument"`` or
            ``"unavailable"``.
        reason: What the service says about it for programs, for example ``"TOO_LONG"`` or
            ``"LEASE_LOST"`` (proto/checkpointd/v1/checkpoint.proto, ErrorDetail, lists them).
            Empty if the error is not the service's or has none.
        field: The request's field that is to blame, as a path. Empty where there is none.
        limit: The limit that was passed. Zero where the reason has none.
        retry_delay: After how many seconds another try is worth it, if the service says so.
        request_id: The name under which the service's log has the call, if it came that far.
        is_of_begun: Whether this is of a copy or a claim that was sent on a session, and may have
            been carried out.
        is_not_sent: Whether nothing of the call was sent: no connection was made, or the session
            ended before its turn came.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        reason: str = "",
        field: str = "",
        limit: int = 0,
        retry_delay: float | None = None,
        request_id: str = "",
    ) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.field = field
        self.limit = limit
        self.retry_delay = retry_delay
        self.request_id = request_id
        self.is_of_begun = False
        self.is_not_sent = False

    @property
    def message(self) -> str:
        """A sentence for people."""
        return str(self.args[0])

    def __str__(self) -> str:
        return f"[{self.code}] {self.message}"

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), self.code, self.message, self.__dict__))

    @property
    def is_retryable(self) -> bool:
        """Whether the same call may succeed when it is made again."""
        # The service says so itself, also of a statement that took too long. "canceled": not by us,
        # so by a server that goes away.
        return (
            self.retry_delay is not None
            or self.code in ("unavailable", "aborted", "canceled")
            or self.reason == "QUEUE_FULL"
        )

    @property
    def is_not_begun(self) -> bool:
        """Whether it is certain that the service did not begin the call.

        One that must not be carried out twice may be made again then. A connection that broke says
        nothing of the kind.
        """
        if self.is_of_begun:
            return False
        # A claim is told that its caller's leases are taken: waiting for one would keep it from
        # releasing one.
        return self.is_not_sent or (self.reason in _SAID_BEFORE and self.field != "leases")


def _rebuild(
    kind: type[CheckpointdError], code: str, message: str, state: dict[str, Any]
) -> CheckpointdError:
    error = kind(code, message)
    error.__dict__.update(state)
    return error


class NotTheService(CheckpointdError):
    """What answers at the address is something else, which another try would meet again."""

    @property
    def is_retryable(self) -> bool:
        """Never."""
        return False


class NoToken(NotTheService):
    """The function that gives the token gave none. Another try would ask it too often."""


class NotCarried(Exception):
    """A session does not carry this operation, or not now: make it as a call of its own."""


class NoSessions(NotCarried):
    """There are no sessions on the way to this server."""

    def __init__(self, message: str, is_passing: bool = False) -> None:
        """`is_passing`: there may be some in a moment, as a proxy without a server says."""
        super().__init__(message)
        self.is_passing = is_passing


def broken(why: object = "") -> CheckpointdError:
    """A connection ended under a call, of which nobody knows what came of it."""
    return CheckpointdError("unavailable", f"the session broke{why and f': {why}'}")


def one_more(error: BaseException) -> CheckpointdError | NotCarried:
    """The same error for one more who is told of it, or to be kept.

    Whoever raises an error adds its frames to it, and with them all that an agent is working on:
    shared or kept, it would hold on to that.
    """
    return copy(error) if isinstance(error, CheckpointdError | NotCarried) else broken(repr(error))


def not_sent(error: BaseException) -> CheckpointdError | NotCarried:
    """The same error for one of whose call nothing was sent."""
    own = one_more(error)
    if isinstance(own, CheckpointdError):
        own.is_not_sent = True
    return own


def timed_out() -> CheckpointdError:
    """No answer came by the deadline."""
    return CheckpointdError("deadline_exceeded", "the operation timed out")


def closed() -> CheckpointdError:
    """The saver was closed."""
    return CheckpointdError("failed_precondition", "this ConnectSaver was closed")


def from_detail(
    code: int | str, message: str, detail: ErrorDetail | None, request_id: str = ""
) -> CheckpointdError:
    """The error that the service tells with such a detail."""
    if isinstance(code, int):
        code = _CODES[code] if 0 < code < len(_CODES) else "unknown"
    if detail is None:
        return CheckpointdError(code, message, request_id=request_id)
    delay = detail.retry_delay
    return CheckpointdError(
        code,
        message,
        reason=detail.reason,
        field=detail.field,
        limit=detail.limit,
        retry_delay=delay.seconds + delay.nanos / 1e9 if detail.HasField("retry_delay") else None,
        request_id=request_id,
    )


def from_json(error: Any, request_id: str = "") -> CheckpointdError:
    """The error that the Connect protocol tells as JSON."""
    code = str(error.get("code") or "unknown")
    for part in error.get("details") or ():
        if part.get("type") == "checkpointd.v1.ErrorDetail":
            value = part.get("value", "")
            data = b64decode(value + "=" * (-len(value) % 4))
            detail = messages.ErrorDetail.FromString(data)
            return from_detail(code, str(error.get("message", "")), detail, request_id)
    return from_detail(code, str(error.get("message", "")), None, request_id)


def end_error(payload: bytes) -> CheckpointdError | None:
    """What the last message of a stream says: its error, if there is one."""
    error = json.loads(payload or b"{}").get("error")
    return from_json(error) if error else None
