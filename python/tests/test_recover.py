"""Recovery, in both forms: each thread once, whatever kills its workers, several at a time."""

from __future__ import annotations

import asyncio
import contextlib
import random
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TypedDict

import pytest
from langchain_core.runnables import RunnableConfig
from langgraph.graph import START, StateGraph
from langgraph.runtime import Runtime
from recovering import BOTH, State, compiled, config_of, leave, recover

from checkpointd import (
    CheckpointdError,
    ConnectSaver,
    RecoverySummary,
    arecover_threads,
)

NODES = ["check", "fetch", "plan", "send", "write"]


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
    sql.execute(
        "create table if not exists journal "
        "(n serial primary key, thread text, node text, worker text, what text)"
    )
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


# Several at once, and what they are given.


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
def test_raises_when_the_service_cannot_be_reached_after_what_runs_has_ended(form, named):
    graph = compiled(named, lambda state: {"n": 1})
    saver = ConnectSaver("http://127.0.0.1:9", timeout=1, graph=named.graph)
    graph.checkpointer = saver
    with pytest.raises(CheckpointdError) as failure:
        recover(form, saver, graph)
    assert failure.value.code == "unavailable"
