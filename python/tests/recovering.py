"""What the tests of recovery share: a graph of two nodes, left before the second, and recovered."""

from __future__ import annotations

import asyncio
import inspect
import time
from typing import TypedDict

import pytest
from langgraph.graph import END, START, StateGraph

from checkpointd import arecover_threads, recover_threads

BOTH = pytest.mark.parametrize("form", ["sync", "async"])


class State(TypedDict):
    n: int


def config_of(thread, **more):
    return {"configurable": {"thread_id": thread, **more}}


def recover(form, saver, graph, **options):
    """Recovers what nobody touched, in one form or the other."""
    options = {"grace": 0, **options}
    if form == "sync":
        return recover_threads(saver, graph, **options)
    return asyncio.run(arecover_threads(saver, graph, **options))


def compiled(saver, node, form="sync", **more):
    """A graph of two nodes, of which the second is given, in the form that is wanted."""

    async def anode(state):
        told = node(state)
        return await told if inspect.isawaitable(told) else told

    graph = StateGraph(State).add_node("before", lambda state: {"n": 1})
    graph.add_node("node", node if form == "sync" else anode)
    graph.add_edge(START, "before").add_edge("before", "node").add_edge("node", END)
    return graph.compile(checkpointer=saver, **more)


def leave(saver, thread):
    graph = compiled(saver, lambda state: {"n": 2}, interrupt_before=["node"])
    graph.invoke({"n": 0}, config_of(thread))


def pause_of(form, seconds):
    return time.sleep(seconds) if form == "sync" else asyncio.sleep(seconds)


def owners_of(sql, prefix):
    query = "select thread_id from checkpointd_claims where thread_id like %s order by 1"
    return [name for (name,) in sql.execute(query, (prefix + "%",)).fetchall()]
