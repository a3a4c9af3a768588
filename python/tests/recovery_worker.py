"""A worker to kill: ``begin`` runs new threads, ``recover`` and ``arecover`` resume what is left.

It begins when it is told to. Every node says in the table ``journal`` when it begins and ends, and
who runs it. Arguments: the mode, the service's URL, the database's, the worker's name, the prefix
of the threads, and how many there are to begin.
"""

from __future__ import annotations

import asyncio
import operator
import random
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, TypedDict

import psycopg
from langgraph.graph import END, START, StateGraph

from checkpointd import ConnectSaver, arecover_threads, recover_threads

mode, url, dsn, worker, prefix, count = sys.argv[1:]
saver = ConnectSaver(url, graph=f"journey {prefix}")


class State(TypedDict):
    done: Annotated[list[str], operator.add]


def note(thread, node, what):
    with psycopg.connect(dsn) as sql:
        sql.execute(
            "insert into journal (thread, node, worker, what) values (%s, %s, %s, %s)",
            (thread, node, worker, what),
        )


def step(node):
    def run(state, config):
        thread = config["configurable"]["thread_id"]
        note(thread, node, "begin")
        time.sleep(0.01 + random.random() * 0.03)
        note(thread, node, "end")
        return {"done": [node]}

    async def arun(state, config):
        return await asyncio.to_thread(run, state, config)

    return arun if mode == "arecover" else run


builder = StateGraph(State)
for name in ("plan", "fetch", "write", "check", "send"):
    builder.add_node(name, step(name))
builder.add_edge(START, "plan")
builder.add_edge("plan", "fetch")
builder.add_edge("plan", "write")
builder.add_edge(["fetch", "write"], "check")
builder.add_edge("check", "send")
builder.add_edge("send", END)
graph = builder.compile(checkpointer=saver)

print("ready", flush=True)
sys.stdin.readline()
options = {
    "owner": worker,
    "concurrency": 3,
    "lease": 1,
    "grace": 0,
    "poll": 0.05,
    "durability": "sync",
}
if mode == "begin":
    with ThreadPoolExecutor(8) as pool:
        for at in range(int(count)):
            config = {"configurable": {"thread_id": f"{prefix}{at}"}}
            pool.submit(graph.invoke, {"done": []}, config, durability="sync")
elif mode == "recover":
    recover_threads(saver, graph, **options)
else:
    asyncio.run(arecover_threads(saver, graph, **options))
