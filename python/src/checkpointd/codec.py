"""Between LangGraph's objects and the service's messages.

The only caller of the serializer. Rows come out as LangGraph's own PostgresSaver stores them:
checkpoint and metadata as JSON, None, str, int, float and bool in the checkpoint's JSON, every
other value as a blob of what the serializer wrote.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from typing import Any, NamedTuple, cast

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    WRITES_IDX_MAP,
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    DeltaChannelHistory,
    get_serializable_checkpoint_metadata,
    writes_sort_key,
)
from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.checkpoint.serde.types import TASKS, _DeltaSnapshot

from .encryption import SEAL_KEY, EncryptionError
from .messages import (
    CheckpointTuple as StoredTuple,
)
from .messages import (
    GetChannelHistoryResponse,
    ListRequest,
    OpenSessionRequest,
    PendingWrite,
    Value,
)
from .names import GRAPH_KEY, LEASE_TOKEN, check_name, configurable, optional, required
from .value_cache import LEAST_BYTES
from .versions import next_version

# What psycopg's Jsonb does, in fewer bytes.
_to_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode
# An escaped NUL, but not a backslash before "u0000".
_nul = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")
_surrogate = re.compile("[\ud800-\udfff]")
# What stands in the JSON for a value that is encrypted with the rest of it.
_HIDDEN = "encrypted"


class Put(NamedTuple):
    """What stores a checkpoint."""

    request: OpenSessionRequest
    """Without its large values."""
    large: dict[int, bytes]
    """These, by their place in put.blobs."""
    full_json: str
    """The checkpoint with all it inlines, where that is to be encrypted."""


def put_request(
    serde: SerializerProtocol,
    config: RunnableConfig,
    checkpoint: Checkpoint,
    metadata: CheckpointMetadata,
    new_versions: ChannelVersions,
    graph: str | None,
    hides: bool = False,
) -> Put:
    """What stores a checkpoint; with `hides` without the values that it inlines.

    Raises TypeError or ValueError naming what cannot be stored.
    """
    keys = configurable("put", config)
    request = OpenSessionRequest()
    put = request.put
    put.thread_id = required("put", keys, "thread_id")
    put.checkpoint_ns = optional(keys, "checkpoint_ns")
    put.checkpoint_id = check_name("checkpoint.id", checkpoint["id"])
    put.parent_checkpoint_id = optional(keys, "checkpoint_id")
    if LEASE_TOKEN in keys:
        put.lease_token = optional(keys, LEASE_TOKEN)
    inline: dict[str, Any] = {}
    blobs: dict[str, Any] = {}
    large: dict[int, bytes] = {}
    for channel, value in checkpoint["channel_values"].items():
        kind = type(value)
        if value is None or kind is str or kind is int or kind is bool:
            inline[channel] = value
        elif kind is _DeltaSnapshot:
            inline[channel] = True
            blobs[channel] = value
        elif isinstance(value, (str, int, float)) and not _is_bent(value):
            inline[channel] = value
        else:
            blobs[channel] = value
    try:
        put.checkpoint_json = _checkpoint_json(checkpoint, inline)
    except ValueError:
        # Of what is not new the blob is stored already, under the channel's version.
        for channel in [it for it in inline if _cleaned(inline[it]) != inline[it]]:
            blobs[channel] = inline.pop(channel)
        _check_versions("channel_versions", checkpoint["channel_versions"])
        _check_versions("versions_seen", checkpoint["versions_seen"])
        try:
            put.checkpoint_json = _checkpoint_json(checkpoint, inline)
        except ValueError as error:
            raise ValueError(f"the checkpoint cannot be stored as JSON: {error}") from error
    full_json = ""
    if hides:
        full_json = put.checkpoint_json
        put.checkpoint_json = _checkpoint_json(checkpoint, dict.fromkeys(inline, _HIDDEN))
    put.metadata_json = metadata_json(get_serializable_checkpoint_metadata(config, metadata), graph)
    if blobs:
        add = put.blobs.add
        for channel, value in blobs.items():
            version = new_versions.get(channel)
            if version is None:
                continue
            blob = add()
            blob.channel = channel
            blob.version = version if type(version) is str else str(version)
            try:
                blob.value.type, data = serde.dumps_typed(value)
            except Exception as error:
                raise _unserializable(f'the value of channel "{channel}"', error) from error
            if type(data) is not bytes:
                data = bytes(data)
            if len(data) < LEAST_BYTES:
                blob.value.data = data
            else:
                # Large ones cost less the fewer times they are copied.
                large[len(put.blobs) - 1] = data
    return Put(request, large, full_json)


def put_writes_request(
    serde: SerializerProtocol,
    config: RunnableConfig,
    writes: Sequence[tuple[str, Any]],
    task_id: str,
    task_path: str,
) -> OpenSessionRequest:
    """What stores a task's writes. Raises as `put_request` does."""
    keys = configurable("put_writes", config)
    request = OpenSessionRequest()
    put_writes = request.put_writes
    put_writes.thread_id = required("put_writes", keys, "thread_id")
    put_writes.checkpoint_ns = optional(keys, "checkpoint_ns")
    put_writes.checkpoint_id = required("put_writes", keys, "checkpoint_id")
    put_writes.task_id = check_name("task_id", task_id)
    put_writes.task_path = check_name("task_path", task_path)
    if LEASE_TOKEN in keys:
        put_writes.lease_token = optional(keys, LEASE_TOKEN)
    add = put_writes.writes.add
    for position, (channel, value) in enumerate(writes):
        write = add()
        write.idx = WRITES_IDX_MAP.get(channel, position)
        write.channel = channel
        try:
            _dump(serde, value, write.value)
        except Exception as error:
            raise _unserializable(f'the write to channel "{channel}"', error) from error
    return request


