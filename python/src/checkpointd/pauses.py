"""Which threads recovery lets alone for a while."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

MOST = 3600.0


class Pauses:
    """Pauses of which the first of each thread is `first` seconds, and none longer than an hour."""

    def __init__(self, first: float, now: Callable[[], float] = monotonic) -> None:
        self._first = first
        self._now = now
        # By thread how long its pause is, and until when.
        self._pauses: dict[str, tuple[float, float]] = {}

    def pause(self, thread_id: str) -> None:
        """Lets a thread alone: twice as long as the time before, if there was one."""
        length = self._first
        if thread_id in self._pauses:
            length = min(self._pauses[thread_id][0] * 2, max(MOST, self._first))
        self._pauses[thread_id] = (length, self._now() + length)

    def forget(self, thread_id: str) -> None:
        """Begins anew with a thread."""
        self._pauses.pop(thread_id, None)

    def threads(self) -> list[str]:
        """Those that are let alone now."""
        now = self._now()
        paused = []
        for thread_id, (length, until) in list(self._pauses.items()):
            if until > now:
                paused.append(thread_id)
            elif until + length < now:
                # Nobody claimed it for as long as it was let alone: it went on elsewhere, or is
                # gone.
                del self._pauses[thread_id]
        return paused
