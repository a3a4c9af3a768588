"""Stored data, decrypted: nothing is handed on of which it is not certain what it is."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from langgraph.checkpoint.serde.types import TASKS

from .encryption import SEAL_KEY, EncryptionError, Key
from .messages import (
    ChannelBlob,
    CheckpointTuple,
    GetChannelHistoryResponse,
    PendingWrite,
    Value,
)
from .sealed_bytes import SEALED_TYPES, from_content, read_header, unseal
from .sealed_checkpoint import (
    ClosedSeal,
    Place,
    Said,
    closed_seal,
    open_seal,
    series_of,
    thread_of,
    value_place,
    write_place,
)

if TYPE_CHECKING:
    from .sealing import Sealing, Steps


class Known(NamedTuple):
    """What there is to know of a checkpoint when another one is stored after it."""

    origin: str
    valued: Mapping[str, str]
    """The channels whose values are stored apart, and their versions."""


class Opened(NamedTuple):
    """A tuple that was decrypted."""

    stored: CheckpointTuple
    place: Place
    known: Known


class _Unsealed(NamedTuple):
    """A checkpoint as its seal has it; one without a seal as the service says."""

    place: Place
    origin: str
    said: Said | None
    has_own_sends: bool
    """Whether its format has what its parent's tasks sent among its own values."""
    versions: Mapping[str, Any]
    inlined: Mapping[str, Any]


