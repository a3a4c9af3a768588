"""Every operation to the service and to a direct saver: answers and rows must be equal."""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

import psycopg
from langgraph.checkpoint.base import BaseCheckpointSaver, CheckpointTuple
from langgraph.checkpoint.postgres import PostgresSaver
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver

from checkpointd import ConnectSaver

OURS, DIRECT = "-ours", "-direct"


def renamed(config: Any, suffix: str) -> Any:
    if config is None or "thread_id" not in config.get("configurable", {}):
        return config
    keys = config["configurable"]
    return {**config, "configurable": {**keys, "thread_id": keys["thread_id"] + suffix}}


def original(config: Any) -> Any:
    if config is None:
        return None
    keys = config["configurable"]
    thread = keys["thread_id"].removesuffix(OURS).removesuffix(DIRECT)
    return {**config, "configurable": {**keys, "thread_id": thread}}


def plain(told: CheckpointTuple | None) -> CheckpointTuple | None:
    if told is None:
        return None
    return told._replace(config=original(told.config), parent_config=original(told.parent_config))


def shown(value: Any) -> Any:
    """What may be compared: 1 is not 1.0 nor True, NaN is NaN, a class is a class."""
    if isinstance(value, dict):
        return {key: shown(each) for key, each in value.items()}
    if isinstance(value, tuple) and not hasattr(value, "_fields"):
        return ("tuple", *map(shown, value))
    if isinstance(value, list):
        return [shown(each) for each in value]
    if isinstance(value, float) and math.isnan(value):
        return "NaN"
    return (type(value), repr(value) if type(value).__eq__ is object.__eq__ else value)


def same(ours: Any, direct: Any) -> Any:
    if isinstance(ours, CheckpointTuple) and isinstance(direct, CheckpointTuple):
        for name in ours._fields:
            assert shown(getattr(ours, name)) == shown(getattr(direct, name)), name
    assert shown(ours) == shown(direct)
    return ours


class Both(BaseCheckpointSaver[str]):
    """Under the thread's name with one ending to the service, with another to the direct saver."""

    def __init__(self, ours: ConnectSaver, direct: PostgresSaver | AsyncPostgresSaver) -> None:
        super().__init__()
        self.ours = ours
        self.direct = direct
        self.calls = 0

    def get_next_version(self, current: str | None, channel: None) -> str:
        return self.ours.get_next_version(current, channel)

    def get_tuple(self, config: Any) -> CheckpointTuple | None:
        self.calls += 1
        ours = plain(self.ours.get_tuple(renamed(config, OURS)))
        return same(ours, plain(self.direct.get_tuple(renamed(config, DIRECT))))

    async def aget_tuple(self, config: Any) -> CheckpointTuple | None:
        self.calls += 1
        ours = plain(await self.ours.aget_tuple(renamed(config, OURS)))
        return same(ours, plain(await self.direct.aget_tuple(renamed(config, DIRECT))))

    def list(self, config: Any, *, filter: Any = None, before: Any = None, limit: Any = None):
        more = {"filter": filter, "before": before, "limit": limit}
        ours = map(plain, self.ours.list(renamed(config, OURS), **more))
        direct = map(plain, self.direct.list(renamed(config, DIRECT), **more))
        for each in itertools.zip_longest(ours, direct):
            yield same(*each)

    async def alist(
        self, config: Any, *, filter: Any = None, before: Any = None, limit: Any = None
    ):
        more = {"filter": filter, "before": before, "limit": limit}
        ours = [plain(it) async for it in self.ours.alist(renamed(config, OURS), **more)]
        direct = [plain(it) async for it in self.direct.alist(renamed(config, DIRECT), **more)]
        for each in itertools.zip_longest(ours, direct):
            yield same(*each)

    def put(self, config: Any, *rest: Any) -> Any:
        self.calls += 1
        # A join's channel hands out the set that it goes on with, while this is stored.
        rest = copy.deepcopy(rest)
        ours = original(self.ours.put(renamed(config, OURS), *rest))
        return same(ours, original(self.direct.put(renamed(config, DIRECT), *rest)))

    async def aput(self, config: Any, *rest: Any) -> Any:
        self.calls += 1
        rest = copy.deepcopy(rest)
        ours = original(await self.ours.aput(renamed(config, OURS), *rest))
        return same(ours, original(await self.direct.aput(renamed(config, DIRECT), *rest)))

    def put_writes(self, config: Any, writes: Any, task_id: str, task_path: str = "") -> None:
        self.ours.put_writes(renamed(config, OURS), writes, task_id, task_path)
        self.direct.put_writes(renamed(config, DIRECT), writes, task_id, task_path)

    async def aput_writes(
        self, config: Any, writes: Any, task_id: str, task_path: str = ""
    ) -> None:
        await self.ours.aput_writes(renamed(config, OURS), writes, task_id, task_path)
        await self.direct.aput_writes(renamed(config, DIRECT), writes, task_id, task_path)

    def delete_thread(self, thread_id: str) -> None:
        self.ours.delete_thread(thread_id + OURS)
        self.direct.delete_thread(thread_id + DIRECT)

    async def adelete_thread(self, thread_id: str) -> None:
        await self.ours.adelete_thread(thread_id + OURS)
        await self.direct.adelete_thread(thread_id + DIRECT)

    def get_delta_channel_history(self, *, config: Any, channels: Any) -> Any:
        ours = self.ours.get_delta_channel_history(config=renamed(config, OURS), channels=channels)
        return same(
            ours,
            self.direct.get_delta_channel_history(
                config=renamed(config, DIRECT), channels=channels
            ),
        )

    async def aget_delta_channel_history(self, *, config: Any, channels: Any) -> Any:
        ours = await self.ours.aget_delta_channel_history(
            config=renamed(config, OURS), channels=channels
        )
        return same(
            ours,
            await self.direct.aget_delta_channel_history(
                config=renamed(config, DIRECT), channels=channels
            ),
        )


TABLES = {
    "checkpoints": "checkpoint_ns, checkpoint_id, parent_checkpoint_id, type, "
    "checkpoint::text, metadata::text",
    "checkpoint_blobs": "checkpoint_ns, channel, version, type, blob",
    "checkpoint_writes": "checkpoint_ns, checkpoint_id, task_id, task_path, idx, channel, "
    "type, blob",
}


def rows(dsn: str, thread: str) -> dict[str, list[Any]]:
    """Everything stored under a thread's name, without the name."""
    with psycopg.connect(dsn) as connection:
        return {
            table: sorted(
                connection.execute(
                    f"SELECT {columns} FROM {table} WHERE thread_id = %s", (thread,)
                ).fetchall(),
                key=repr,
            )
            for table, columns in TABLES.items()
        }


def rows_are_equal(dsn: str, thread: str) -> dict[str, list[Any]]:
    """Asserts it; returns the rows."""
    ours, direct = rows(dsn, thread + OURS), rows(dsn, thread + DIRECT)
    for table in TABLES:
        assert ours[table] == direct[table], table
    return ours
