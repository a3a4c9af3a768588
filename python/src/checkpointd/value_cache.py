"""Remembers the values put last: of one that has most of the one before, only the rest is sent."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from .kept_bytes import KeptBytes, kept_bytes
from .messages import PutRequest

# From how many bytes on it pays to let Postgres read the value before instead of sending it again.
LEAST_BYTES = 16 * 1024
# From how many kept bytes on: fewer are not worth the search in Postgres.
LEAST_KEPT = LEAST_BYTES // 2
# A value may take no more of the room than this part, so that it does not drive out all others.
LARGEST_PART = 8

Key = tuple[str, str, str]


class Large(NamedTuple):
    """A value of a put that is worth to be remembered, and where it is in put.blobs."""

    blob_index: int
    key: Key
    version: str
    data: bytes


class Extended(NamedTuple):
    """What a value has of a remembered one."""

    value: Large
    version: str
    transaction_id: str
    kept: KeptBytes

    @property
    def rest(self) -> bytes:
        """What is to be sent of it."""
        data, (_, head, length) = self.value.data, self.kept
        return data[:head] + data[head + length :] if head else data[length:]


class _Stored(NamedTuple):
    version: str
    transaction_id: str
    data: bytes


class ValueCache:
    """The values of each channel that were put last, the most recent ones up to a number of bytes.

    Safe for threads. Two that put to one channel at once only cost each other the saving.
    """

    def __init__(self, most_bytes: int) -> None:
        """Zero remembers nothing."""
        self._most_bytes = most_bytes
        self._bytes = 0
        # The first is the one that was put the longest ago.
        self._values: dict[Key, _Stored] = {}
        self._lock = threading.Lock()

    def worthwhile(self, put: PutRequest, large: Mapping[int, bytes]) -> list[Large]:
        """The large values of a put that are extended, or that a later one could extend."""
        if put.lease_token:
            return []
        most = self._most_bytes // LARGEST_PART
        found = []
        for index, data in large.items():
            if len(data) <= most:
                blob = put.blobs[index]
                key = (put.thread_id, put.checkpoint_ns, blob.channel)
                found.append(Large(index, key, blob.version, data))
        return found

    def extend(self, values: Sequence[Large]) -> list[Extended]:
        """Those of the values that have enough of one that is remembered."""
        found = []
        for value in values:
            stored = self._values.get(value.key)
            if stored is None:
                continue
            kept = kept_bytes(stored.data, value.data)
            if kept.length >= LEAST_KEPT:
                found.append(Extended(value, stored.version, stored.transaction_id, kept))
        return found

    def remember(self, values: Sequence[Large], transaction_id: str) -> None:
        """To be called when the put that has them was stored by that transaction."""
        with self._lock:
            for value in values:
                self._forget(value.key)
                self._values[value.key] = _Stored(value.version, transaction_id, value.data)
                self._bytes += len(value.data)
            while self._bytes > self._most_bytes:
                self._forget(next(iter(self._values)))

    def forget(self, values: Sequence[Large]) -> None:
        """To be called when what is remembered of their channels turns out not to be stored."""
        with self._lock:
            for value in values:
                self._forget(value.key)

    def _forget(self, key: Key) -> None:
        stored = self._values.pop(key, None)
        if stored is not None:
            self._bytes -= len(stored.data)
