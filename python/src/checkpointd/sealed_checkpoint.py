"""Where encrypted data belongs, and the seal of a checkpoint: what is said of it, once more."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import NamedTuple

from .encryption import SEAL_KEY
from .sealed_bytes import (
    Header,
    SealingKey,
    fields,
    from_content,
    read_fields,
    read_header,
    seal,
    to_content,
    unseal,
)

_THREAD_ID_BYTES = 16


class Place(NamedTuple):
    """Names a checkpoint, or the latest of its namespace where the id is empty."""

    thread_id: str
    checkpoint_ns: str
    checkpoint_id: str


class Said(NamedTuple):
    """What a seal says of a checkpoint, beyond its place."""

    origin: str
    """The name under which the thread was begun."""
    parent_checkpoint_id: str
    valued: list[str]
    """The channels that have a value outside the JSON."""
    checkpoint_json: str
    metadata_json: str


class ClosedSeal(NamedTuple):
    """A seal that was not looked into yet."""

    thread: bytes
    sealed: bytes
    header: Header


def thread_of(origin: str) -> bytes:
    """The key id of the thread that was begun under that name."""
    return hashlib.sha256(fields("checkpointd thread", origin)).digest()[:_THREAD_ID_BYTES]


def series_of(ns: str, channel: str) -> bytes:
    """What the chunks of a channel's values have in common."""
    return fields(ns, channel)


def value_place(kind: str, ns: str, channel: str, version: str) -> bytes:
    """The place of a channel's value. Of the thread it is by its key."""
    return fields("value", kind, ns, channel, version)


def write_place(
    kind: str, ns: str, checkpoint_id: str, task_id: str, task_path: str, idx: int, channel: str
) -> bytes:
    """The place of a task's write.

    Of those to special channels, which are replaced, the row keeps the path that it had first.
    """
    path = "" if idx < 0 else task_path
    return fields("write", kind, ns, checkpoint_id, task_id, path, str(idx), channel)


def to_seal(key: SealingKey, place: Place, said: Said) -> str:
    """The seal, as the checkpoint's JSON has it.

    It holds the JSON and the metadata once more: what jsonb gives back is another text, so that
    there is nothing to compare by.
    """
    thread = thread_of(said.origin)
    valued = json.dumps(said.valued)
    text = fields(said.origin, said.parent_checkpoint_id, valued, *said[3:])
    sealed = seal(key, _seal_place(place, thread), to_content("", text))
    return base64.b64encode(thread + sealed).decode()


def with_seal(checkpoint_json: str, text: str) -> str:
    """The checkpoint's JSON with its seal."""
    comma = "," if len(checkpoint_json) > 2 else ""
    return f'{checkpoint_json[:-1]}{comma}"{SEAL_KEY}":"{text}"}}'


def closed_seal(text: object) -> ClosedSeal | None:
    """None if that is no seal."""
    try:
        data = base64.b64decode(text)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    sealed = data[_THREAD_ID_BYTES:]
    header = read_header(sealed)
    return header and ClosedSeal(data[:_THREAD_ID_BYTES], sealed, header)


def open_seal(key: SealingKey, place: Place, closed: ClosedSeal) -> Said:
    """What the seal says. Raises if it is not that of a checkpoint of this place."""
    at = _seal_place(place, closed.thread)
    _, text = from_content(unseal(key, at, None, closed.sealed, closed.header))
    origin, parent, valued, checkpoint, metadata = (it.decode() for it in read_fields(text, 5))
    if thread_of(origin) != closed.thread:
        raise ValueError("of another thread")
    return Said(origin, parent, json.loads(valued), checkpoint, metadata)


def _seal_place(place: Place, thread: bytes) -> bytes:
    return fields("checkpoint", thread, place.checkpoint_ns, place.checkpoint_id)
