"""What a saver takes and refuses, and how it looks to LangGraph."""

from __future__ import annotations

import asyncio
import inspect
import os
import threading
from typing import TypedDict

import pytest
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.graph import START, StateGraph
from test_interop import checkpoint_of, config_of

import checkpointd
from checkpointd import CheckpointdError, ConnectSaver, Retry


def test_every_method_is_there_by_langgraphs_own_names():
    for name, method in inspect.getmembers(BaseCheckpointSaver, inspect.isfunction):
        if name.startswith("_") or name in ("get", "aget", "with_allowlist"):
            continue
        own = getattr(ConnectSaver, name)
        assert own is not method, name
        assert list(inspect.signature(own).parameters) == list(
            inspect.signature(method).parameters
        ), name
        assert own.__doc__, name


def test_everything_public_is_documented():
    for name in checkpointd.__all__:
        thing = getattr(checkpointd, name)
        assert inspect.getdoc(thing) or name == "LEASE_TOKEN", name
    for name, member in inspect.getmembers(ConnectSaver):
        if not name.startswith("_") and callable(member):
            assert inspect.getdoc(member), name


def test_made_without_a_loop_and_without_a_service():
    threads, files = threading.active_count(), len(os.listdir("/dev/fd"))
    saver = ConnectSaver("http://127.0.0.1:9")
    saver.setup()
    assert (threading.active_count(), len(os.listdir("/dev/fd"))) == (threads, files)
    assert repr(saver) == "ConnectSaver('http://127.0.0.1:9')"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"timeout": 0}, "timeout must be"),
        ({"graph": ""}, "graph must be a name"),
        ({"graph": "a\0"}, "graph must not contain a NUL"),
    ],
)
def test_options_that_are_not_allowed(options, words):
    with pytest.raises(ValueError, match=words):
        ConnectSaver("http://127.0.0.1:9", **options)
    with pytest.raises(ValueError, match=r"retry\.attempts"):
        Retry(attempts=0)


@pytest.mark.parametrize(
    ("config", "error", "words"),
    [
        ({}, ValueError, 'put: the config has no "configurable"'),
        ({"configurable": {}}, ValueError, 'put: the config\'s "configurable" has no "thread_id"'),
        (config_of("a\0b"), ValueError, "configurable.thread_id must not contain a NUL"),
        (config_of("a\ud800"), ValueError, "configurable.thread_id must not contain a lone"),
        (config_of(object()), TypeError, "configurable.thread_id must be a string, not object"),
    ],
)
def test_names_that_cannot_be_stored(config, error, words, saver):
    with pytest.raises(error, match=words):
        saver.put(config, checkpoint_of({}, {}), {}, {})


def test_names_in_a_checkpoint_that_cannot_be_stored(saver, thread):
    for versions in ({"a\0": "1"}, {"a": "1\ud800"}):
        with pytest.raises(ValueError, match=r"in channel_versions must not contain"):
            saver.put(config_of(thread), checkpoint_of({}, versions), {}, {})
    with pytest.raises(TypeError, match='the value of channel "c" cannot be stored: .*convert it'):
        saver.put(config_of(thread), checkpoint_of({"c": [object()]}, {"c": 1}), {}, {"c": 1})
    with pytest.raises(TypeError, match='the write to channel "w" cannot be stored'):
        saver.put_writes(config_of(thread, checkpoint_id="x"), [("w", [2**70])], "t")
    with pytest.raises(CheckpointdError) as failure:
        saver.put(config_of("x" * 70_000), checkpoint_of({}, {}), {}, {})
    error = failure.value
    assert (error.code, error.reason, error.field) == ("invalid_argument", "TOO_LONG", "thread_id")
    assert error.limit == 65536


def test_thread_ids_that_are_numbers(saver):
    config = saver.put(config_of(774411), checkpoint_of({}, {}), {}, {})
    assert config["configurable"]["thread_id"] == 774411
    assert saver.get_tuple(config_of(774411)).config["configurable"]["thread_id"] == 774411
    assert saver.get_tuple(config_of("774411")).config["configurable"]["thread_id"] == "774411"
    saver.delete_thread(774411)


def test_graph_name_is_stored_and_not_read(service, thread):
    with ConnectSaver(service.url, graph="mine") as saver, ConnectSaver(service.url) as other:
        saver.put(config_of(thread), checkpoint_of({}, {}), {"step": 1}, {})
        for each in (saver, other):
            assert each.get_tuple(config_of(thread)).metadata == {"step": 1}
        found = list(other.list(config_of(thread), filter={"checkpointd_graph": "mine"}))
        assert len(found) == 1 and found[0].metadata == {"step": 1}


def test_lists_of_all_threads_and_none(saver, thread):
    config = saver.put(config_of(thread), checkpoint_of({}, {}), {"mark": thread}, {})
    assert len(list(saver.list(None, filter={"mark": thread}))) == 1
    assert len(list(saver.list({"configurable": {}}, filter={"mark": thread}))) == 1
    assert list(saver.list(config, limit=0)) == []
    assert len(list(saver.list(config, limit=2**40))) == 1
    with pytest.raises(ValueError, match="limit must be a whole number from 0"):
        list(saver.list(config, limit=-1))


async def test_nothing_to_do_is_no_call():
    saver = ConnectSaver("http://127.0.0.1:9", retry=Retry(attempts=1))
    saver.put_writes(config_of("t", checkpoint_id="c"), [], "task")
    await saver.aput_writes(config_of("t", checkpoint_id="c"), [], "task")
    assert saver.get_delta_channel_history(config=config_of("t"), channels=[]) == {}
    saver.delete_for_runs([])
    saver.prune([])
    with pytest.raises(TypeError, match="thread_ids must be a sequence"):
        saver.prune("abc")
    with pytest.raises(ValueError, match="strategy must be"):
        saver.prune(["a"], strategy="other")


def test_prune_and_delete_many(saver, thread):
    names = [f"{thread}-{at}" for at in range(1203)]
    for name in (names[0], names[1100]):
        config = config_of(name)
        for step in range(3):
            config = saver.put(config, checkpoint_of({}, {}), {"step": step, "run_id": name}, {})
    saver.prune(names)
    assert [len(list(saver.list(config_of(it)))) for it in (names[0], names[1100])] == [1, 1]
    saver.delete_for_runs(names)
    assert saver.get_tuple(config_of(names[1100])) is None


def test_graph_on_both_apis(saver, thread):
    class State(TypedDict):
        n: int

    graph = StateGraph(State).add_node("a", lambda state: {"n": state["n"] + 1})
    compiled = graph.add_edge(START, "a").compile(checkpointer=saver)
    config = {"configurable": {"thread_id": thread}}
    assert compiled.invoke({"n": 1}, config) == {"n": 2}
    assert asyncio.run(compiled.ainvoke({"n": 5}, config)) == {"n": 6}
    assert next(iter(compiled.get_state_history(config))).values == {"n": 6}
