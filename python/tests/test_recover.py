"""Recovery, in both forms: each thread once, nothing foreign, nothing without the lease."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import random
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TypedDict

import psycopg
import pytest
from conftest import Service
from langchain_core.runnables import RunnableConfig
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.runtime import Runtime
from langgraph.types import Send, interrupt

from checkpointd import (
    LEASE_TOKEN,
    CheckpointdError,
    ConnectSaver,
    RecoverySummary,
    arecover_threads,
    recover_threads,
)
from checkpointd.pauses import Pauses

NODES = ["check", "fetch", "plan", "send", "write"]
BOTH = pytest.mark.parametrize("form", ["sync", "async"])


class State(TypedDict):
    n: int


@pytest.fixture
def sql(service):
    with psycopg.connect(service.dsn, autocommit=True) as connection:
        connection.execute(
            "create table if not exists journal "
            "(n serial primary key, thread text, node text, worker text, what text)"
        )
        yield connection


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


@pytest.fixture
def named(service, thread):
    """A saver whose graph's name no other test has."""
    with ConnectSaver(service.url, graph=f"graph of {thread}") as saver:
        yield saver


# Crashes.


def spawned(service, name, mode, prefix, count):
    script = str(Path(__file__).with_name("recovery_worker.py"))
    arguments = [mode, service.url, service.dsn, name, prefix, str(count)]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, script, *arguments], stdin=pipe, stdout=pipe, text=True
    )


def go(worker):
    worker.stdin.write("go\n")
    worker.stdin.flush()


def kill(worker):
    worker.kill()
    worker.wait()
    for pipe in (worker.stdin, worker.stdout):
        with contextlib.suppress(OSError):
            pipe.close()


@BOTH
def test_every_thread_is_finished_once_while_recoverers_are_killed(form, service, sql, thread):
    mode, prefix = ("recover" if form == "sync" else "arecover"), f"{thread}-"
    with ConnectSaver(service.url) as saver, contextlib.ExitStack() as stack:
        # A worker that is killed in the middle of many threads.
        names = [f"w{at}" for at in range(7)]
        workers = {
            name: spawned(service, name, mode if at else "begin", prefix, 24)
            for at, name in enumerate(names)
        }
        for worker in workers.values():
            stack.callback(kill, worker)
            assert worker.stdout.readline() == "ready\n"
        go(workers["w0"])
        count = 0
        while count < 70:
            query = "select count(*) from journal where thread like %s"
            (count,) = sql.execute(query, (prefix + "%",)).fetchone()
            assert workers["w0"].poll() is None
            time.sleep(0.01)
        kill(workers["w0"])
        killed, running, waiting = {"w0"}, [], names[1:]
        left = list(saver.threads.list(prefix=prefix, status="pending"))
        assert len(left) > 4
        while waiting:
            go(workers[waiting[0]])
            running.append(waiting.pop(0))
            if len(running) == 3:
                time.sleep(random.random() * 0.5)
                name = running.pop(random.randrange(3))
                kill(workers[name])
                killed.add(name)
        until = time.monotonic() + 90
        while list(saver.threads.list(prefix=prefix, status="pending")):
            assert time.monotonic() < until
            time.sleep(0.1)
        for name in running:
            kill(workers[name])
        threads = list(saver.threads.list(prefix=prefix))
        assert {it.status for it in threads} == {"completed"}
        assert len(threads) >= len(left)
        for it in threads:
            # Its steps, each once: the result of a step that was run again is stored once.
            done = saver.get_tuple(config_of(it.thread_id)).checkpoint["channel_values"]["done"]
            assert sorted(done) == NODES
        for it in threads:
            query = "select node, worker, what from journal where thread = %s order by n"
            entries = sql.execute(query, (it.thread_id,)).fetchall()
            # Workers take turns: once another has begun, the one before says nothing any more.
            turns = [
                by for at, (_, by, _) in enumerate(entries) if not at or entries[at - 1][1] != by
            ]
            assert len(set(turns)) == len(turns), turns
            # All but the last were killed in their turn.
            assert killed.issuperset(turns[:-1])
            for node in NODES:
                runs = [by for each, by, what in entries if (each, what) == (node, "begin")]
                # Run again only after a worker that was killed while it ran, or had just run, the
                # node: nothing of the thread that comes after it was begun in that turn.
                for by in runs[:-1]:
                    later = [
                        each
                        for each, other, what in entries
                        if (other, what) == (by, "begin") and place(each) > place(node)
                    ]
                    assert later == [], (it.thread_id, node, by)


