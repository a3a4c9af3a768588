"""Which failures are worth another try, and how long to wait before it."""

from __future__ import annotations

import random
from dataclasses import dataclass
from time import monotonic

from .errors import CheckpointdError


@dataclass(frozen=True)
class Retry:
    """How calls that found no server are repeated, until their deadline.

    The pause before try n+1 is random between 0 and ``initial_delay * 2**(n-1)``, at most
    ``max_delay``, but no shorter than the service asks for with its refusal.

    Attributes:
        attempts: Tries in all, the first included: 1 never repeats. None: as many as the deadline
            allows.
        initial_delay: The longest pause before the second try, in seconds.
        max_delay: The longest pause before any try, in seconds.
    """

    attempts: int | None = None
    initial_delay: float = 0.1
    max_delay: float = 2.0

    def __post_init__(self) -> None:
        """Raises ValueError naming what is not allowed."""
        if self.attempts is not None and self.attempts < 1:
            raise ValueError(f"retry.attempts must be a whole number from 1, not {self.attempts!r}")
        for name in ("initial_delay", "max_delay"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"retry.{name} must be a number of seconds from 0")


class Tries:
    """The tries of one call."""

    def __init__(self, retry: Retry, timeout: float, deadline: float) -> None:
        self._retry = retry
        self._timeout = timeout
        self._deadline = deadline
        self._made = 0
        self._failure: CheckpointdError | None = None

    def pause_after(self, error: CheckpointdError) -> float:
        """How long to wait before another try. Raises what the call fails with if there is none."""
        self._made += 1
        # A try that the deadline cut says less than the one before it.
        is_cut = error.code == "deadline_exceeded" and monotonic() >= self._deadline - 0.001
        failure = self._failure if is_cut and self._failure is not None else error
        self._failure = failure
        retry = self._retry
        if failure.is_retryable and not (retry.attempts and self._made >= retry.attempts):
            # Full jitter: agents that lost the same server do not come back in step.
            longest = min(retry.max_delay, retry.initial_delay * 2.0 ** min(self._made - 1, 30))
            asked = failure.retry_delay or 0.0
            pause = random.random() * longest + asked * (1 + random.random() / 4)
            if monotonic() + pause < self._deadline:
                return pause
        raise self._gave_up(failure) from error.__cause__

    def _gave_up(self, failure: CheckpointdError) -> CheckpointdError:
        if self._made > 1:
            seconds = monotonic() - self._deadline + self._timeout
            tries = f"gave up after {self._made} tries in {seconds:.1f} s"
            failure.args = (f"{failure.message}; {tries}",)
        return failure
