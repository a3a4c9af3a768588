"""Encryption at the agent: requests on their way out, stored data on its way in.

What has to be asked on the way, of the keys or of the service, is yielded, and its answer sent in:
the saver asks it with or without an event loop.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator, Iterable, Mapping
from typing import Any, TypeVar

from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.checkpoint.serde.types import TASKS

from .codec import Put
from .encryption import Encryption, EncryptionError, Key, check_key
from .messages import GetTupleRequest, OpenSessionRequest, PutRequest
from .opening import Known, Opened, Opening
from .recent import Recent
from .sealed_bytes import (
    IDLE_TYPE,
    SEALED_TYPE,
    Chunked,
    SealingKey,
    seal,
    seal_in_chunks,
    thread_key,
    to_content,
)
from .sealed_checkpoint import (
    Place,
    Said,
    series_of,
    thread_of,
    to_seal,
    value_place,
    with_seal,
    write_place,
)
from .value_cache import LARGEST_PART, LEAST_BYTES

Answer = TypeVar("Answer")
# What is asked: a get_tuple of the service, or the keys' answer, which may be awaitable.
Ask = OpenSessionRequest | Callable[[], object | Awaitable[object]]
Steps = Generator[Ask, Any, Answer]

# As many keys, and keys of threads, are remembered, and checkpoints and channels of theirs.
_MOST_KEYS = 1_000
_MOST_KNOWN = 100_000


class Sealing:
    """Encrypts and decrypts for one saver."""

    def __init__(self, options: Encryption, memory_bytes: int) -> None:
        """Up to `memory_bytes` of the values put last are remembered.

        Of one that grew only what is new is encrypted then.
        """
        if not isinstance(options, Encryption):
            raise TypeError(f"encryption must be an Encryption, not {type(options).__name__}")
        self._options = options
        self._memory_bytes = memory_bytes
        self._keys: Recent[bytes] = Recent(_MOST_KEYS, lambda _: 1)
        self._thread_keys: Recent[SealingKey] = Recent(_MOST_KEYS, lambda _: 1)
        self._chunked: Recent[Chunked] = Recent(memory_bytes, lambda it: len(it.content))
        self._known: Recent[Known] = Recent(_MOST_KNOWN, lambda it: 10 + len(it.valued))
        self._opening = Opening(self)

    @property
    def accepts_plaintext(self) -> bool:
        """Whether what is not encrypted is read."""
        return self._options.accept_plaintext

    # Out.

    def seal_put(
        self, serde: SerializerProtocol, made: Put, versions: Mapping[str, Any]
    ) -> Steps[None]:
        """Encrypts a put. `versions` are the checkpoint's."""
        put, large = made.request.put, made.large
        place = Place(put.thread_id, put.checkpoint_ns, put.checkpoint_id)
        parent = place._replace(checkpoint_id=put.parent_checkpoint_id)
        current = yield from self._current()
        origin = yield from self._origin_after(parent)
        key = self.of_thread(current, thread_of(origin))
        valued = _valued_after(self._known.get(parent), put, versions)
        self._known.set(place, Known(origin, valued))
        for index, blob in enumerate(put.blobs):
            if not blob.HasField("value"):
                continue
            value = blob.value
            data = large.pop(index, None)
            if data is None:
                data = value.data
            kind = IDLE_TYPE if _is_idle(serde, blob.channel, value.type, data) else SEALED_TYPE
            sealed = self._seal_value(key, put, blob.channel, blob.version, kind, value.type, data)
            value.type = kind
            if len(sealed) < LEAST_BYTES:
                value.data = sealed
            else:
                value.data = b""
                large[index] = sealed
        said = Said(origin, parent.checkpoint_id, list(valued), made.full_json, put.metadata_json)
        put.checkpoint_json = with_seal(put.checkpoint_json, to_seal(key, place, said))

    def seal_writes(self, request: OpenSessionRequest) -> Steps[None]:
        """Encrypts the writes of a task."""
        put = request.put_writes
        current = yield from self._current()
        origin = yield from self._origin_at(
            Place(put.thread_id, put.checkpoint_ns, put.checkpoint_id)
        )
        key = self.of_thread(current, thread_of(origin))
        for write in put.writes:
            place = write_place(
                SEALED_TYPE,
                put.checkpoint_ns,
                put.checkpoint_id,
                put.task_id,
                put.task_path,
                write.idx,
                write.channel,
            )
            value = write.value
            value.data = seal(key, place, to_content(value.type, value.data))
            value.type = SEALED_TYPE

    def _seal_value(
        self,
        key: SealingKey,
        put: PutRequest,
        channel: str,
        version: str,
        stored_kind: str,
        kind: str,
        data: bytes,
    ) -> bytes:
        ns = put.checkpoint_ns
        place = value_place(stored_kind, ns, channel, version)
        content = to_content(kind, data)
        # Under a lease values are sent whole.
        if put.lease_token or not LEAST_BYTES <= len(content) <= self._memory_bytes // LARGEST_PART:
            return seal(key, place, content)
        name = (put.thread_id, ns, channel)
        series = series_of(ns, channel)
        chunked = seal_in_chunks(key, place, series, content, self._chunked.get(name))
        self._chunked.set(name, chunked)
        return chunked.sealed

    # In.

    def open_tuple(self, stored: Any, asked: tuple[object, object, object]) -> Steps[Any]:
        """The tuple, decrypted, which answers what was asked for.

        Raises EncryptionError if any of it cannot be trusted.
        """
        opened: Opened = yield from self._opening.tuple_of(stored, asked)
        self._known.set(opened.place, opened.known)
        return opened.stored

    def history(self, target: tuple[str, str, str], channels: Iterable[str]) -> Any:
        """Takes the messages of a history one by one; see `OpenedHistory`."""
        place = Place(*target)
        return self._opening.history(place, self._known.get(place), channels)

    def read(self, place: Place) -> Steps[Opened | None]:
        """Another checkpoint, without what was sent to it."""
        request = OpenSessionRequest(
            get_tuple=GetTupleRequest(
                thread_id=place.thread_id,
                checkpoint_ns=place.checkpoint_ns,
                checkpoint_id=place.checkpoint_id,
            )
        )
        answer = yield request
        if not answer.HasField("tuple"):
            return None
        opened: Opened = yield from self._opening.tuple_of(answer.tuple, place, with_sends=False)
        self._known.set(opened.place, opened.known)
        return opened

    # Keys.

    def by_ids(self, ids: Iterable[str]) -> Steps[dict[str, Key]]:
        """The keys of these ids. Raises EncryptionError if one is not known."""
        found = {}
        for id in ids:
            key = self._keys.get(id)
            if key is None:
                answer = yield lambda id=id: self._options.keys.by_id(id)  # type: ignore[misc]
                if answer is None:
                    raise EncryptionError(
                        "KEY_UNKNOWN",
                        f"a value is encrypted with the key {id!r}, which encryption.keys does not "
                        "know",
                    )
                key = check_key(id, answer)
                self._keys.set(id, key)
            found[id] = Key(id, key)
        return found

    def of_thread(self, key: Key, thread: bytes) -> SealingKey:
        """What the values of a thread are encrypted with."""
        name = (key, thread)
        derived = self._thread_keys.get(name)
        if derived is None:
            derived = thread_key(key, thread)
            self._thread_keys.set(name, derived)
        return derived

    def _current(self) -> Steps[Key]:
        key = yield self._options.keys.current
        return Key(key.id, check_key(key.id, key.key))

    # A thread's values belong to the name under which it was begun, and so do those that are added
    # to a copy of it: a checkpoint names values that its ancestors stored. Where copies are not
    # accepted that name is always the thread's, and nothing has to be known.

    def check_origin(self, origin: str, thread_id: str) -> None:
        """Raises unless what was stored as that thread may be read as this one."""
        if origin == thread_id:
            return
        accept = self._options.accept_copies
        if accept(origin, thread_id) is True if callable(accept) else accept is True:
            return
        raise EncryptionError(
            "COPIED",
            f"thread {thread_id!r} was stored as {origin!r}: it is a copy, was imported under "
            "another name, or somebody renamed it in the database; encryption's accept_copies says "
            "what may be read",
        )

    def _origin_after(self, parent: Place) -> Steps[str]:
        if self._options.accept_copies is False or not parent.checkpoint_id:
            return parent.thread_id
        known = yield from self._find(parent)
        return known.origin if known else parent.thread_id

    def _origin_at(self, place: Place) -> Steps[str]:
        if self._options.accept_copies is False:
            return place.thread_id
        # LangGraph stores a task's writes before the task's checkpoint, whose parent is the latest
        # then.
        known = yield from self._find(place)
        if known is None:
            known = yield from self._find(place._replace(checkpoint_id=""))
        return known.origin if known else place.thread_id

    def _find(self, place: Place) -> Steps[Known | None]:
        known = self._known.get(place)
        if known is not None:
            return known
        opened = yield from self.read(place)
        return opened.known if opened else None