def place(node):
    return next(
        at
        for at, names in enumerate(["plan", "fetch write", "check", "send"])
        if node in names.split()
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
    code = f"""
import time, _thread
from typing import TypedDict
from langgraph.graph import START, StateGraph
from checkpointd import ConnectSaver, recover_threads
class State(TypedDict):
    n: int
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


# Two graphs in one database.


class Bill(TypedDict):
    total: int


def billing(saver, charge="charge"):
    graph = StateGraph(Bill).add_node("load", lambda state: {"total": 10})
    graph.add_node(charge, lambda state: {"total": state["total"] * 2})
    return graph.add_edge(START, "load").add_edge("load", charge).compile(checkpointer=saver)


def chat(saver):
    graph = StateGraph(MessagesState).add_node("agent", lambda state: {"messages": ["Hello!"]})
    return graph.add_edge(START, "agent").compile(checkpointer=saver)


@pytest.fixture(scope="module")
def apart(service):
    """A service on a database of its own, for what looks at all threads."""
    with psycopg.connect(service.dsn, autocommit=True) as connection:
        connection.execute("create database recovery")
    url = service.dsn.rsplit("/", 1)[0] + "/recovery"
    made = Service("--database-url", url)
    made.dsn = url
    yield made
    made.stop()


class Shared:
    """Savers of two graphs and one without a name, on one database."""

    def __init__(self, service, sql):
        self.sql = sql
        self.savers = {
            "billing": ConnectSaver(service.url, graph="billing"),
            "chat": ConnectSaver(service.url, graph="chat"),
            "nameless": ConnectSaver(service.url),
        }

    def __getattr__(self, name):
        return self.savers[name]

    def crash(self, at, thread, by="billing"):
        """A thread of billing whose worker was killed: with its input stored, or before charge."""
        billing(self.savers[by]).invoke({"total": 0}, config_of(thread))
        self.sql.execute(
            "delete from checkpoints where thread_id = %s and (metadata ->> 'step')::int > %s",
            (thread, -1 if at == "input" else 1),
        )
        self.sql.execute("delete from checkpoint_writes where thread_id = %s", (thread,))
        assert self.nameless.threads.get(thread).status == "pending"


@pytest.fixture
def shared(apart):
    with psycopg.connect(apart.dsn, autocommit=True) as sql:
        made = Shared(apart, sql)
        yield made
        for each in made.savers.values():
            each.close()
        sql.execute("truncate checkpoints, checkpoint_blobs, checkpoint_writes, checkpointd_claims")


@BOTH
@pytest.mark.parametrize("at", ["input", "charge"])
def test_leaves_the_others_thread_alone(form, at, shared):
    for by in ("billing", "nameless"):
        for other in ("chat", "nameless"):
            thread = f"invoice {by} {other}"
            shared.crash(at, thread, by)
            saver = shared.savers[other]
            reasons, runs = [], []
            summary = recover(
                form,
                saver,
                chat(saver),
                prefix=thread,
                on_recovered=runs.append,
                on_skipped=lambda thread, reason, to=reasons: to.append(reason),
            )
            # Without names it is looked at, and is not chat's by what it names.
            is_looked_at = by == other == "nameless"
            assert (summary, runs) == (RecoverySummary(skipped=int(is_looked_at)), [])
            assert owners_of(shared.sql, "") == []
            if is_looked_at:
                named = 'channel "total"' if at == "input" else 'node "charge"'
                assert named in str(reasons[0]) and "the graph does not know" in str(reasons[0])
            own = shared.savers[by]
            summary = recover(form, own, billing(own), prefix=thread)
            assert summary == RecoverySummary(resumed=1)
            state = billing(own).get_state(config_of(thread))
            assert (state.values, state.next) == ({"total": 20}, ())


def test_a_graph_of_the_same_nodes_and_other_channels_is_another(shared):
    class Other(TypedDict):
        amount: int

    shared.crash("charge", "thread", "nameless")
    graph = StateGraph(Other).add_node("load", lambda state: {"amount": 1})
    graph.add_node("charge", lambda state: {"amount": 2})
    graph = graph.add_edge(START, "load").add_edge("load", "charge")
    reasons = []
    summary = recover(
        "sync",
        shared.nameless,
        graph.compile(checkpointer=shared.nameless),
        on_skipped=lambda thread, reason: reasons.append(str(reason)),
    )
    assert summary == RecoverySummary(skipped=1)
    assert reasons == [
        "thread 'thread' was left alone: the graph does not know channel \"total\", and the thread "
        "carries no graph's name"
    ]


@BOTH
def test_takes_threads_without_a_name_when_told_to(form, shared):
    shared.crash("charge", "old", "nameless")
    shared.crash("charge", "named")
    shared.crash("charge", "chats", "chat")
    graph = billing(shared.billing)
    assert recover(form, shared.billing, graph, prefix="old") == RecoverySummary()
    assert recover(form, shared.billing, graph, unnamed=True) == RecoverySummary(resumed=2)
    told = [shared.chat.threads.get(it) for it in ("old", "named", "chats")]
    # And names them.
    assert [it.graph for it in told] == ["billing", "billing", "chat"]
    assert told[2].status == "pending"


def test_skips_a_thread_of_another_version_and_leaves_it_to_that(shared):
    shared.crash("charge", "renamed")
    stop, skipped = threading.Event(), []
    told = []
    old = threading.Thread(
        target=lambda: told.append(
            recover(
                "sync",
                shared.billing,
                billing(shared.billing, "charge_card"),
                poll=0.005,
                stop=stop,
                on_skipped=lambda thread, reason: skipped.append((thread.thread_id, reason)),
            )
        )
    )
    old.start()
    until = time.monotonic() + 30
    while not skipped and time.monotonic() < until:
        time.sleep(0.01)
    time.sleep(0.3)
    # Only once, over many polls, and free for the others at once.
    assert [name for name, _ in skipped] == ["renamed"]
    assert 'the graph does not know node "charge"' in str(skipped[0][1])
    summary = recover("sync", shared.billing, billing(shared.billing))
    assert summary == RecoverySummary(resumed=1)
    stop.set()
    old.join(30)
    assert told == [RecoverySummary(skipped=1)]


@BOTH
def test_skips_what_was_sent_to_a_node_that_is_not_there(form, shared):
    def build(worker, **more):
        graph = StateGraph(Bill).add_node("plan", lambda state: {"total": 1})
        graph.add_node(worker, lambda state: {"total": 2}).add_edge(START, "plan")
        graph.add_conditional_edges("plan", lambda state: [Send(worker, {"total": 1})], [worker])
        return graph.compile(checkpointer=shared.billing, **more)

    build("worker", interrupt_before=["worker"]).invoke({"total": 0}, config_of("sent"))
    assert "__pregel_tasks" in shared.billing.threads.get("sent").pending_nodes
    summary = recover(form, shared.billing, build("another"))
    assert summary == RecoverySummary(skipped=1)
    assert recover(form, shared.billing, build("worker")) == RecoverySummary(resumed=1)


@BOTH
def test_goes_past_threads_that_it_skips(form, shared):
    for at in range(3):
        shared.crash("charge", f"own {at}")
    for at in range(5):
        name = f"foreign {at}"
        shared.crash("charge", name)
        shared.sql.execute(
            "update checkpoints set checkpoint = replace(checkpoint::text, 'branch:to:charge', "
            "'branch:to:gone')::jsonb where thread_id = %s",
            (name,),
        )
    # The foreign ones are the newest.
    graph = billing(shared.billing)
    summary = recover(form, shared.billing, graph, concurrency=2)
    assert summary == RecoverySummary(resumed=3, skipped=5)


class Idle:
    """A graph that is run and does nothing, or what it is given."""

    def __init__(self, graph, run=lambda config: None):
        self.nodes, self.channels, self.run, self.runs = graph.nodes, graph.channels, run, []

    def stream(self, given, config, **more):
        self.runs.append(time.monotonic())
        self.run(config)
        yield {}

    async def astream(self, given, config, **more):
        self.runs.append(time.monotonic())
        await asyncio.to_thread(self.run, config)
        yield {}


@BOTH
def test_does_not_hot_loop_over_a_thread_that_does_not_move(form, shared):
    shared.crash("charge", "stuck")
    graph, seen = Idle(billing(shared.billing)), []

    async def workers():
        stops = [threading.Event() if form == "sync" else asyncio.Event() for _ in range(3)]
        calls = []
        for stop in stops:
            options = {"grace": 0, "poll": 0.005, "stop": stop, "on_recovered": seen.append}
            if form == "sync":
                calls.append(asyncio.to_thread(recover_threads, shared.billing, graph, **options))
            else:
                calls.append(arecover_threads(shared.billing, graph, **options))
        running = [asyncio.create_task(it) for it in calls]
        while not seen:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.3)
        assert (len(graph.runs), [it.outcome for it in seen]) == (1, ["stuck"])
        # It stays under its lease, and is no longer renewed.
        assert owners_of(shared.sql, "") == ["stuck"]
        for stop in stops:
            stop.set()
        return [it.stuck for it in await asyncio.gather(*running)]

    assert sorted(asyncio.run(workers())) == [0, 0, 1]


def test_tries_again_when_the_lease_has_run_out_twice_as_late_each_time(shared):
    shared.crash("charge", "stuck again")
    stop = threading.Event()

    def run(config):
        if len(graph.runs) == 3:
            # By itself it would wait 4 s now.
            threading.Timer(1.5, stop.set).start()

    graph = Idle(billing(shared.billing), run)
    summary = recover("sync", shared.billing, graph, lease=1, poll=0.02, stop=stop)
    assert summary == RecoverySummary(stuck=3)
    first, second, third = graph.runs
    assert second - first >= 0.99 and third - second >= 1.99


@BOTH
def test_what_tasks_stored_is_progress_though_the_graph_failed(form, shared):
    shared.crash("charge", "progress")
    ended = []

    def run(config):
        told = shared.billing.get_tuple(config)
        keys = {**told.config["configurable"], **config["configurable"]}
        # As a step does that times out when some of its tasks are done; at last when none is.
        channel = "total" if len(graph.runs) < 3 else "__resume__"
        writes = [(channel, 3)]
        shared.billing.put_writes({"configurable": keys}, writes, f"task {len(graph.runs)}")
        raise ValueError("a step's timeout")

    graph = Idle(billing(shared.billing), run)

    def on_recovered(it):
        # As if its lease had run out.
        shared.sql.execute("delete from checkpointd_claims")
        ended.append(it.outcome)

    async def worker():
        stop = threading.Event() if form == "sync" else asyncio.Event()
        options = {"grace": 0, "poll": 0.005, "stop": stop, "on_recovered": on_recovered}
        if form == "sync":
            call = asyncio.to_thread(recover_threads, shared.billing, graph, **options)
        else:
            call = arecover_threads(shared.billing, graph, **options)
        running = asyncio.create_task(call)
        while len(ended) < 3:
            await asyncio.sleep(0.01)
        # Nothing of the third was progress.
        await asyncio.sleep(0.3)
        stop.set()
        return await running

    assert asyncio.run(worker()) == RecoverySummary(failed=3)


@BOTH
def test_runs_several_at_once_and_none_twice(form, named, thread):
    for at in range(9):
        leave(named, f"{thread}-{at}")
    at_once, most = [0], []

    def node(state):
        at_once[0] += 1
        most.append(at_once[0])

        def end():
            at_once[0] -= 1
            return {"n": 3}

        if form == "sync":
            time.sleep(0.2)
            return end()

        async def wait():
            await asyncio.sleep(0.2)
            return end()

        return wait()

    graph = compiled(named, node, form)
    assert recover(form, named, graph, concurrency=3) == RecoverySummary(resumed=9)
    assert (len(most), max(most)) == (9, 3)


@BOTH
def test_looks_for_work_while_a_long_run_goes_on(form, named, thread):
    leave(named, f"{thread}-first")
    began, other = threading.Event(), threading.Event()

    def node(state):
        began.set()
        # Until the one that comes later was taken.
        assert other.wait(30)
        return {"n": 3}

    def second(state):
        other.set()
        return {"n": 3}

    def run(state, config):
        is_first = config["configurable"]["thread_id"].endswith("first")
        return (node if is_first else second)(state)

    run.__annotations__["config"] = RunnableConfig
    graph = StateGraph(State).add_node("before", lambda state: {"n": 1}).add_node("node", run)
    graph.add_edge(START, "before").add_edge("before", "node")
    graph = graph.compile(checkpointer=named)

    def later():
        began.wait(30)
        leave(named, f"{thread}-second")

    threading.Thread(target=later).start()
    seen = []

    async def worker():
        stop = asyncio.Event()

        def on_recovered(it):
            seen.append(it.outcome)
            if len(seen) == 2:
                stop.set()

        options = {"concurrency": 2, "poll": 0.05, "grace": 0, "on_recovered": on_recovered}
        return await arecover_threads(named, graph, stop=stop, **options)

    if form == "async":
        assert asyncio.run(worker()) == RecoverySummary(resumed=2)
        return
    stop = threading.Event()

    def on_recovered(it):
        seen.append(it.outcome)
        if len(seen) == 2:
            stop.set()

    options = {"concurrency": 2, "poll": 0.05, "on_recovered": on_recovered}
    summary = recover("sync", named, graph, stop=stop, **options)
    assert summary == RecoverySummary(resumed=2)


@BOTH
def test_a_graph_may_have_a_saver_of_its_own(form, named, thread, sql, service):
    with ConnectSaver(service.url, graph=named.graph) as own:
        leave(own, f"{thread}-moves")
        graph = compiled(own, lambda state: {"n": 2}, form)
        assert recover(form, named, graph) == RecoverySummary(resumed=1)
        leave(own, f"{thread}-lost")

        def node(state):
            sql.execute("delete from checkpointd_claims where thread_id like %s", (thread + "%",))
            return {"n": 2}

        stop, seen = threading.Event(), []
        if form == "sync":
            graph = compiled(own, node)
            recover(
                form, named, graph, stop=stop, on_recovered=lambda it: stop.set() or seen.append(it)
            )
        else:

            async def once():
                stop = asyncio.Event()
                await arecover_threads(
                    named,
                    compiled(own, node, form),
                    grace=0,
                    stop=stop,
                    on_recovered=lambda it: stop.set() or seen.append(it),
                )

            asyncio.run(once())
        assert [it.outcome for it in seen] == ["lost"]


def test_names_config_and_context_reach_the_graph(named, thread):
    class Context(TypedDict):
        word: str

    seen = []

    def node(state, config, runtime):
        seen.append((runtime.context["word"], config["configurable"]["mine"], config["tags"]))

    node.__annotations__.update(config=RunnableConfig, runtime=Runtime[Context])
    graph = StateGraph(State, context_schema=Context).add_node("before", lambda state: {"n": 1})
    graph.add_node("node", node).add_edge(START, "before").add_edge("before", "node")
    leave(named, thread)
    config = {"configurable": {"mine": 1}, "tags": ["tag"]}
    graph = graph.compile(checkpointer=named)
    summary = recover("sync", named, graph, config=config, context={"word": "hi"})
    assert summary == RecoverySummary(resumed=1)
    assert seen == [("hi", 1, ["tag"])]
    assert config == {"configurable": {"mine": 1}, "tags": ["tag"]}


@BOTH
def test_says_what_is_wrong(form, shared):
    nameless, graph = shared.nameless, billing(shared.chat)
    with pytest.raises(TypeError, match="give the saver the option graph"):
        recover(form, nameless, type("Graph", (), {"nodes": {}})())
    with pytest.raises(TypeError, match="with a saver of 'chat', and threads of 'billing'"):
        recover(form, shared.billing, graph)
    for options, words in (
        ({"concurrency": 0}, "concurrency must be a whole number from 1, not 0"),
        ({"lease": "1m"}, "lease must be a timedelta or a number of seconds"),
        ({"poll": -1}, "poll must be .* from 0, not -1"),
        ({"stop": True}, "stop must be an? .*Event, not True"),
        ({"status": "failed"}, "recover_threads has no argument status"),
        ({"grase": 1}, "has no argument grase: did you mean grace"),
    ):
        with pytest.raises((TypeError, ValueError), match=words):
            recover(form, shared.chat, graph, **options)


def test_a_graph_that_is_async_only_is_refused_before_anything_is_run(shared):
    async def charge(state):
        return {"total": 1}

    graph = StateGraph(Bill).add_node("load", lambda state: {"total": 10})
    graph.add_node("charge", charge).add_edge(START, "load").add_edge("load", "charge")
    graph = graph.compile(checkpointer=shared.billing)
    shared.crash("charge", "thread")
    with pytest.raises(TypeError, match="the node 'charge' is async: use arecover_threads"):
        recover("sync", shared.billing, graph)
    assert shared.billing.threads.get("thread").status == "pending"
    assert recover("async", shared.billing, graph) == RecoverySummary(resumed=1)


@BOTH
def test_raises_when_the_service_cannot_be_reached_after_what_runs_has_ended(form, named):
    graph = compiled(named, lambda state: {"n": 1})
    saver = ConnectSaver("http://127.0.0.1:9", timeout=1, graph=named.graph)
    graph.checkpointer = saver
    with pytest.raises(CheckpointdError) as failure:
        recover(form, saver, graph)
    assert failure.value.code == "unavailable"


def test_pauses_are_twice_as_long_each_time_an_hour_at_most():
    now = [0.0]
    pauses, lengths = Pauses(60, lambda: now[0]), []
    for _ in range(9):
        pauses.pause("a")
        begun = now[0]
        assert pauses.threads() == ["a"]
        while pauses.threads():
            now[0] += 30
        lengths.append((now[0] - begun) / 60)
    assert lengths == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    pauses.forget("a")
    pauses.pause("a")
    now[0] += 59
    pauses.pause("b")
    assert pauses.threads() == ["a", "b"]
    now[0] += 2
    assert pauses.threads() == ["b"]
    # Anew with a thread that nobody claimed for long.
    now[0] += 200
    assert pauses.threads() == []
    pauses.pause("b")
    now[0] += 61
    assert pauses.threads() == []
