"""Which bytes of a value are those of the one before it: the rule of PutExtendingRequest."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple


class KeptBytes(NamedTuple):
    """A value is its first `head` bytes, `length` stored ones from `offset` on, and the rest."""

    offset: int
    head: int
    length: int


# The bytes that are looked for: more than what stands between the contents of two messages, which
# is everywhere.
ANCHOR_BYTES = 512
# How many of them the search looks for, and how many such places it compares with the rest: where
# few different bytes repeat, a search for all takes long.
SEARCHED_BYTES = 32
MOST_COMPARISONS = 4096
# How far the length before a msgpack array moves what follows: 1, 3 or 5 bytes become as many.
HEADER_MOVES = (0, 2, 4, -2, -4)
# Places that are tried. Text that repeats itself has the anchor in many.
MOST_PLACES = 8


def kept_bytes(stored: bytes, value: bytes) -> KeptBytes:
    """The longest run of bytes that it finds in both, as it costs next to nothing.

    Either of their beginnings, or around the middle of the stored one, wherever that is in the
    value. A list in msgpack has its length before it, so that one that grows changes at its
    beginning; a window of the last messages moves as a whole.
    """
    enough = len(stored) / 2
    # Slices of it are no copies.
    view = memoryview(stored)
    kept = KeptBytes(0, 0, _equal_after(view, value, 0, 0))
    if kept.length >= enough:
        return kept
    for places, (at, to) in enumerate(_anchor_places(view, value), 1):
        before = _equal_before(view, value, at, to)
        length = before + _equal_after(view, value, at, to)
        if length > kept.length:
            kept = KeptBytes(at - before, to - before, length)
        if length >= enough or places == MOST_PLACES:
            break
    return kept


def _anchor_places(stored: memoryview, value: bytes) -> Iterator[tuple[int, int]]:
    """Where the anchor is in both, the likely places first."""
    at = len(stored) // 2
    anchor = stored[at : at + ANCHOR_BYTES]
    for moved in (*HEADER_MOVES, len(value) - len(stored)):
        if at + moved >= 0 and value.startswith(anchor, at + moved):
            yield at, at + moved
    searched = bytes(anchor[:SEARCHED_BYTES])
    to = -1
    for _ in range(MOST_COMPARISONS):
        to = value.find(searched, to + 1)
        if to < 0:
            return
        if value.startswith(anchor, to):
            yield at, to


def _equal_after(stored: memoryview, value: bytes, at: int, to: int) -> int:
    """How many bytes are equal from there on: found by halves, as a comparison is memcmp."""
    equal = 0
    unknown = min(len(stored) - at, len(value) - to)
    # All of it, for the most part.
    half = unknown
    while unknown > 0:
        if value.startswith(stored[at + equal : at + equal + half], to + equal):
            equal += half
            unknown -= half
        else:
            unknown = half - 1
        half = (unknown + 1) // 2
    return equal


def _equal_before(stored: memoryview, value: bytes, at: int, to: int) -> int:
    """How many bytes are equal up to there, without it."""
    equal = 0
    unknown = min(at, to)
    half = unknown
    while unknown > 0:
        if value.startswith(stored[at - equal - half : at - equal], to - equal - half):
            equal += half
            unknown -= half
        else:
            unknown = half - 1
        half = (unknown + 1) // 2
    return equal