def get_tuple_request(config: RunnableConfig) -> OpenSessionRequest:
    """What reads a checkpoint."""
    keys = configurable("get_tuple", config)
    request = OpenSessionRequest()
    get_tuple = request.get_tuple
    get_tuple.thread_id = required("get_tuple", keys, "thread_id")
    get_tuple.checkpoint_ns = optional(keys, "checkpoint_ns")
    get_tuple.checkpoint_id = optional(keys, "checkpoint_id")
    return request


def list_request(
    config: RunnableConfig | None,
    filter: Mapping[str, Any] | None,
    before: RunnableConfig | None,
    limit: int | None,
) -> ListRequest:
    """What lists checkpoints."""
    request = ListRequest(omit_unchanged=True)
    keys = (config or {}).get("configurable") or {}
    if thread_id := optional(keys, "thread_id"):
        request.thread_id = thread_id
    if keys.get("checkpoint_ns") is not None:
        request.checkpoint_ns = optional(keys, "checkpoint_ns")
    if checkpoint_id := optional(keys, "checkpoint_id"):
        request.checkpoint_id = checkpoint_id
    if filter:
        request.metadata_filter_json = metadata_json(filter, None, "filter")
    if before is not None and (
        before_id := optional(before.get("configurable") or {}, "checkpoint_id")
    ):
        request.before_checkpoint_id = before_id
    if limit is not None:
        if not isinstance(limit, int) or limit < 0:
            raise ValueError(f"limit must be a whole number from 0, not {limit!r}")
        # Above what the wire has room for is more than any list has.
        if limit < 2**31:
            request.limit = limit
    return request


def from_tuple(
    serde: SerializerProtocol, stored: StoredTuple, thread_id: object = None
) -> CheckpointTuple:
    """A stored tuple as LangGraph's direct saver returns it.

    `thread_id` is the thread as the caller spelled it, or None to take the stored one. Raises
    EncryptionError if it is encrypted.
    """
    key = stored.key
    load = serde.loads_typed
    checkpoint = json.loads(stored.checkpoint_json)
    # Its values would be refused one by one, but for those in the JSON.
    if SEAL_KEY in checkpoint:
        raise EncryptionError(
            "ENCRYPTED",
            f"checkpoint {key.checkpoint_id} of thread {key.thread_id!r} is encrypted: give the "
            "saver its encryption",
        )
    values = checkpoint.get("channel_values")
    if values is None:
        values = checkpoint["channel_values"] = {}
    for blob in stored.blobs:
        value = blob.value
        if (kind := value.type) != "empty":
            values[blob.channel] = load((kind, value.data))
    if stored.pending_sends:
        values[TASKS] = [load((value.type, value.data)) for value in stored.pending_sends]
        versions = checkpoint["channel_versions"]
        versions[TASKS] = max(versions.values()) if versions else next_version(None)
    metadata = json.loads(stored.metadata_json)
    metadata.pop(GRAPH_KEY, None)
    thread = key.thread_id if thread_id is None else thread_id
    ns = key.checkpoint_ns
    parent = stored.parent_checkpoint_id
    return CheckpointTuple(
        _config(thread, ns, key.checkpoint_id),
        cast(Checkpoint, checkpoint),
        cast(CheckpointMetadata, metadata),
        _config(thread, ns, parent) if parent else None,
        _from_writes(serde, stored.pending_writes),
    )


def next_config(config: RunnableConfig, checkpoint: Checkpoint) -> RunnableConfig:
    """The config that names a checkpoint that was put."""
    keys = config["configurable"]
    told = {
        "thread_id": keys["thread_id"],
        "checkpoint_ns": keys.get("checkpoint_ns", ""),
        "checkpoint_id": checkpoint["id"],
    }
    if keys.get(LEASE_TOKEN):
        told[LEASE_TOKEN] = keys[LEASE_TOKEN]
    return {"configurable": told}


