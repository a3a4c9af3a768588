"""What recovery stores: nothing without the lease, and nothing more when it is to stop."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time

import pytest
from langgraph.graph import END, START, StateGraph
from langgraph.types import interrupt
from recovering import BOTH, State, compiled, config_of, leave, owners_of, recover

from checkpointd import (
    LEASE_TOKEN,
    CheckpointdError,
    ConnectSaver,
    RecoverySummary,
    arecover_threads,
    recover_threads,
)

# Leases.


@BOTH
def test_interrupted_threads_are_left_alone_and_failed_ones_keep_their_lease(
    form, named, thread, sql
):
    asks = compiled(named, lambda state: interrupt("?"))
    asks.invoke({"n": 0}, config_of(f"{thread}-asks"))
    leave(named, f"{thread}-fails")
    seen = []

    def fail(state):
        raise ValueError("not today")

    summary = recover(form, named, compiled(named, fail, form), on_recovered=seen.append)
    assert summary == RecoverySummary(failed=1)
    assert [(it.thread.thread_id, it.outcome, str(it.error)) for it in seen] == [
        (f"{thread}-fails", "failed", "not today")
    ]
    assert named.threads.get(f"{thread}-asks").status == "interrupted"
    assert named.threads.get(f"{thread}-fails").status == "failed"
    assert owners_of(sql, thread) == [f"{thread}-fails"]


@BOTH
@pytest.mark.parametrize("durability", ["sync", "async", "exit"])
def test_nothing_is_stored_when_the_lease_was_lost_in_a_step(form, durability, named, thread, sql):
    leave(named, thread)
    after = []

    def node(state):
        # Somebody else takes the thread while the step runs.
        sql.execute("update checkpointd_claims set token = 'x' where thread_id = %s", (thread,))
        return {"n": 3}

    graph = StateGraph(State).add_node("before", lambda state: {"n": 1}).add_node("node", node)
    graph.add_node("after", lambda state: after.append(1))
    graph.add_edge(START, "before").add_edge("before", "node").add_edge("node", "after")
    before = named.get_tuple(config_of(thread))
    seen = []
    summary = recover(
        form,
        named,
        graph.compile(checkpointer=named),
        durability=durability,
        on_recovered=seen.append,
    )
    assert summary == RecoverySummary(lost=1)
    assert seen[0].error.reason == "LEASE_LOST"
    assert named.get_tuple(config_of(thread)) == before
    if durability == "sync":
        # Nothing is done after the step whose result was refused.
        assert after == []
    sql.execute("delete from checkpointd_claims where thread_id = %s", (thread,))


@BOTH
def test_a_run_that_lost_its_lease_does_not_go_on_for_long(form, named, thread, sql):
    leave(named, thread)
    runs = []

    def node(state):
        runs.append(1)
        sql.execute("delete from checkpointd_claims where thread_id = %s", (thread,))
        time.sleep(0.1)
        return {"n": state["n"] + 1}

    graph = StateGraph(State).add_node("before", lambda state: {"n": 1}).add_node("node", node)
    graph.add_edge(START, "before").add_edge("before", "node")
    graph.add_conditional_edges("node", lambda state: "node" if state["n"] < 20 else END)
    graph = graph.compile(checkpointer=named)
    stop, seen = threading.Event(), []

    # Nobody waits for what it stores, and its lease is not to be renewed for long.
    async def arun():
        stop = asyncio.Event()
        options = {"on_recovered": lambda it: stop.set() or seen.append(it), "stop": stop}
        await arecover_threads(named, graph, grace=0, durability="async", **options)

    if form == "async":
        asyncio.run(arun())
    else:
        options = {"on_recovered": lambda it: stop.set() or seen.append(it), "stop": stop}
        recover(form, named, graph, durability="async", **options)
    assert [it.outcome for it in seen] == ["lost"]
    assert len(runs) < 8


@BOTH
def test_renews_while_a_long_step_runs(form, named, thread, sql):
    leave(named, thread)
    owners = []

    def long(state):
        def seen(_=None):
            owners.append(named.threads.get(thread).claim.owner)
            return {"n": 3}

        if form == "sync":
            time.sleep(2.5)
            return seen()

        async def wait():
            await asyncio.sleep(2.5)
            return seen()

        return wait()

    graph = compiled(named, long, form)
    summary = recover(form, named, graph, lease=2, owner="me")
    assert (summary, owners) == (RecoverySummary(resumed=1), ["me"])
    assert named.threads.get(thread).claim is None


def test_does_not_run_a_thread_again_while_its_lost_run_goes_on(named, thread, sql):
    leave(named, thread)
    at_once, most, stop = [0], [], threading.Event()

    def node(state):
        at_once[0] += 1
        most.append(at_once[0])
        if len(most) == 1:
            sql.execute("delete from checkpointd_claims where thread_id = %s", (thread,))
            time.sleep(0.5)
        at_once[0] -= 1
        return {"n": 3}

    def on_recovered(it):
        if it.outcome == "resumed":
            stop.set()

    graph = compiled(named, node)
    options = {"concurrency": 2, "poll": 0.02, "stop": stop, "on_recovered": on_recovered}
    assert recover("sync", named, graph, **options) == RecoverySummary(lost=1, resumed=1)
    assert most == [1, 1]


@BOTH
def test_says_when_the_lease_was_lost_meanwhile(form, named, thread, sql):
    leave(named, thread)
    ended = []

    def robbed(state):
        sql.execute("delete from checkpointd_claims where thread_id = %s", (thread,))
        if form == "sync":
            time.sleep(1)
            return {"n": 3}

        async def wait():
            await asyncio.sleep(20)
            ended.append(1)

        return wait()

    stop = threading.Event() if form == "sync" else None
    seen = []

    def on_recovered(it):
        seen.append(it)
        if stop is not None:
            stop.set()

    graph = compiled(named, robbed, form)
    if form == "sync":
        summary = recover(form, named, graph, lease=1.2, on_recovered=on_recovered, stop=stop)
    else:

        async def once():
            stop = asyncio.Event()

            async def told(it):
                seen.append(it)
                stop.set()

            options = {"grace": 0, "lease": 1.2, "on_recovered": told, "stop": stop}
            return await arecover_threads(named, graph, **options)

        began = time.monotonic()
        summary = asyncio.run(once())
        # A loop can cancel what a thread cannot.
        assert time.monotonic() - began < 15 and ended == []
    assert summary == RecoverySummary(lost=1)
    assert seen[0].error.reason == "LEASE_LOST"
    assert named.threads.get(thread).status == "pending"


# Stops.


def test_stops_after_the_step_and_frees_what_it_held(named, thread):
    for at in range(3):
        leave(named, f"{thread}-{at}")
    stop, ran = threading.Event(), []

    def node(state):
        stop.set()
        time.sleep(0.1)
        return {"n": 3}

    graph = StateGraph(State).add_node("before", lambda state: {"n": 1}).add_node("node", node)
    graph.add_node("after", lambda state: ran.append(1))
    graph.add_edge(START, "before").add_edge("before", "node").add_edge("node", "after")
    graph = graph.compile(checkpointer=named)
    summary = recover("sync", named, graph, stop=stop, poll=10)
    assert (summary, ran) == (RecoverySummary(stopped=1), [])
    # What the step did is stored, and others go on after it.
    threads = list(named.threads.list(prefix=thread))
    assert [it.claim for it in threads] == [None] * 3
    assert sorted(it.pending_nodes[0] for it in threads) == ["after", "node", "node"]
    assert recover("sync", named, graph) == RecoverySummary(resumed=3)


async def test_stops_after_the_step_in_a_loop(named, thread):
    leave(named, thread)
    stop, ran = asyncio.Event(), []

    async def node(state):
        stop.set()
        await asyncio.sleep(0.1)
        return {"n": 3}

    async def after(state):
        ran.append(1)

    graph = StateGraph(State).add_node("before", lambda state: {"n": 1}).add_node("node", node)
    graph.add_node("after", after)
    graph.add_edge(START, "before").add_edge("before", "node").add_edge("node", "after")
    graph = graph.compile(checkpointer=named)
    summary = await arecover_threads(named, graph, stop=stop, poll=10, grace=0)
    assert (summary, ran) == (RecoverySummary(stopped=1), [])
    now = await named.threads.aget(thread)
    assert (now.claim, now.pending_nodes, now.status) == (None, ["after"], "pending")


async def test_a_stop_ends_the_wait_for_work(named, thread):
    stop = asyncio.Event()
    asyncio.get_running_loop().call_later(0.2, stop.set)
    graph = compiled(named, lambda state: {"n": 2})
    assert await arecover_threads(named, graph, poll=600, stop=stop) == RecoverySummary()
    event = threading.Event()
    threading.Timer(0.2, event.set).start()
    told = await asyncio.to_thread(recover_threads, named, graph, poll=600, stop=event)
    assert told == RecoverySummary()


async def test_a_cancelled_recovery_frees_its_threads_in_the_middle_of_a_step(named, thread):
    leave(named, thread)
    begun = asyncio.Event()

    async def node(state):
        begun.set()
        await asyncio.sleep(60)

    graph = compiled(named, node, "async")
    task = asyncio.create_task(arecover_threads(named, graph, grace=0))
    await asyncio.wait_for(begun.wait(), 30)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    now = await named.threads.aget(thread)
    # Not failed: nobody would resume it.
    assert (now.claim, now.status) == (None, "pending")
    quick = compiled(named, lambda state: {"n": 2})
    assert await arecover_threads(named, quick, grace=0) == RecoverySummary(resumed=1)


def test_ctrl_c_ends_runs_after_their_step_and_frees_their_threads(service, thread):
    # A shell that starts the tests in the background has them, and this, ignore it.
    code = f"""