def _valued_after(
    before: Known | None, put: PutRequest, versions: Mapping[str, Any]
) -> dict[str, str]:
    """The channels that have a value at a checkpoint, with their versions.

    Those that are stored with it, and of the one before it those that have the same version. Others
    may never have been stored: nothing says that a caller stores all that its versions name.
    """
    texts = {channel: str(version) for channel, version in versions.items()}
    stored = before.valued if before is not None else {}
    valued = {channel: it for channel, it in stored.items() if texts.get(channel) == it}
    for blob in put.blobs:
        if blob.HasField("value") and texts.get(blob.channel) == blob.version:
            valued[blob.channel] = blob.version
    return valued


def _is_idle(serde: SerializerProtocol, channel: str, kind: str, data: bytes) -> bool:
    """Whether the channel is one that makes nodes run, and has none to run at this value.

    The service tells that of plain values by their bytes.
    """
    if channel == TASKS:
        return len(data) <= (2 if kind == "json" else 1)
    if not channel.startswith("join:"):
        return False
    names = channel[len("join:") :].rpartition(":")[0]
    # Longer than all names and what stands between them it is no join's.
    if len(data) > 8 * len(names) + 64:
        return True
    value = serde.loads_typed((kind, data))
    if isinstance(value, (list, tuple)) and len(value) == 2 and isinstance(value[1], bool):
        value, is_finished = value
        if not is_finished:
            return True
    if not isinstance(value, (set, list, tuple)):
        return True
    return len("+".join(map(str, value))) != len(names)