class Opening:
    """Decrypts for one saver."""

    def __init__(self, sealing: Sealing) -> None:
        self._sealing = sealing

    def tuple_of(
        self, stored: CheckpointTuple, asked: Sequence[object], with_sends: bool = True
    ) -> Steps[Opened]:
        """The tuple, which has to be one that was asked for. What was not said is None or empty."""
        key = stored.key
        place = Place(key.thread_id, key.checkpoint_ns, key.checkpoint_id)
        thread, ns, id = asked
        if (
            (thread is not None and thread != place.thread_id)
            or (ns is not None and ns != place.checkpoint_ns)
            or (id and id != place.checkpoint_id)
        ):
            _refuse("NOT_AUTHENTIC", place, "it is another one than was asked for")
        plain = _record(json.loads(stored.checkpoint_json))
        closed = self._closed(place, plain.get(SEAL_KEY))
        keys = yield from self._sealing.by_ids(
            _key_ids(closed, (*stored.blobs, *stored.pending_writes))
        )
        unsealed = self._unsealed(keys, place, closed, plain)
        told = CheckpointTuple()
        told.CopyFrom(stored)
        valued = {}
        for blob in told.blobs:
            self._blob(keys, unsealed, blob)
            valued[blob.channel] = blob.version
        said = unsealed.said
        if said is not None:
            self._check_all_there(place, said, valued)
            told.checkpoint_json = said.checkpoint_json
            told.metadata_json = said.metadata_json
            told.ClearField("parent_checkpoint_id")
            if said.parent_checkpoint_id:
                told.parent_checkpoint_id = said.parent_checkpoint_id
        self._writes(keys, unsealed, told.pending_writes)
        del told.pending_sends[:]
        if with_sends:
            parent = place._replace(checkpoint_id=told.parent_checkpoint_id)
            told.pending_sends.extend(
                (yield from self.sends(unsealed, parent, stored.pending_sends))
            )
        return Opened(told, place, Known(unsealed.origin, valued))

    def history(self, target: Place, known: Known | None, channels: Iterable[str]) -> OpenedHistory:
        """Takes the messages of a history one by one."""
        return OpenedHistory(self, target, known, channels)

    def ancestor(
        self, part: GetChannelHistoryResponse, place: Place, wanted: set[str] | None
    ) -> Steps[tuple[Said | None, GetChannelHistoryResponse]]:
        """What the checkpoint's seal says, and of an ancestor what it holds of the channels."""
        closed = self._closed(place, part.seal or None)
        keys = yield from self._sealing.by_ids(_key_ids(closed, (*part.seeds, *part.writes)))
        unsealed = self._unsealed(keys, place, closed, {})
        said = unsealed.said
        told = GetChannelHistoryResponse(checkpoint_id=part.checkpoint_id)
        if wanted is None:
            return said, told
        # A channel's walk ends at the first value: one that is told after it is an older one.
        told.seeds.extend([it for it in part.seeds if it.channel in wanted])
        told.writes.extend([it for it in part.writes if it.channel in wanted])
        for blob in told.seeds:
            self._blob(keys, unsealed, blob)
        seeded = {blob.channel for blob in told.seeds}
        self._writes(keys, unsealed, told.writes)
        if said is None:
            inline = {it: part.inline_seeds[it] for it in part.inline_seeds if it in wanted}
        else:
            self._check_all_there(place, said, seeded, wanted)
            inline = {
                channel: json.dumps(value)
                for channel, value in unsealed.inlined.items()
                if channel in wanted
            }
        told.inline_seeds.update(inline)
        parent = place._replace(checkpoint_id=said.parent_checkpoint_id if said else "")
        if TASKS in wanted and part.pending_sends:
            told.pending_sends.extend((yield from self.sends(unsealed, parent, part.pending_sends)))
            seeded.add(TASKS)
        wanted.difference_update(seeded, inline)
        return said, told

    def sends(
        self, unsealed: _Unsealed, parent: Place, sends: Sequence[Value]
    ) -> Steps[list[Value]]:
        """What a checkpoint of a format before 4 was sent.

        It is told without saying by which tasks.
        """
        if not any(it.type in SEALED_TYPES for it in sends):
            if sends and not self._sealing.accepts_plaintext:
                _refuse("PLAINTEXT", parent, "what was sent by it is not encrypted")
            return list(sends)
        # They would be done a second time.
        if unsealed.has_own_sends:
            _refuse("NOT_AUTHENTIC", unsealed.place, "it was told what its parent sent")
        read = (yield from self._sealing.read(parent)) if parent.checkpoint_id else None
        if read is None:
            _refuse("WITHHELD", parent, "it sent what is encrypted, and is missing")
        return [it.value for it in read.stored.pending_writes if it.channel == TASKS]

    def _closed(self, place: Place, text: object) -> ClosedSeal | None:
        if text is None:
            if self._sealing.accepts_plaintext:
                return None
            _refuse("PLAINTEXT", place, "it is not encrypted")
        closed = closed_seal(text)
        if closed is None:
            _refuse("NOT_AUTHENTIC", place, "its seal is damaged")
        return closed

    def _unsealed(
        self,
        keys: Mapping[str, Key],
        place: Place,
        closed: ClosedSeal | None,
        plain: Mapping[str, Any],
    ) -> _Unsealed:
        if closed is None:
            return _Unsealed(place, place.thread_id, None, *_contents(plain))
        key_id = closed.header.key_id
        key = self._sealing.of_thread(keys[key_id], closed.thread)
        try:
            said = open_seal(key, place, closed)
        except Exception:
            _refuse("NOT_AUTHENTIC", place, f"its seal is {_why_not(key_id)}")
        self._sealing.check_origin(said.origin, place.thread_id)
        contents = _contents(_record(json.loads(said.checkpoint_json)))
        return _Unsealed(place, said.origin, said, *contents)

    def _check_all_there(
        self,
        place: Place,
        said: Said,
        there: Iterable[str],
        wanted: Iterable[str] | None = None,
    ) -> None:
        missing = set(said.valued).difference(there)
        if wanted is not None:
            missing.intersection_update(wanted)
        if missing:
            _refuse("WITHHELD", place, f"its value of channel {min(missing)!r} is missing")

    def _blob(self, keys: Mapping[str, Key], unsealed: _Unsealed, blob: ChannelBlob) -> None:
        place, versions = unsealed.place, unsealed.versions
        channel, version = blob.channel, blob.version
        what = f"its value of channel {channel!r}"
        # The version that the checkpoint names, and no other that the channel had.
        if unsealed.said is not None and not _is_version(versions.get(channel), version):
            _refuse("NOT_AUTHENTIC", place, f"{what} is of another version")
        if not blob.HasField("value"):
            _refuse("WITHHELD", place, f"{what} is missing")
        ns = place.checkpoint_ns
        at = value_place(blob.value.type, ns, channel, version)
        self._value(keys, unsealed, what, at, blob.value, series_of(ns, channel))

    def _writes(
        self, keys: Mapping[str, Key], unsealed: _Unsealed, writes: Sequence[PendingWrite]
    ) -> None:
        place = unsealed.place
        before: tuple[str, str, int] | None = None
        # The path is not part of the place of those to special channels, so it tells no two of
        # them apart.
        seen: set[tuple[str, int]] = set()
        for write in writes:
            what = f"its write to channel {write.channel!r} of task {write.task_id!r}"
            order = (write.task_path, write.task_id, write.idx)
            if before is not None and before >= order:
                _refuse("NOT_AUTHENTIC", place, f"{what} is out of order")
            before = order
            if (write.task_id, write.idx) in seen:
                _refuse("NOT_AUTHENTIC", place, f"{what} is told twice")
            seen.add((write.task_id, write.idx))
            if not write.HasField("value"):
                _refuse("WITHHELD", place, f"{what} is missing")
            at = write_place(
                write.value.type,
                place.checkpoint_ns,
                place.checkpoint_id,
                write.task_id,
                write.task_path,
                write.idx,
                write.channel,
            )
            self._value(keys, unsealed, what, at, write.value, None)

    def _value(
        self,
        keys: Mapping[str, Key],
        unsealed: _Unsealed,
        what: str,
        at: bytes,
        value: Value,
        series: bytes | None,
    ) -> None:
        place = unsealed.place
        if value.type not in SEALED_TYPES:
            if not self._sealing.accepts_plaintext:
                _refuse("PLAINTEXT", place, f"{what} is not encrypted")
            return
        sealed = value.data
        header = read_header(sealed)
        if header is None:
            _refuse("NOT_AUTHENTIC", place, f"{what} is damaged")
        key = self._sealing.of_thread(keys[header.key_id], thread_of(unsealed.origin))
        try:
            value.type, value.data = from_content(unseal(key, at, series, sealed, header))
        except Exception:
            _refuse("NOT_AUTHENTIC", place, f"{what} is {_why_not(header.key_id)}")