import signal, time
from typing import TypedDict
from langgraph.graph import END, START, StateGraph
from checkpointd import ConnectSaver, recover_threads
class State(TypedDict):
    n: int
signal.signal(signal.SIGINT, signal.default_int_handler)
saver = ConnectSaver({service.url!r}, graph={thread!r})
def node(state):
    print("begun", flush=True)
    time.sleep(1)
    return {{"n": 2}}
graph = StateGraph(State).add_node("a", node).add_node("b", lambda state: print("b"))
graph = graph.add_edge(START, "a").add_edge("a", "b").compile(checkpointer=saver)
graph.interrupt_before_nodes = ["a"]
graph.invoke({{"n": 0}}, {{"configurable": {{"thread_id": {thread!r}}}}})
graph.interrupt_before_nodes = []
recover_threads(saver, graph, grace=0)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "begun\n"
    process.send_signal(2)
    out, errors = process.communicate(timeout=60)
    assert (out, "KeyboardInterrupt" in errors) == ("", True)
    with ConnectSaver(service.url) as saver:
        now = saver.threads.get(thread)
        assert (now.claim, now.pending_nodes) == (None, ["b"])


# Subgraphs.


@BOTH
def test_a_subgraphs_writes_are_fenced_too_and_the_token_is_kept_secret(form, saver, thread, sql):
    inner = StateGraph(State).add_node("deep", lambda state: {"n": 5}).add_edge(START, "deep")
    outer = StateGraph(State).add_node("inner", inner.compile()).add_edge(START, "inner")
    outer = outer.compile(checkpointer=saver)

    def invoke(n, config):
        if form == "sync":
            return outer.invoke({"n": n}, config)
        return asyncio.run(outer.ainvoke({"n": n}, config))

    leave(saver, thread)
    lease = saver.threads.claim(owner="me", thread_id=thread)[0]
    held = config_of(thread, **{LEASE_TOKEN: lease.token})
    invoke(0, held)
    query = """
        select count(*), count(*) filter (where checkpoint_ns <> ''),
            count(*) filter (where metadata::text || checkpoint::text like '%%' || %s || '%%')
        from checkpoints where thread_id = %s"""
    every, deep, told = sql.execute(query, (lease.token, thread)).fetchone()
    assert deep > 0 and told == 0
    saver.threads.release(thread, lease.token)
    with pytest.raises(CheckpointdError) as failure:
        invoke(1, held)
    assert failure.value.reason == "LEASE_LOST"
    assert sql.execute(query, (lease.token, thread)).fetchone() == (every, deep, 0)