class History:
    """Delta channels, rebuilt from the writes of a checkpoint's ancestors, as they come."""

    def __init__(self, serde: SerializerProtocol, channels: Iterable[str]) -> None:
        self._serde = serde
        self._channels = list(channels)
        self.clear()

    def clear(self) -> None:
        """Begins anew."""
        self._writes: dict[str, list[tuple[str, str, Any]]] = {it: [] for it in self._channels}
        self._seeds: dict[str, Any] = {}

    def add(self, part: GetChannelHistoryResponse) -> None:
        """Takes what the service tells of one ancestor, the nearest first."""
        load = self._serde.loads_typed
        for write in reversed(_from_writes(self._serde, part.writes)):
            if write[1] in self._writes:
                self._writes[write[1]].append(write)
        # A stored value goes before one in the JSON, and what was sent before both.
        for channel, text in part.inline_seeds.items():
            self._seeds[channel] = json.loads(text)
        for seed in part.seeds:
            self._seeds[seed.channel] = load((seed.value.type, seed.value.data))
        if part.pending_sends:
            self._seeds[TASKS] = [load((value.type, value.data)) for value in part.pending_sends]

    def result(self) -> dict[str, DeltaChannelHistory]:
        """As `BaseCheckpointSaver.get_delta_channel_history` promises."""
        told: dict[str, DeltaChannelHistory] = {}
        for channel, writes in self._writes.items():
            entry: DeltaChannelHistory = {"writes": writes[::-1]}
            if channel in self._seeds:
                entry["seed"] = self._seeds[channel]
            told[channel] = entry
        return told


def metadata_json(metadata: Mapping[str, Any], graph: str | None, what: str = "metadata") -> str:
    """The metadata as JSON that jsonb accepts.

    NULs are dropped, as LangGraph does, lone surrogates become U+FFFD, and numbers that JSON has no
    room for become null. Raises TypeError naming the key of what JSON has no room for at all.
    """
    if graph is not None:
        metadata = {**metadata, GRAPH_KEY: graph}
    try:
        text = _to_json(metadata)
        if not text.isascii():
            text.encode()
        if "\\u0000" not in text or not _nul.search(text):
            return text
    except ValueError:
        pass
    except TypeError as error:
        key = next((key for key in metadata if not _is_json(metadata[key])), None)
        where = "" if key is None else f' under "{key}"'
        raise TypeError(f"{what} cannot be stored as JSON{where}: {error}") from error
    try:
        return _to_json(_cleaned(metadata))
    except ValueError as error:
        raise ValueError(f"{what} cannot be stored as JSON: {error}") from error


def _config(thread_id: object, ns: str, checkpoint_id: str) -> RunnableConfig:
    return {
        "configurable": {
            "thread_id": thread_id,
            "checkpoint_ns": ns,
            "checkpoint_id": checkpoint_id,
        }
    }


def _from_writes(
    serde: SerializerProtocol, writes: Sequence[PendingWrite]
) -> list[tuple[str, str, Any]]:
    load = serde.loads_typed
    if len(writes) > 1:
        writes = sorted(writes, key=lambda it: writes_sort_key(it.task_path, it.task_id, it.idx))
    told = []
    for write in writes:
        value = write.value
        told.append((write.task_id, write.channel, load((value.type, value.data))))
    return told


def _dump(serde: SerializerProtocol, value: object, stored: Value) -> None:
    stored.type, data = serde.dumps_typed(value)
    stored.data = data if type(data) is bytes else bytes(data)


def _unserializable(what: str, error: Exception) -> Exception:
    return (TypeError if isinstance(error, TypeError) else ValueError)(
        f"{what} cannot be stored: the serializer has no way for it ({error}); convert it before "
        "it goes into the state"
    )


def _is_bent(value: str | int | float) -> bool:
    """Whether jsonb would not give it back as it is."""
    if isinstance(value, Enum):
        return True
    # It has no NaN, no infinity and no -0.0, and gives 1e16 back as an int.
    return isinstance(value, float) and not (
        -1e16 < value < 1e16 and (value != 0 or math.copysign(1, value) > 0)
    )


def _checkpoint_json(checkpoint: Checkpoint, inline: dict[str, Any]) -> str:
    text = _to_json({**checkpoint, "channel_values": inline})
    if "\\u0000" in text and _nul.search(text):
        raise ValueError("it has a NUL character")
    return text


def _check_versions(field: str, versions: object) -> None:
    if isinstance(versions, str):
        check_name(f"a version in {field}", versions)
    elif isinstance(versions, Mapping):
        for name, version in versions.items():
            check_name(f"a name in {field}", name)
            _check_versions(field, version)


def _cleaned(value: Any) -> Any:
    if isinstance(value, str):
        return _surrogate.sub("\ufffd", value.replace("\0", ""))
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {_cleaned(key): _cleaned(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_cleaned(each) for each in value]
    return value


def _is_json(value: object) -> bool:
    try:
        _to_json(value)
    except TypeError:
        return False
    except ValueError:
        return True
    return True
