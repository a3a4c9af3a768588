"""Measures Python's savers against each other, in turn, in one process: called by bench/python.ts.

Prints a line of JSON for each cell: a workload, how many at once, and what each contender took.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import sys
import threading
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypedDict

import psycopg
from langgraph.checkpoint.base.id import uuid6
from langgraph.checkpoint.postgres import PostgresSaver
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.graph import END, START, StateGraph
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool, ConnectionPool

from checkpointd import ConnectSaver

POOL = 10
THREADS = 64
CHANNELS = [f"channel-{i}" for i in range(5)]
# About 1 KB as the serializer writes it.
VALUE = {"n": 1, "text": "the quick brown fox jumps over the lazy dog, " * 22}
METADATA: Any = {"source": "loop", "step": 1, "parents": {}}
TICKS = os.sysconf("SC_CLK_TCK")


class NoLock:
    """In the place of the lock that lets a direct saver use one connection at a time."""

    def __enter__(self) -> None: ...
    def __exit__(self, *_: object) -> None: ...
    async def __aenter__(self) -> None: ...
    async def __aexit__(self, *_: object) -> None: ...


@contextlib.asynccontextmanager
async def open_savers(options: argparse.Namespace) -> Any:
    """Each contender's saver, those of `async` and of threads."""
    connect = {"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row}
    pools = {"min_size": POOL, "max_size": POOL, "kwargs": connect}
    async with contextlib.AsyncExitStack() as stack:
        pool = await stack.enter_async_context(AsyncConnectionPool(options.dsn, **pools))
        blocking = stack.enter_context(ConnectionPool(options.dsn, **pools))
        direct, unlocked = AsyncPostgresSaver(pool), AsyncPostgresSaver(pool)
        unlocked.lock = NoLock()
        sync_direct, sync_unlocked = PostgresSaver(blocking), PostgresSaver(blocking)
        sync_unlocked.lock = NoLock()
        ours = await stack.enter_async_context(ConnectSaver(options.url))
        savers = {
            "async": {"connect": ours, "direct": direct, "unlocked": unlocked},
            "sync": {"connect": ours, "direct": sync_direct, "unlocked": sync_unlocked},
        }
        if options.proxy:
            from http_saver import HttpSaver

            savers["async"]["http-json"] = await stack.enter_async_context(HttpSaver(options.proxy))
        yield savers


class Workload:
    """What is done again and again, and what has to be stored before."""

    def __init__(self, name: str, saver: Any, run: str) -> None:
        self.saver = saver
        self.run = run
        self.call = getattr(self, name.replace("-", "_"))

    def config(self, i: int, checkpoint_id: str | None = None) -> Any:
        keys = {"thread_id": f"{self.run}-{i % THREADS}", "checkpoint_ns": ""}
        return {"configurable": keys | ({"checkpoint_id": checkpoint_id} if checkpoint_id else {})}

    def checkpoint(self) -> Any:
        versions = {channel: self.saver.get_next_version(None, None) for channel in CHANNELS}
        return {
            "v": 4,
            "id": str(uuid6()),
            "ts": "2026-11-26T00:00:00+00:00",
            "channel_values": dict.fromkeys(CHANNELS, VALUE),
            "channel_versions": versions,
            "versions_seen": {"__input__": {}, "node": dict(versions)},
            "updated_channels": CHANNELS,
        }

    def put(self, i: int) -> Any:
        checkpoint = self.checkpoint()
        versions = checkpoint["channel_versions"]
        return self.saver.put(self.config(i), checkpoint, METADATA, versions)

    def aput(self, i: int) -> Any:
        checkpoint = self.checkpoint()
        versions = checkpoint["channel_versions"]
        return self.saver.aput(self.config(i), checkpoint, METADATA, versions)

    def put_writes(self, i: int) -> Any:
        return self.saver.put_writes(self.config(i, "x"), *self.writes())

    def aput_writes(self, i: int) -> Any:
        return self.saver.aput_writes(self.config(i, "x"), *self.writes())

    def writes(self) -> Any:
        return [("channel-0", VALUE)], str(uuid.uuid4()), "~__pregel_pull, node"

    def get_tuple(self, i: int) -> Any:
        return self.saver.get_tuple(self.config(i))

    def aget_tuple(self, i: int) -> Any:
        return self.saver.aget_tuple(self.config(i))

    def get_writes(self, i: int) -> Any:
        return self.get_tuple(i)

    def aget_writes(self, i: int) -> Any:
        return self.aget_tuple(i)

    async def ainvoke(self, i: int) -> Any:
        if not hasattr(self, "graph"):
            self.graph = three_nodes(self.saver)
        config = {"configurable": {"thread_id": f"{self.run}-{uuid.uuid4()}"}}
        await self.graph.ainvoke({"text": "hello", "list": []}, config)

    def prepare(self, name: str, saver: PostgresSaver) -> None:
        """Stores what is read."""
        if "get" not in name:
            return
        for i in range(THREADS):
            checkpoint = self.checkpoint()
            saver.put(self.config(i), checkpoint, METADATA, checkpoint["channel_versions"])
            if name.endswith("get_writes"):
                writes = [("channel-0", VALUE)] * 60
                saver.put_writes(self.config(i, checkpoint["id"]), writes, "task", "")


class State(TypedDict):
    """Of a graph whose three nodes add a text each."""

    text: str
    list: list[str]


def three_nodes(saver: Any) -> Any:
    """A graph of three nodes in a row."""

    def node(state: State) -> Any:
        return {"list": [*state["list"], VALUE["text"]]}

    graph = StateGraph(State)
    for name in ("a", "b", "c"):
        graph.add_node(name, node)
    for before, after in ((START, "a"), ("a", "b"), ("b", "c"), ("c", END)):
        graph.add_edge(before, after)
    return graph.compile(checkpointer=saver)


async def run_async(call: Callable[[int], Awaitable[Any]], at_once: int, seconds: float) -> Any:
    took: list[float] = []
    until = time.perf_counter() + seconds
    count = iter(range(1 << 60))

    async def one() -> None:
        while (began := time.perf_counter()) < until:
            await call(next(count))
            took.append(time.perf_counter() - began)

    await asyncio.gather(*(one() for _ in range(at_once)))
    return took


def run_sync(call: Callable[[int], Any], at_once: int, seconds: float) -> Any:
    took: list[float] = []
    failures: list[BaseException] = []
    until = time.perf_counter() + seconds

    def one(first: int) -> None:
        i = first
        try:
            while (began := time.perf_counter()) < until:
                call(i)
                i += at_once
                took.append(time.perf_counter() - began)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=one, args=(i,)) for i in range(at_once)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return took


