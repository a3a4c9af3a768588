"""What was met last, up to a size."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Value = TypeVar("Value")


class Recent(Generic[Value]):
    """Values by name, those set last, up to `most` by their sizes. Safe for threads and forks."""

    def __init__(self, most: float, size_of: Callable[[Value], float]) -> None:
        self._most = most
        self._size_of = size_of
        self._begin()

    def get(self, name: Hashable) -> Value | None:
        """The value of that name, if it is still there."""
        return self._values.get(name)

    def set(self, name: Hashable, value: Value) -> None:
        """Keeps the value, and lets go of those that were set the longest ago."""
        # A lock may have been held by another thread when the process was forked.
        if self._pid != os.getpid():
            self._begin()
        with self._lock:
            self._forget(name)
            self._values[name] = value
            self._size += self._size_of(value)
            while self._size > self._most:
                self._forget(next(iter(self._values)))

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._values: dict[Hashable, Value] = {}
        self._size = 0.0

    def _forget(self, name: Hashable) -> None:
        value = self._values.pop(name, None)
        if value is not None:
            self._size -= self._size_of(value)
