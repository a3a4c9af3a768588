"""The saver that goes with http_proxy.py: values as base64 in JSON, a POST for each call."""

from __future__ import annotations

from base64 import b64decode, b64encode
from typing import Any

import httpx
from langgraph.checkpoint.base import (
    WRITES_IDX_MAP,
    BaseCheckpointSaver,
    CheckpointTuple,
    get_checkpoint_metadata,
)
from langgraph.checkpoint.serde.types import TASKS

from checkpointd.versions import next_version


class HttpSaver(BaseCheckpointSaver[str]):
    """Only what the benchmark calls."""

    def __init__(self, url: str) -> None:
        super().__init__()
        limits = httpx.Limits(max_connections=32, max_keepalive_connections=32)
        self.http = httpx.AsyncClient(base_url=url, limits=limits, timeout=30)

    async def __aenter__(self) -> HttpSaver:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.http.aclose()

    def get_next_version(self, current: str | None, channel: None = None) -> str:
        return next_version(current)

    async def call(self, method: str, body: dict[str, Any]) -> Any:
        answer = await self.http.post(f"/checkpoints/{method}", json=body)
        answer.raise_for_status()
        return answer.json()

    def dump(self, value: Any, **more: Any) -> dict[str, Any]:
        kind, data = self.serde.dumps_typed(value)
        return {"type": kind, "data": b64encode(data).decode(), **more}

    def load(self, stored: Any) -> Any:
        return self.serde.loads_typed((stored["type"], b64decode(stored["blob"])))

    async def aput(self, config: Any, checkpoint: Any, metadata: Any, new_versions: Any) -> Any:
        keys = config["configurable"]
        inline, blobs = {}, []
        for channel, value in checkpoint["channel_values"].items():
            if value is None or isinstance(value, (str, int, float, bool)):
                inline[channel] = value
            elif channel in new_versions:
                version = new_versions[channel]
                blobs.append(self.dump(value, channel=channel, version=version))
        key = {
            "thread_id": keys["thread_id"],
            "checkpoint_ns": keys.get("checkpoint_ns", ""),
            "checkpoint_id": checkpoint["id"],
        }
        body = {
            "parent_checkpoint_id": keys.get("checkpoint_id"),
            "checkpoint": {**checkpoint, "channel_values": inline},
            "metadata": get_checkpoint_metadata(config, metadata),
            "blobs": blobs,
        }
        await self.call("put", key | body)
        return {"configurable": key}

    async def aput_writes(
        self, config: Any, writes: Any, task_id: str, task_path: str = ""
    ) -> None:
        keys = config["configurable"]
        stored = [
            self.dump(value, channel=channel, idx=WRITES_IDX_MAP.get(channel, idx))
            for idx, (channel, value) in enumerate(writes)
        ]
        key = {key: keys.get(key, "") for key in ("thread_id", "checkpoint_ns", "checkpoint_id")}
        body = {"task_id": task_id, "task_path": task_path, "writes": stored}
        await self.call("put-writes", key | body)

    async def aget_tuple(self, config: Any) -> CheckpointTuple | None:
        keys = config["configurable"]
        key = {
            "thread_id": keys["thread_id"],
            "checkpoint_ns": keys.get("checkpoint_ns", ""),
            "checkpoint_id": keys.get("checkpoint_id"),
        }
        found = await self.call("get-tuple", key)
        if found is None:
            return None
        checkpoint = found["checkpoint"]
        for blob in found["blobs"]:
            checkpoint["channel_values"][blob["channel"]] = self.load(blob)
        assert TASKS not in checkpoint["channel_values"]
        parent = found["parent_checkpoint_id"]
        return CheckpointTuple(
            {"configurable": key | {"checkpoint_id": found["checkpoint_id"]}},
            checkpoint,
            found["metadata"],
            {"configurable": key | {"checkpoint_id": parent}} if parent else None,
            [(it["task_id"], it["channel"], self.load(it)) for it in found["writes"]],
        )