def cpu(pids: Iterator[int]) -> float:
    """The CPU of other processes so far, in seconds."""
    spent = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
            spent += int(fields[11]) + int(fields[12])
    return spent / TICKS


def parent(pid: int) -> int:
    """The process that started another."""
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])


def family(pid: int) -> Iterator[int]:
    """A process and its children."""
    yield pid
    with contextlib.suppress(OSError):
        yield from map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())


class Cell:
    """One workload at one number of calls at once, for each contender."""

    def __init__(self, name: str, at_once: int, savers: dict[str, Any], options: Any) -> None:
        self.name = name
        self.at_once = at_once
        self.options = options
        self.is_async = name.startswith("a")
        self.workloads = {
            who: Workload(name, saver, f"{name}-{who}-{uuid.uuid4().hex[:8]}")
            for who, saver in savers.items()
        }
        self.rounds: dict[str, list[dict[str, float]]] = {who: [] for who in savers}

    async def run(self, storing: PostgresSaver) -> None:
        for workload in self.workloads.values():
            workload.prepare(self.name, storing)
        for n in range(self.options.rounds + 1):
            # The one after the other, from round to round another one first.
            order = list(self.workloads)
            order = order[n % len(order) :] + order[: n % len(order)]
            for who in order:
                await self.round(who, self.options.seconds / 10, False)
                await self.round(who, self.options.seconds / (1 if n else 3), n > 0)

    async def round(self, who: str, seconds: float, counts: bool) -> None:
        call = self.workloads[who].call
        before = self.read(who)
        began = time.perf_counter()
        if self.is_async:
            took = await run_async(call, self.at_once, seconds)
        else:
            took = run_sync(call, self.at_once, seconds)
        elapsed = time.perf_counter() - began
        spent = [b - a for a, b in zip(before, self.read(who), strict=True)]
        if counts:
            self.rounds[who].append(
                {
                    "ops": len(took) / elapsed,
                    "client": spent[0] / len(took) * 1e6,
                    "service": spent[1] / len(took) * 1e6,
                    "postgres": spent[2] / len(took) * 1e6,
                    "p50": statistics.median(took) * 1e3,
                }
            )

    def read(self, who: str) -> tuple[float, float, float]:
        server = {"connect": self.options.service, "http-json": self.options.proxy_pid}.get(who)
        service = cpu(iter([server])) if server else 0.0
        return time.process_time(), service, cpu(family(self.options.postgres))

    def result(self) -> dict[str, Any]:
        keys = ("ops", "client", "service", "postgres", "p50")
        return {
            "workload": self.name,
            "atOnce": self.at_once,
            "contenders": {
                who: {key: statistics.median(it[key] for it in rounds) for key in keys}
                for who, rounds in self.rounds.items()
            },
        }


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--url", required=True)
    parser.add_argument("--dsn", required=True)
    parser.add_argument("--proxy")
    parser.add_argument("--service", type=int, required=True, help="the service's process")
    parser.add_argument("--proxy-pid", type=int)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("cells", nargs="+", help="such as aput:32")
    options = parser.parse_args()
    with psycopg.connect(options.dsn) as connection:
        options.postgres = parent(connection.info.backend_pid)
    async with open_savers(options) as savers:
        for each in options.cells:
            name, at_once = each.split(":")
            kind = "async" if name.startswith("a") else "sync"
            cell = Cell(name, int(at_once), savers[kind], options)
            await cell.run(savers["sync"]["direct"])
            print(json.dumps(cell.result()), flush=True)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    asyncio.run(main())
