"""With LangGraph's own Postgres savers: every operation to both, all rows and all reads equal."""

from __future__ import annotations

import http
import math
import random
import sys
from datetime import datetime, timezone
from uuid import uuid4

import pytest
from both import DIRECT, OURS, Both, renamed, rows, rows_are_equal, shown
from graphs import BEGINS, KINDS, failures, first, then
from langchain_core.messages import HumanMessage
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.base.id import uuid6
from langgraph.checkpoint.postgres import PostgresSaver
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.checkpoint.serde.types import TASKS, _DeltaSnapshot

from checkpointd import ConnectSaver


@pytest.fixture
def direct(service):
    with PostgresSaver.from_conn_string(service.dsn) as made:
        made.setup()
        yield made


@pytest.mark.parametrize("durability", ["sync", "async", "exit"])
@pytest.mark.parametrize("name", KINDS)
def test_graph_is_the_same_to_both(name, durability, saver, direct, service, thread):
    both = Both(saver, direct)
    graph = KINDS[name]().compile(checkpointer=both)
    config = {
        "configurable": {"thread_id": thread, "user": "ü"},
        "metadata": {"tag": "t", "n": 1.5},
    }
    failures.clear()
    run(graph, first(name), config, durability)
    for at in range(2):
        run(graph, then(name, at), config, durability)
    history = list(graph.get_state_history(config))
    # A fork in the middle, and on from there.
    forked = graph.update_state(history[len(history) // 2].config, then(name, 7), BEGINS[name])
    run(graph, None, forked, durability)
    assert list(graph.get_state_history(config, limit=3))
    assert list(both.list(config, filter={"source": "loop"}, limit=5))
    assert list(both.list(config, before=history[0].config))
    assert graph.get_state(config, subgraphs=True).values
    stored = rows_are_equal(service.dsn, thread)
    assert len(stored["checkpoints"]) > 2 and stored["checkpoint_blobs"]
    assert both.calls > 10
    both.delete_thread(thread)
    assert not any(rows_are_equal(service.dsn, thread).values())


def run(graph, given, config, durability):
    try:
        return graph.invoke(given, config, durability=durability)
    except ValueError as error:
        assert str(error) == "the first time"


@pytest.mark.parametrize("durability", ["sync", "async", "exit"])
@pytest.mark.parametrize("name", KINDS)
async def test_graph_is_the_same_to_both_asynchronously(name, durability, service, thread):
    if name == "subgraph" and sys.version_info < (3, 11):
        pytest.skip("LangGraph's interrupt in an asynchronous run needs Python 3.11")
    async with AsyncPostgresSaver.from_conn_string(service.dsn) as direct:
        await direct.setup()
        async with ConnectSaver(service.url) as saver:
            both = Both(saver, direct)
            graph = KINDS[name]().compile(checkpointer=both)
            config = {"configurable": {"thread_id": thread}}
            failures.clear()
            await arun(graph, first(name), config, durability)
            for at in range(2):
                await arun(graph, then(name, at), config, durability)
            history = [it async for it in graph.aget_state_history(config)]
            forked = await graph.aupdate_state(
                history[len(history) // 2].config, then(name, 7), BEGINS[name]
            )
            await arun(graph, None, forked, durability)
            assert [it async for it in both.alist(config, filter={"source": "loop"}, limit=5)]
            assert [it async for it in both.alist(config, before=history[0].config)]
            assert (await graph.aget_state(config, subgraphs=True)).values
            rows_are_equal(service.dsn, thread)
            await both.adelete_thread(thread)
            assert not any(rows_are_equal(service.dsn, thread).values())


async def arun(graph, given, config, durability):
    try:
        return await graph.ainvoke(given, config, durability=durability)
    except ValueError as error:
        assert str(error) == "the first time"


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("begun_by", ["ours", "direct"])
def test_thread_begun_by_one_goes_on_with_the_other(name, begun_by, saver, direct, thread):
    savers = (saver, direct) if begun_by == "ours" else (direct, saver)
    config = {"configurable": {"thread_id": thread}}
    # The same with one saver alone.
    alone = {"configurable": {"thread_id": f"{thread}-alone"}}
    outcomes = []
    failures.clear()
    for step, given in enumerate([first(name), then(name, 0), then(name, 1)]):
        before = set(failures)
        graph = KINDS[name]().compile(checkpointer=savers[step % 2])
        told = run(graph, given, config, "sync")
        failures.clear()
        failures.update(before)
        control = KINDS[name]().compile(checkpointer=direct)
        outcomes.append((told, run(control, given, alone, "sync")))
    for told, expected in outcomes:
        assert without_ids(told) == without_ids(expected)
    states = [KINDS[name]().compile(checkpointer=it).get_state(config) for it in savers]
    assert shown(states[0]) == shown(states[1])


def without_ids(told):
    return {key: each for key, each in (told or {}).items() if key != "__interrupt__"}


def config_of(thread, **more):
    return {"configurable": {"thread_id": thread, "checkpoint_ns": "", **more}}


def checkpoint_of(values, versions, id=None, v=4):
    return {
        "v": v,
        "id": id or str(uuid6()),
        "ts": datetime.now(timezone.utc).isoformat(),
        "channel_values": values,
        "channel_versions": versions,
        "versions_seen": {"__input__": {}, "node": dict(versions)},
        "updated_channels": sorted(values),
    }


PLAIN = [
    None, "", "text", "größer 🎉 \u2028", r"a\u0000b", "\\", 0, -1, 2**53 + 1, 2**63, True, False,
    0.5, 1.0, -2.25, 1e15, 1e-7, 5e-324, 123456789.125,
    [], [1, "a", None], {"a": {"b": [1.5]}}, {1: "int key"}, b"bytes\0", bytearray(b"x"), {3, 4},
    HumanMessage("hi", id="1"), datetime(2026, 1, 1, tzinfo=timezone.utc), uuid4(),
    _DeltaSnapshot([1, {"a": 2}]),
]  # fmt: skip


def test_values_are_the_same_rows(saver, direct, service, thread):
    both = Both(saver, direct)
    values = {f"channel {at}": value for at, value in enumerate([*PLAIN, 10**40])}
    versions = {name: both.get_next_version(None, None) for name in values}
    config = both.put(config_of(thread), checkpoint_of(values, versions), {"step": 1}, versions)
    told = both.get_tuple(config)
    assert shown(told.checkpoint["channel_values"]) == shown(values)
    # Of those that are not new nothing is stored again.
    config = both.put(config, checkpoint_of(values, versions), {"step": 2}, {})
    assert both.get_tuple(config) and list(both.list(config_of(thread)))
    stored = rows_are_equal(service.dsn, thread)
    assert len(stored["checkpoint_blobs"]) == 11
    for at, value in enumerate(PLAIN):
        both.put_writes(config, [("c", value), ("__resume__", value)], f"task {at}", f"~path {at}")
    both.put_writes(config, [("__error__", "e"), ("__interrupt__", [1])], "task 0", "~path 0")
    assert len(both.get_tuple(config).pending_writes) == 2 * len(PLAIN) + 2
    rows_are_equal(service.dsn, thread)


BENT = {
    "NUL": "a\0b",
    "NaN": math.nan,
    "infinity": -math.inf,
    "minus zero": -0.0,
    "large": 1e300,
    "just above": 1e16,
    "enum": http.HTTPMethod.GET if hasattr(http, "HTTPMethod") else http.HTTPStatus.OK,
    "int enum": http.HTTPStatus.NOT_FOUND,
}


def test_what_the_direct_saver_cannot_store_comes_back_exactly(saver, direct, thread):
    versions = {name: saver.get_next_version(None) for name in BENT}
    config = saver.put(config_of(thread), checkpoint_of(BENT, versions), {}, versions)
    assert shown(saver.get_tuple(config).checkpoint["channel_values"]) == shown(BENT)
    # And again, as the next step puts it, when it is not new.
    config = saver.put(config, checkpoint_of(BENT, versions), {}, {})
    assert shown(saver.get_tuple(config).checkpoint["channel_values"]) == shown(BENT)
    assert shown(direct.get_tuple(config).checkpoint["channel_values"]) == shown(BENT)
    saver.put_writes(config, list(BENT.items()), "t")
    writes = [(channel, value) for _, channel, value in saver.get_tuple(config).pending_writes]
    assert shown(writes) == shown(list(BENT.items()))


def test_metadata_is_the_same(saver, direct, service, thread):
    both = Both(saver, direct)
    config = {
        **config_of(thread, user="ü\0", n=1, __hidden="x", checkpoint_map={"": "1"}, obj=object()),
        "metadata": {
            "a": "b",
            "langgraph_step": 3,
            "thread_id": "no",
            "f": 0.25,
            "deep": {"no": 1},
        },
    }
    metadata = {"source": "loop", "step": 2, "parents": {"": "x"}, "writes": {"no": 1}, "s": "a\0b"}
    stored = both.put(config, checkpoint_of({}, {}), metadata, {})
    told = both.get_tuple(stored).metadata
    assert told["s"] == "ab" and told["user"] == "ü" and "writes" not in told
    rows_are_equal(service.dsn, thread)


def test_metadata_that_jsonb_cannot_hold_is_cleaned_or_refused(saver, thread):
    metadata = {"deep": {"nul\0": ["a\0b", "x\ud800y", math.nan, -math.inf]}, "r": r"a\u0000"}
    config = saver.put(config_of(thread), checkpoint_of({}, {}), metadata, {})
    told = saver.get_tuple(config).metadata
    assert told == {"deep": {"nul": ["ab", "x\ufffdy", None, None]}, "r": r"a\u0000"}
    with pytest.raises(TypeError, match='metadata cannot be stored as JSON under "when"'):
        saver.put(config_of(thread), checkpoint_of({}, {}), {"when": datetime.now()}, {})


def test_old_checkpoints_get_their_parents_sends(saver, direct, service, thread):
    both = Both(saver, direct)
    parent = both.put(config_of(thread), checkpoint_of({}, {}, v=3), {}, {})
    for task, path in (("t2", "~a"), ("t1", "~b"), ("t3", "~a")):
        both.put_writes(parent, [(TASKS, f"{task} 1"), ("c", 1), (TASKS, f"{task} 2")], task, path)
    child = both.put(parent, checkpoint_of({}, {"c": 3, "d": 4}, v=3), {}, {})
    told = both.get_tuple(child).checkpoint
    assert told["channel_values"][TASKS] == ["t2 1", "t2 2", "t3 1", "t3 2", "t1 1", "t1 2"]
    assert told["channel_versions"][TASKS] == 4
    assert len(list(both.list(config_of(thread)))) == 2


def test_any_sequence_of_operations(saver, direct, service, thread):
    both = Both(saver, direct)
    chance = random.Random(7)
    known = [config_of(thread)]
    versions: dict = {}
    for at in range(120):
        config = chance.choice(known)
        match chance.randrange(4):
            case 0 | 1:
                values = {f"c{n}": chance.choice(PLAIN) for n in range(chance.randrange(5))}
                new = {it: both.get_next_version(versions.get(it), None) for it in values}
                if chance.random() < 0.3:
                    new["emptied"] = both.get_next_version(None, None)
                versions = {**versions, **new}
                metadata = {"source": chance.choice(["loop", "input"]), "step": at}
                put = checkpoint_of(values, dict(versions))
                known.append(both.put(config, put, metadata, new))
            case 2 if "checkpoint_id" in config["configurable"]:
                channels = chance.choices(["c0", "c1", "__error__", "__resume__", TASKS], k=3)
                writes = [(channel, chance.choice(PLAIN)) for channel in channels]
                both.put_writes(
                    config, writes, f"t{chance.randrange(3)}", f"~p{chance.randrange(2)}"
                )
            case _:
                both.get_tuple(config)
                list(both.list(config_of(thread), limit=chance.choice([None, 1, 5])))
                if "checkpoint_id" in config["configurable"]:
                    both.get_delta_channel_history(config=config, channels=["c0", "c1", "none"])
    rows_are_equal(service.dsn, thread)
    for condition in ({"source": "loop"}, {"step": 5}, {"source": "input", "step": 3}, {}):
        list(both.list(config_of(thread), filter=condition))


@pytest.mark.parametrize("seed", [42, "x", "", 0.5, True, None, [1], _DeltaSnapshot(True)])
def test_history_ends_where_there_is_a_value(saver, direct, service, thread, seed):
    both = Both(saver, direct)
    config = config_of(thread)
    for step in range(4):
        put = checkpoint_of({"c": seed} if step == 1 else {}, {"c": f"v{step}"})
        config = both.put(config, put, {"step": step}, {"c": "v1"} if step == 1 else {})
        both.put_writes(config, [("c", f"w{step}")], f"t{step}")
    walked = BaseCheckpointSaver.get_delta_channel_history(
        saver, config=renamed(config, OURS), channels=["c"]
    )
    assert walked["c"]["writes"] == [("t1", "c", "w1"), ("t2", "c", "w2")]
    assert shown(walked["c"]["seed"]) == shown(seed)
    if seed is None:
        # To which the direct saver, unlike the base class and InMemorySaver, walks on: in its rows
        # as it reads them a None is no value.
        both = saver
        config = renamed(config, OURS)
    assert both.get_delta_channel_history(config=config, channels=["c"]) == walked


def test_list_of_many_with_few_changes(saver, direct, thread):
    both = Both(saver, direct)
    config, versions = config_of(thread), {}
    for at in range(150):
        versions["always"] = both.get_next_version(versions.get("always"), None)
        new = {"always": versions["always"]}
        if at % 40 == 0:
            new["rarely"] = versions["rarely"] = both.get_next_version(versions.get("rarely"), None)
        values = {"always": [at], "rarely": {"at": [at // 40]}}
        config = both.put(config, checkpoint_of(values, dict(versions)), {"step": at}, new)
    listed = list(both.list(config_of(thread)))
    assert [it.metadata["step"] for it in listed] == list(range(149, -1, -1))
    assert listed[100].checkpoint["channel_values"] == {"always": [49], "rarely": {"at": [1]}}
    # Nothing is shared between what was told.
    listed[0].checkpoint["channel_values"]["rarely"]["at"].append("x")
    assert listed[1].checkpoint["channel_values"]["rarely"] == {"at": [3]}
    assert len(list(both.list(config_of(thread), limit=70))) == 70


def test_copy_is_the_same(saver, direct, service, thread):
    graph = KINDS["subgraph"]().compile(checkpointer=saver)
    graph.invoke(first("subgraph"), {"configurable": {"thread_id": thread + OURS}})
    saver.copy_thread(thread + OURS, thread + DIRECT)
    assert rows(service.dsn, thread + OURS) == rows(service.dsn, thread + DIRECT)