class OpenedHistory:
    """The messages of one history: the target's, if it is known, then each parent's in turn."""

    def __init__(
        self, opening: Opening, target: Place, known: Known | None, channels: Iterable[str]
    ) -> None:
        self._opening = opening
        self._known = known
        self._target = target
        self._channels = frozenset(channels)
        self.clear()

    def clear(self) -> None:
        """Begins anew."""
        self._wanted = set(self._channels)
        self._expected: str | None = self._target.checkpoint_id or None
        self._is_begun = False

    def add(self, part: GetChannelHistoryResponse) -> Steps[GetChannelHistoryResponse]:
        """The message, decrypted. That of the target itself is empty."""
        place = self._target._replace(checkpoint_id=part.checkpoint_id)
        if self._expected is not None and self._expected != part.checkpoint_id:
            _refuse("NOT_AUTHENTIC", place, f"it was told where {self._expected!r} belongs")
        wanted = self._wanted if self._is_begun else None
        said, told = yield from self._opening.ancestor(part, place, wanted)
        self._is_begun = True
        self._expected = said.parent_checkpoint_id if said else None
        return told

    def end(self) -> None:
        """Raises if something has to follow."""
        if self._expected and self._wanted and (self._is_begun or self._known):
            place = self._target._replace(checkpoint_id=self._expected)
            _refuse("WITHHELD", place, "a channel is rebuilt from it, and it is missing")


def _refuse(reason: str, place: Place, why: str) -> NoReturn:
    ns = f" in {place.checkpoint_ns!r}" if place.checkpoint_ns else ""
    raise EncryptionError(
        reason,
        f"checkpoint {place.checkpoint_id}{ns} of thread {place.thread_id!r} was not read: {why}",
    ) from None


def _why_not(key_id: str) -> str:
    return (
        "not what was stored there: it was altered or belongs elsewhere, or the key "
        f"{key_id!r} is another one"
    )


def _key_ids(
    closed: ClosedSeal | None, parts: Iterable[ChannelBlob | PendingWrite]
) -> dict[str, None]:
    """The keys that the seal and the values name, each once."""
    ids: dict[str, None] = {}
    if closed is not None:
        ids[closed.header.key_id] = None
    for part in parts:
        if part.value.type in SEALED_TYPES:
            header = read_header(part.value.data)
            if header is not None:
                ids[header.key_id] = None
    return ids


def _record(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _contents(
    checkpoint: Mapping[str, Any],
) -> tuple[bool, Mapping[str, Any], Mapping[str, Any]]:
    v = checkpoint.get("v")
    has_own_sends = isinstance(v, int | float) and v >= 4
    versions = _record(checkpoint.get("channel_versions"))
    return has_own_sends, versions, _record(checkpoint.get("channel_values"))


def _is_version(version: object, text: str) -> bool:
    """Whether a version in a checkpoint's JSON, JavaScript's too, is the one of that text."""
    if isinstance(version, float):
        try:
            return float(text) == version
        except ValueError:
            return False
    return version is not None and str(version) == text
