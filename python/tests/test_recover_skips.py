"""What a recovery does not run: threads of other graphs, and for a while those that are stuck."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import TypedDict

import psycopg
import pytest
from conftest import Service
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import Send
from recovering import BOTH, config_of, owners_of, recover

from checkpointd import ConnectSaver, RecoverySummary, arecover_threads, recover_threads
from checkpointd.pauses import Pauses


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


# Threads that do not move.


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
