"""Between plain Python values and ThreadService's messages: filters, times, durations, numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta, timezone
from difflib import get_close_matches
from typing import Any, Literal

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from typing_extensions import TypedDict

from . import messages
from .codec import metadata_json
from .messages import ThreadFilter as StoredFilter
from .names import GRAPH_KEY, check_name

ThreadState = Literal["completed", "pending", "interrupted", "failed"]
"""How a thread stands by what is stored of it.

``pending`` has work to run (it runs now, or whoever ran it stopped), ``interrupted`` waits for an
answer, ``failed`` has a task that ended with an error. A pause at interrupt_before or
interrupt_after cannot be told from a crash: pending.
"""

Seconds = timedelta | float
"""How long: a timedelta, or a number of seconds."""


class RecoverFilter(TypedDict, total=False):
    """Which threads. All conditions that are given must hold; None is none.

    Attributes:
        prefix: What the thread's id begins with.
        metadata: What the metadata contains, nested mappings by their keys.
        updated_after: Updated then or later. With a timezone, as all times.
        updated_before: Updated earlier.
    """

    prefix: str | None
    metadata: Mapping[str, Any] | None
    updated_after: datetime | None
    updated_before: datetime | None


class ThreadFilter(RecoverFilter, total=False):
    """Which threads. All conditions that are given must hold; None is none.

    Attributes:
        status: How they stand: one status or several.
        graph: The graph's name; ``""``: only threads that carry none.
        prefix: What the thread's id begins with.
        metadata: What the metadata contains, nested mappings by their keys.
        updated_after: Updated then or later. With a timezone, as all times.
        updated_before: Updated earlier.
    """

    status: ThreadState | Sequence[ThreadState] | None
    graph: str | None


_STATUSES: dict[ThreadState, int] = {
    "completed": messages.THREAD_STATUS_COMPLETED,
    "pending": messages.THREAD_STATUS_PENDING,
    "interrupted": messages.THREAD_STATUS_INTERRUPTED,
    "failed": messages.THREAD_STATUS_FAILED,
}
_STATES = {status: state for state, status in _STATUSES.items()}
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


def to_filter(stored: StoredFilter, given: Mapping[str, Any]) -> None:
    """Writes the conditions that are given into a message, which is absent if there are none.

    Raises TypeError or ValueError naming what is not allowed.
    """
    status = given.get("status")
    if status is not None:
        for each in [status] if isinstance(status, str) else status:
            if each not in _STATUSES:
                known = ", ".join(_STATUSES)
                raise ValueError(f"status must be one of {known}, or several, not {each!r}")
            stored.statuses.append(_STATUSES[each])
    if prefix := given.get("prefix"):
        stored.thread_id_prefix = check_name("prefix", prefix)
    metadata = given.get("metadata")
    if metadata is not None:
        if not isinstance(metadata, Mapping):
            raise TypeError(f"metadata must be a mapping, not {type(metadata).__name__}")
        if metadata:
            stored.metadata_filter_json = metadata_json(metadata, None, "metadata")
    if (graph := given.get("graph")) is not None:
        stored.graph = check_name("graph", graph)
    if (after := given.get("updated_after")) is not None:
        _set_time(stored.updated_after, "updated_after", after)
    if (before := given.get("updated_before")) is not None:
        _set_time(stored.updated_before, "updated_before", before)


RECOVER_NAMES = ("prefix", "metadata", "updated_after", "updated_before")
FILTER_NAMES = ("status", "graph", *RECOVER_NAMES)


def check_known(what: str, given: Iterable[str], own: Sequence[str], names: Sequence[str]) -> None:
    """Raises TypeError, with a suggestion, if a name was given that is not among `names`."""
    for name in given:
        if name in names:
            continue
        known = [*own, *names]
        near = get_close_matches(name, known, 1)
        more = f"did you mean {near[0]}?" if near else f"it has {', '.join(known)}"
        raise TypeError(f"{what} has no argument {name}: {more}")


def check_flag(name: str, value: bool) -> bool:
    """Raises TypeError unless it is True or False."""
    if isinstance(value, bool):
        return value
    raise TypeError(f"{name} must be True or False, not {value!r}")


def check_integer(name: str, value: int, least: int = 0) -> int:
    """Raises TypeError or ValueError unless it is a whole number from `least`."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be a whole number from {least}, not {value!r}")
    if value < least:
        raise ValueError(f"{name} must be a whole number from {least}, not {value}")
    return value


def check_names(field: str, values: Sequence[str]) -> list[str]:
    """The names as texts. Raises as `check_name` does, and TypeError for one text."""
    if isinstance(values, (str, bytes)):
        # Which would be taken letter by letter.
        raise TypeError(f"{field} must be a sequence of strings, not one string; for one [{field}]")
    return [check_name(f"{field}[{at}]", value) for at, value in enumerate(values)]


def to_seconds(name: str, value: Seconds) -> float:
    """The number of seconds. Raises TypeError or ValueError unless it is one from 0."""
    if isinstance(value, timedelta):
        value = value.total_seconds()
    elif not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"{name} must be a timedelta or a number of seconds, not {value!r}")
    if value >= 0 and math.isfinite(value):
        return value
    raise ValueError(f"{name} must be a timedelta or a number of seconds from 0, not {value!r}")


def set_duration(stored: Duration, name: str, value: Seconds) -> None:
    """Writes it into a message, to the microsecond. Raises as `to_seconds` does."""
    micros = round(to_seconds(name, value) * 1_000_000)
    # Beyond what a Duration has room for the service would not get to say what is too long.
    stored.seconds = min(micros // 1_000_000, 315_576_000_000)
    stored.nanos = micros % 1_000_000 * 1000
    # Of 0 seconds there is nothing to write: it would be absent.
    stored.SetInParent()


def _set_time(stored: Timestamp, name: str, value: datetime) -> None:
    if not isinstance(value, datetime):
        raise TypeError(f"{name} must be a datetime, not {value!r}")
    if value.utcoffset() is None:
        raise ValueError(
            f"{name} must have a timezone, as datetime.now(timezone.utc) has; "
            "value.astimezone() takes it as local time"
        )
    since = value - _EPOCH
    stored.seconds = since.days * 86_400 + since.seconds
    stored.nanos = since.microseconds * 1000
    stored.SetInParent()


def from_time(stored: Timestamp) -> datetime:
    """The time, in UTC."""
    return _EPOCH + timedelta(seconds=stored.seconds, microseconds=stored.nanos // 1000)


def from_status(status: int) -> ThreadState:
    """The status by its name. One that a newer service has is nothing to leave alone: pending."""
    return _STATES.get(status, "pending")


def from_metadata(text: str) -> tuple[dict[str, Any], str | None]:
    """The metadata without the graph's name, and the name."""
    metadata = json.loads(text or "{}")
    graph = metadata.pop(GRAPH_KEY, None)
    return metadata, graph if isinstance(graph, str) else None
