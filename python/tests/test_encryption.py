"""Encryption at the agent: all goes on, nothing is told, and nothing false is believed."""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest
from both import DIRECT, OURS, Both, rows, shown
from graphs import BEGINS, KINDS, failures, first, then
from langchain_core.messages import HumanMessage
from langgraph.checkpoint.conformance import checkpointer_test, validate
from langgraph.checkpoint.conformance.capabilities import ALL_CAPABILITIES
from langgraph.checkpoint.postgres import PostgresSaver
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.checkpoint.serde.types import TASKS
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import interrupt
from test_interop import BENT, PLAIN, arun, checkpoint_of, config_of, run

from checkpointd import ConnectSaver, Encryption, EncryptionError, Key, keyring, recover_threads

OLD, NEW = bytes(range(32)), bytes(range(1, 33))
KEYS = keyring("old", {"old": OLD})


def connect(service, keys=KEYS, **more):
    graph = more.pop("graph", None)
    return ConnectSaver(service.url, encryption=Encryption(keys, **more), graph=graph)


@pytest.fixture
def saver(service):
    with connect(service) as made:
        yield made


@pytest.fixture
def direct(service):
    with PostgresSaver.from_conn_string(service.dsn) as made:
        made.setup()
        yield made


def refused(reason, call, says="."):
    with pytest.raises(EncryptionError, match=says) as failure:
        call()
    assert failure.value.reason == reason


# All goes on as without it.


@pytest.mark.parametrize("durability", ["sync", "async", "exit"])
@pytest.mark.parametrize("name", KINDS)
def test_graph_is_the_same_to_the_direct_saver(name, durability, saver, direct, service, thread):
    both = Both(saver, direct)
    graph = KINDS[name]().compile(checkpointer=both)
    config = {"configurable": {"thread_id": thread, "user": "ü"}, "metadata": {"n": 1.5}}
    failures.clear()
    run(graph, first(name), config, durability)
    for at in range(2):
        run(graph, then(name, at), config, durability)
    history = list(graph.get_state_history(config))
    forked = graph.update_state(history[len(history) // 2].config, then(name, 7), BEGINS[name])
    run(graph, None, forked, durability)
    assert list(both.list(config, filter={"source": "loop"}, limit=5))
    assert list(both.list(config, before=history[0].config))
    told = graph.get_state(config, subgraphs=True)
    assert told.values and both.calls > 10
    # How both stand is told from rows that only have their names in common.
    ours, theirs = (saver.threads.get(thread + it) for it in (OURS, DIRECT))
    assert (ours.status, ours.pending_nodes) == (theirs.status, theirs.pending_nodes)
    stored = rows(service.dsn, thread + OURS)
    assert {it[3] for it in stored["checkpoint_blobs"]} <= {"aes256gcm", "aes256gcm+idle", "empty"}
    assert {it[6] for it in stored["checkpoint_writes"]} <= {"aes256gcm"}


@pytest.mark.parametrize("durability", ["sync", "async", "exit"])
@pytest.mark.parametrize("name", KINDS)
async def test_graph_is_the_same_asynchronously(name, durability, service, thread):
    if name == "subgraph" and sys.version_info < (3, 11):
        pytest.skip("LangGraph's interrupt in an asynchronous run needs Python 3.11")
    async with AsyncPostgresSaver.from_conn_string(service.dsn) as direct, connect(service) as made:
        await direct.setup()
        both = Both(made, direct)
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
        assert [it async for it in both.alist(config, before=history[0].config)]
        assert (await graph.aget_state(config, subgraphs=True)).values


class Synchronous(ConnectSaver):
    """Answers the suite's asynchronous calls with the synchronous methods."""

    async def aget_tuple(self, *args, **kwargs):
        return self.get_tuple(*args, **kwargs)

    async def aput(self, *args, **kwargs):
        return self.put(*args, **kwargs)

    async def aput_writes(self, *args, **kwargs):
        return self.put_writes(*args, **kwargs)


@pytest.mark.parametrize("kind", [ConnectSaver, Synchronous])
async def test_conforms(kind, service):
    @checkpointer_test(name=kind.__name__)
    async def made():
        # The suite copies threads.
        encryption = Encryption(KEYS, accept_copies=True)
        async with kind(service.url, encryption=encryption) as saver:
            yield saver

    report = await validate(made)
    report.print_report()
    assert set(report.results) == {it.value for it in ALL_CAPABILITIES}
    for capability, result in report.results.items():
        assert result.detected and result.passed, (capability, result.failures)
        assert result.tests_passed > 0 and not result.tests_skipped


def test_values_come_back_and_are_not_told(saver, service, thread):
    values = {f"channel {at}": value for at, value in enumerate([*PLAIN, *BENT.values()])}
    versions = {name: saver.get_next_version(None) for name in values}
    config = saver.put(config_of(thread), checkpoint_of(values, versions), {"step": 1}, versions)
    assert shown(saver.get_tuple(config).checkpoint["channel_values"]) == shown(values)
    # Of those that are not new nothing is stored again.
    config = saver.put(config, checkpoint_of(values, versions), {"step": 2}, {})
    for told in (saver.get_tuple(config), next(saver.list(config_of(thread)))):
        assert shown(told.checkpoint["channel_values"]) == shown(values)
    for at, value in enumerate(PLAIN):
        saver.put_writes(config, [("c", value), ("__resume__", value)], f"task {at:03}", "~path")
    told = [value for _, channel, value in saver.get_tuple(config).pending_writes if channel == "c"]
    assert shown(told) == shown(PLAIN)
    # What Python keeps in the JSON is hidden, whatever it is.
    checkpoint = json.loads(rows(service.dsn, thread)["checkpoints"][-1][4])
    assert set(checkpoint["channel_values"].values()) == {"encrypted"}
    assert "größer" not in repr(rows(service.dsn, thread))


@pytest.mark.parametrize("form", ["sync", "async"])
def test_a_question_is_told_with_the_keys_and_only_then(form, saver, service, thread):
    def ask(state):
        return {"messages": [interrupt({"question": "secret?"})]}

    graph = StateGraph(MessagesState).add_node("ask", ask).add_edge(START, "ask")
    graph.compile(checkpointer=saver).invoke({"messages": ["hi"]}, config_of(thread))

    def get(by, **more):
        if form == "sync":
            return by.threads.get(thread, **more)
        return asyncio.run(by.threads.aget(thread, **more))

    (asked,) = get(saver, with_reasons=True).interrupts
    assert (asked.value, asked.name, asked.unread) == ({"question": "secret?"}, "ask", None)
    with ConnectSaver(service.url) as without:
        (closed,) = get(without, with_reasons=True).interrupts
        assert closed.value is None and "it is encrypted" in closed.unread
    with connect(service, keyring("new", {"new": NEW})) as other:
        (closed,) = get(other, with_reasons=True).interrupts
        assert closed.value is None and "'old'" in closed.unread


def test_nothing_of_the_graph_is_readable(saver, service, thread):
    graph = KINDS["sends"]().compile(checkpointer=saver)
    config = {"configurable": {"thread_id": thread}}
    graph.invoke({"log": ["a secret"], "text": "a secret"}, config)
    assert "a secret" in graph.get_state(config).values["log"]
    stored = repr(rows(service.dsn, thread))
    assert "secret" not in stored and "größer" not in stored
    assert "branch:to:work" in stored or "__pregel_tasks" in stored


def test_old_checkpoints_get_their_parents_sends(saver, direct, thread):
    both = Both(saver, direct)
    parent = both.put(config_of(thread), checkpoint_of({}, {}, v=3), {}, {})
    for task, path in (("t2", "~a"), ("t1", "~b"), ("t3", "~a")):
        both.put_writes(parent, [(TASKS, f"{task} 1"), ("c", 1), (TASKS, f"{task} 2")], task, path)
    child = both.put(parent, checkpoint_of({}, {"c": 3, "d": 4}, v=3), {}, {})
    told = both.get_tuple(child).checkpoint
    assert told["channel_values"][TASKS] == ["t2 1", "t2 2", "t3 1", "t3 2", "t1 1", "t1 2"]
    assert len(list(both.list(config_of(thread)))) == 2


def test_a_chat_is_sent_as_what_it_grows_by(service, thread):
    def grown(thread, **options):
        with ConnectSaver(service.url, **options) as saver:
            sent = []
            call = saver._client.call
            saver._client.call = lambda name, request, **more: (
                sent.append(request.ByteSize()) or call(name, request, **more)
            )
            graph = StateGraph(MessagesState)
            graph.add_node("say", lambda _: {"messages": [HumanMessage(os.urandom(2_000).hex())]})
            chat = graph.add_edge(START, "say").compile(checkpointer=saver)
            config = {"configurable": {"thread_id": thread}}
            for _ in range(20):
                said = chat.invoke({"messages": [os.urandom(2_000).hex()]}, config)["messages"]
        with ConnectSaver(service.url, encryption=options.get("encryption")) as reader:
            told = reader.get_tuple(config).checkpoint["channel_values"]["messages"]
            assert [it.content for it in told] == [it.content for it in said]
        return sum(sent)

    encryption = Encryption(KEYS)
    plain, encrypted, whole = (
        grown(f"{thread} 1"),
        grown(f"{thread} 2", encryption=encryption),
        grown(f"{thread} 3", encryption=encryption, value_cache_bytes=0),
    )
    assert encrypted < 2.5 * plain and encrypted < whole / 4


def test_recovery(service, thread):
    with connect(service, graph=f"graph of {thread}") as saver:
        graph = StateGraph(MessagesState)
        graph.add_node("one", lambda _: {"messages": ["one"]})
        graph.add_node("two", lambda _: {"messages": ["two"]})
        graph.add_edge(START, "one")
        graph.add_edge("one", "two")
        paused = graph.compile(checkpointer=saver, interrupt_before=["two"])
        config = {"configurable": {"thread_id": thread}}
        paused.invoke({"messages": ["in"]}, config)
        assert saver.threads.get(thread).status == "pending"
        summary = recover_threads(saver, graph.compile(checkpointer=saver), grace=0)
        assert summary.resumed == 1
        told = graph.compile(checkpointer=saver).get_state(config).values["messages"]
        assert [it.content for it in told] == ["in", "one", "two"]


# Keys.


def test_keys_are_rotated(service, thread, saver):
    graph = KINDS["subgraph"]()
    config = {"configurable": {"thread_id": thread}}
    graph.compile(checkpointer=saver).invoke(first("subgraph"), config)
    with connect(service, keyring("new", {"old": OLD, "new": NEW})) as rotated:
        assert graph.compile(checkpointer=rotated).get_state(config).values
        graph.compile(checkpointer=rotated).update_state(config, {"log": ["more"]})
        refused("KEY_UNKNOWN", lambda: saver.get_tuple(config), "the key 'new', which")
    with connect(service, keyring("new", {"old": NEW, "new": OLD})) as wrong:
        refused("NOT_AUTHENTIC", lambda: wrong.get_tuple(config), "or the key 'new' is another one")


class Kms:
    """Keys that are wrapped in their ids, had from elsewhere."""

    def __init__(self, secret=OLD, pause=0.0):
        self.secret, self.pause, self.calls = secret, pause, 0
        self._current = None

    async def _call(self, data):
        self.calls += 1
        await asyncio.sleep(self.pause)
        return bytes(a ^ b for a, b in zip(data, self.secret, strict=True))

    async def current(self):
        if self._current is None:
            key = os.urandom(32)
            self._current = Key((await self._call(key)).hex(), key)
        return self._current

    async def by_id(self, id):
        return await self._call(bytes.fromhex(id))


async def test_keys_may_have_to_be_awaited(service, thread):
    async with connect(service, Kms()) as saver:
        config = await saver.aput(
            config_of(thread), checkpoint_of({"c": [1]}, {"c": "1"}), {}, {"c": "1"}
        )
        await saver.aput_writes(config, [("c", 2)], "t")
    kms = Kms()
    async with connect(service, kms) as reader:
        for _ in range(3):
            told = await reader.aget_tuple(config)
        assert [it async for it in reader.alist(config_of(thread))] == [told]
        assert told.checkpoint["channel_values"] == {"c": [1]}
        assert told.pending_writes == [("t", "c", 2)]
        assert kms.calls == 1
        with pytest.raises(TypeError, match="only the asynchronous methods"):
            connect(service, Kms()).get_tuple(config)


async def test_cancelled_write_waits_for_its_key_and_is_carried_out(service, thread):
    async with connect(service, Kms(pause=0.05)) as saver:
        config = config_of(thread)
        first_id = await saver.aput(config, checkpoint_of({}, {}), {}, {})
        saver._sealing._options.keys._current = None
        put = asyncio.create_task(
            saver.aput(first_id, checkpoint_of({"c": [7]}, {"c": "1"}, id="2"), {}, {"c": "1"})
        )
        write = asyncio.create_task(saver.aput_writes(first_id, [("c", 8)], "t"))
        await asyncio.sleep(0.01)
        put.cancel()
        write.cancel()
        for task in (put, write):
            with pytest.raises(asyncio.CancelledError):
                await task
        for _ in range(100):
            told = await saver.aget_tuple(config_of(thread, checkpoint_id="2"))
            written = (await saver.aget_tuple(first_id)).pending_writes
            if told and written:
                break
            await asyncio.sleep(0.05)
        assert told.checkpoint["channel_values"] == {"c": [7]}
        assert written == [("t", "c", 8)]


def test_options_are_checked(service):
    for keys, says in (
        ({"k": b"x" * 31}, "the encryption key 'k' must be of 32 bytes"),
        ({"l": b"x" * 32}, "there is no key 'k' among"),
        ({"": b"x" * 32, "k": b"x" * 32}, "must be a text of 1 to 1024 bytes"),
    ):
        with pytest.raises(ValueError, match=says):
            keyring("k", keys)
    with pytest.raises(TypeError, match="encryption must be an Encryption, not dict"):
        ConnectSaver(service.url, encryption={"keys": KEYS})
    assert "\\x00" not in repr(Encryption(KEYS)) and "\\x00" not in repr(Key("k", OLD))


def test_pickle(service, thread, saver):
    config = saver.put(config_of(thread), checkpoint_of({"c": [1]}, {"c": "1"}), {}, {"c": "1"})
    made = pickle.loads(pickle.dumps(saver))
    assert made.get_tuple(config).checkpoint["channel_values"] == {"c": [1]}
    failure = EncryptionError("COPIED", "a sentence")
    told = pickle.loads(pickle.dumps(failure))
    assert (told.reason, str(told)) == ("COPIED", "a sentence")


def test_nothing_needs_cryptography_but_encryption(service):
    code = """
import sys
sys.modules["cryptography"] = None
from checkpointd import ConnectSaver, Encryption, keyring
ConnectSaver("http://127.0.0.1:9").close()
try:
    ConnectSaver("http://127.0.0.1:9", encryption=Encryption(keyring("k", {"k": bytes(32)})))
except ImportError as error:
    assert 'pip install "checkpointd[encryption]"' in str(error), error
else:
    raise AssertionError
"""
    subprocess.run([sys.executable, "-c", code], check=True)


# Plaintext, and threads of other names.


def test_plaintext_is_read_only_while_it_is_accepted(service, thread, saver):
    graph = KINDS["sends"]()
    config = {"configurable": {"thread_id": thread}}
    with ConnectSaver(service.url) as plain:
        graph.compile(checkpointer=plain).invoke(first("sends"), config)
        refused("PLAINTEXT", lambda: saver.get_tuple(config), "it is not encrypted")
        with connect(service, accept_plaintext=True) as migrating:
            before = graph.compile(checkpointer=plain).get_state(config).values
            graph.compile(checkpointer=migrating).update_state(config, {"log": ["more"]})
            told = graph.compile(checkpointer=migrating).get_state(config).values
            assert told == {**before, "log": [*before["log"], "more"]}
            assert len(list(migrating.list(config))) > 2
        refused("ENCRYPTED", lambda: plain.get_tuple(config), "give the saver its encryption")
    # What Python keeps in the JSON is encrypted with the checkpoint: here there is nothing else.
    values, versions = {"n": 1}, {"n": "1"}
    with ConnectSaver(service.url) as plain, connect(service, accept_plaintext=True) as migrating:
        at = plain.put(config_of(f"{thread} 2"), checkpoint_of(values, versions), {}, versions)
        at = migrating.put(migrating.get_tuple(at).config, checkpoint_of(values, versions), {}, {})
        assert saver.get_tuple(at).checkpoint["channel_values"] == values


def test_copies_are_read_only_where_they_are_accepted(service, thread, saver):
    graph = KINDS["subgraph"]()
    config = {"configurable": {"thread_id": thread}}
    copied = {"configurable": {"thread_id": f"{thread} copy"}}
    graph.compile(checkpointer=saver).invoke(first("subgraph"), config)
    saver.copy_thread(thread, f"{thread} copy")
    refused("COPIED", lambda: saver.get_tuple(copied), "was stored as 'thread-")

    def allow(old, new):
        return new == f"{old} copy"

    with connect(service, accept_copies=allow) as accepting:
        made = graph.compile(checkpointer=accepting)
        assert made.get_state(copied).values == made.get_state(config).values
        made.invoke(then("subgraph", 0), copied)
    # By one that did not read it before.
    with connect(service, accept_copies=allow) as accepting:
        latest = next(accepting.list(copied, limit=1)).config
    with connect(service, accept_copies=allow) as accepting:
        accepting.put_writes(latest, [("log", ["late"])], "late task")
        put = checkpoint_of({}, {})
        accepting.put(latest, put, {"step": 9}, {})
    with connect(service, accept_copies=allow) as accepting:
        told = accepting.get_tuple(latest)
        assert ("late task", "log", ["late"]) in told.pending_writes
        assert accepting.get_tuple(copied).checkpoint["id"] == put["id"]
        assert len(list(accepting.list(copied))) > 3


# What whoever writes to the database may try; src/client/encryption_attacks.test.ts tries more.


def blob_of(channel="secret", version="2", thread="mine"):
    return (
        f"thread_id = %({thread})s AND checkpoint_ns = '' AND channel = '{channel}' "
        f"AND version = '{version}'"
    )


def write_of(idx=0):
    return f"thread_id = %(mine)s AND checkpoint_id = 'b' AND task_id = 't' AND idx = {idx}"


def row_of(id="b", thread="mine"):
    return f"thread_id = %({thread})s AND checkpoint_ns = '' AND checkpoint_id = '{id}'"


def blob(change):
    return f"UPDATE checkpoint_blobs SET {change} WHERE {blob_of()}"


def write(change):
    return f"UPDATE checkpoint_writes SET {change} WHERE {write_of()}"


def row(change):
    return f"UPDATE checkpoints SET checkpoint = {change} WHERE {row_of()}"


def of(table, where):
    return f"(type, blob) = (SELECT type, blob FROM {table} WHERE {where})"


LAST = "octet_length(blob) - 9"
PLANTED = "type = 'null', blob = ''"
NOT_AUTHENTIC = {
    "a value altered": blob(f"blob = set_byte(blob, {LAST}, get_byte(blob, {LAST}) # 1)"),
    "a type altered": blob("type = 'aes256gcm+idle'"),
    "an older value": blob(of("checkpoint_blobs", blob_of(version="1"))),
    "another channel's value": blob(of("checkpoint_blobs", blob_of("other"))),
    "another thread's value": blob(of("checkpoint_blobs", blob_of(thread="theirs"))),
    "another idx": write(of("checkpoint_writes", write_of(1))),
    "another task's write": write("task_id = 'u'"),
    "another channel's write": write("channel = 'other'"),
    "a write of another path": write("task_path = '~x'"),
    "an older version": row("""jsonb_set(checkpoint, '{channel_versions,secret}', '"1"')"""),
    "the seal damaged": row("""checkpoint || '{"checkpointd_seal": "?"}'"""),
    "an older checkpoint": row(f"(SELECT checkpoint FROM checkpoints WHERE {row_of('a')})"),
}
ATTACKS = {
    **{name: ("NOT_AUTHENTIC", attack) for name, attack in NOT_AUTHENTIC.items()},
    "a value planted": ("PLAINTEXT", blob(PLANTED)),
    "a write planted": ("PLAINTEXT", write(PLANTED)),
    "the seal removed": ("PLAINTEXT", row("checkpoint - 'checkpointd_seal'")),
    "a value removed": ("WITHHELD", f"DELETE FROM checkpoint_blobs WHERE {blob_of()}"),
    "another thread's checkpoint": (
        "COPIED",
        row(f"(SELECT checkpoint FROM checkpoints WHERE {row_of(thread='theirs')})"),
    ),
}


@pytest.mark.parametrize("name", ATTACKS)
async def test_attack(name, service, thread, saver):
    theirs = f"{thread} theirs"
    for each in (thread, theirs):
        config = config_of(each)
        for id, version in (("a", "1"), ("b", "2")):
            values = {"secret": [each, id], "other": [id, each], "inline": "text"}
            versions = dict.fromkeys(values, version)
            put = checkpoint_of(values, versions, id=id)
            config = saver.put(config, put, {"step": 1}, versions)
            saver.put_writes(config, [("secret", [each, id]), ("secret", [2])], "t", "~t")

    def listed():
        return next(saver.list(config_of(thread)))

    for read in (lambda: saver.get_tuple(config_of(thread)), listed):
        told = read()
        assert told.checkpoint["channel_values"]["secret"] == [thread, "b"]
        assert told.checkpoint["channel_values"]["inline"] == "text"
        assert len(told.pending_writes) == 2
    reason, attack = ATTACKS[name]
    with psycopg.connect(service.dsn) as connection:
        changed = connection.execute(attack, {"mine": thread, "theirs": theirs})
        assert changed.rowcount == 1
    refused(reason, lambda: saver.get_tuple(config_of(thread)))
    refused(reason, listed)
    with pytest.raises(EncryptionError):
        await saver.aget_tuple(config_of(thread))
    assert saver.get_tuple(config_of(theirs))
    saver.delete_thread(thread)
    saver.delete_thread(theirs)


def test_more_of_a_history_than_belongs_to_it(service, thread, saver, monkeypatch):
    config = config_of(thread)
    for at, id in enumerate("abc"):
        values = {"delta": [id]} if id != "c" else {}
        put = checkpoint_of(values, {"delta": str(at)}, id=id)
        config = saver.put(config, put, {"step": at}, {"delta": str(at)})
    stream = saver._client.stream

    def longer(name, request, kind, took, begin):
        yield from stream(name, request, kind, took, begin)
        request.checkpoint_id = "b"
        yield from [it for it in stream(name, request, kind, took) if it.checkpoint_id == "a"]

    monkeypatch.setattr(saver._client, "stream", longer)
    told = saver.get_delta_channel_history(config=config, channels=["delta"])
    assert told == {"delta": {"writes": [], "seed": ["b"]}}


def test_what_a_lying_service_tells_a_second_time(thread, saver, monkeypatch):
    parent = saver.put(config_of(thread), checkpoint_of({}, {}, id="a"), {}, {})
    saver.put_writes(parent, [(TASKS, "sent")], "t", "~t")
    config = saver.put(parent, checkpoint_of({}, {}, id="b"), {}, {})
    saver.put_writes(config, [("__resume__", "yes")], "t", "~t")
    call = saver._client.call

    def sent(tuple):
        tuple.pending_sends.add().CopyFrom(tuple.pending_writes[0].value)

    def twice(tuple):
        again = tuple.pending_writes.add()
        again.CopyFrom(tuple.pending_writes[0])
        again.task_path = "~zz"

    assert saver.get_tuple(config).pending_writes == [("t", "__resume__", "yes")]
    for alter, says in ((sent, "was told what its parent sent"), (twice, "is told twice")):

        def lie(name, request, alter=alter, **more):
            answer = call(name, request, **more)
            alter(answer.get_tuple.tuple)
            return answer

        monkeypatch.setattr(saver._client, "call", lie)
        refused("NOT_AUTHENTIC", lambda: saver.get_tuple(config), says)


def test_attacks_on_a_history(service, thread, saver):
    config = config_of(thread)
    ids = "abcd"
    for at, id in enumerate(ids):
        versions = {"delta": str(at)}
        config = saver.put(config, checkpoint_of({}, versions, id=id), {"step": at}, versions)
        saver.put_writes(config, [("delta", id)], "t", "~t")

    def history(id="d"):
        told = saver.get_delta_channel_history(
            config=config_of(thread, checkpoint_id=id), channels=["delta"]
        )
        return [value for _, _, value in told["delta"]["writes"]]

    assert history() == ["a", "b", "c"] and history("") == ["a", "b", "c"]
    assert history("unknown") == []
    row = "thread_id = %(thread)s AND checkpoint_id ="
    for reason, attack in (
        ("NOT_AUTHENTIC", f"UPDATE checkpoints SET parent_checkpoint_id = 'a' WHERE {row} 'd'"),
        ("WITHHELD", f"UPDATE checkpoints SET parent_checkpoint_id = NULL WHERE {row} 'd'"),
        ("WITHHELD", f"DELETE FROM checkpoints WHERE {row} 'a'"),
        ("WITHHELD", f"DELETE FROM checkpoints WHERE {row} 'd'"),
        ("PLAINTEXT", f"UPDATE checkpoint_writes SET type = 'null', blob = '' WHERE {row} 'b'"),
        ("NOT_AUTHENTIC", f"UPDATE checkpoint_writes SET channel = 'x' WHERE {row} 'c'"),
    ):
        with psycopg.connect(service.dsn) as connection:
            assert connection.execute(attack, {"thread": thread}).rowcount == 1
            connection.commit()
            if "'x'" in attack:
                # A write that is not told at all: that rows are gone nothing can tell.
                assert history() == ["a", "b"]
            else:
                refused(reason, history)
            tables = ("checkpoints", "checkpoint_writes", "checkpoint_blobs")
            for table in tables:
                connection.execute(f"DELETE FROM {table} WHERE thread_id = %s", (thread,))
        config = config_of(thread)
        for at, id in enumerate(ids):
            versions = {"delta": str(at)}
            config = saver.put(config, checkpoint_of({}, versions, id=id), {"step": at}, versions)
            saver.put_writes(config, [("delta", id)], "t", "~t")
        assert history() == ["a", "b", "c"]


# With the JavaScript saver.

AGENT = Path(__file__).parents[2] / "dist/src/testing/encrypted_agent.js"


@pytest.fixture
def javascript(service):
    keys = {"current": "js", "js": NEW.hex(), "old": OLD.hex()}
    process = subprocess.Popen(
        ["node", str(AGENT), service.url, json.dumps(keys)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def ask(**order):
        process.stdin.write(json.dumps(order) + "\n")
        process.stdin.flush()
        told = json.loads(process.stdout.readline())
        if "error" in told:
            raise EncryptionError(told.get("reason") or told["error"], told["message"])
        return told["result"]

    yield ask
    process.stdin.close()
    # Also after a history that it did not read to its end.
    process.wait(15)


LARGE = [f"line {n} {'x' * 200}" for n in range(400)]


def test_javascript_reads_what_python_wrote_and_goes_on(service, thread, saver, javascript):
    config = config_of(thread)
    values = {
        "list": [1, "größer 🎉", None],
        "text": "inline",
        "flag": False,
        "nothing": None,
        "large": LARGE[:300],
    }
    versions = {name: saver.get_next_version(None) for name in values}
    at = saver.put(config, checkpoint_of(values, versions), {"step": 3, "source": "loop"}, versions)
    saver.put_writes(at, [("list", [2]), ("__resume__", "yes"), ("text", "späti")], "t", "~t")
    told = javascript(config=config)
    assert told["channel_values"] == values
    assert told["metadata"] == {"step": 3, "source": "loop"}
    written = [("t", "list", [2]), ("t", "__resume__", "yes"), ("t", "text", "späti")]
    assert sorted(map(tuple, told["writes"]), key=str) == sorted(written, key=str)
    # Grown, so that the chunks of the one before are in it.
    new = {**versions, "large": saver.get_next_version(versions["large"])}
    grown = {**values, "large": LARGE}
    put = checkpoint_of(grown, new)
    at = saver.put(at, put, {}, {"large": new["large"]})
    assert javascript(config=config)["channel_values"] == grown
    # JavaScript inlines nothing: what it did not alter of Python's it has to store now.
    javascript(config=config, values={"list": ["js"]})
    with connect(service, keyring("js", {"js": NEW, "old": OLD})) as both:
        told = both.get_tuple(config).checkpoint["channel_values"]
        assert told == {**grown, "list": ["js"]}
        assert javascript(config=config)["channel_values"] == told
    refused("KEY_UNKNOWN", lambda: saver.get_tuple(config), "the key 'js'")


def test_python_reads_what_javascript_wrote_and_goes_on(service, thread, javascript):
    with connect(service, keyring("old", {"old": OLD, "js": NEW})) as saver:
        config = config_of(thread)
        values = {"list": [1, "größer 🎉", None], "text": "t", "flag": True, "large": LARGE[:300]}
        javascript(config=config, values=values)
        at = saver.get_tuple(config)
        assert at.checkpoint["channel_values"] == values
        javascript(config=at.config, writes=[["list", [2]], ["__resume__", "yes"]])
        assert saver.get_tuple(config).pending_writes == [
            ("js task", "__resume__", "yes"),
            ("js task", "list", [2]),
        ]
        javascript(config=config, values={"large": LARGE})
        told = saver.get_tuple(config)
        assert told.checkpoint["channel_values"] == {**values, "large": LARGE}
        versions = told.checkpoint["channel_versions"]
        new = {**versions, "text": saver.get_next_version(versions["text"])}
        put = checkpoint_of({**values, "large": LARGE, "text": "python"}, new)
        saver.put(told.config, put, {}, {"text": new["text"]})
        expected = {**values, "large": LARGE, "text": "python"}
        assert javascript(config=config)["channel_values"] == expected
        assert [it.checkpoint["channel_values"]["text"] for it in saver.list(config)] == [
            "python",
            "t",
            "t",
        ]


def test_each_reads_the_others_delta_channels_and_refuses_the_same(service, thread, javascript):
    with connect(service, keyring("old", {"old": OLD, "js": NEW})) as saver:
        config = config_of(thread)
        for at, id in enumerate("abc"):
            versions = {"delta": saver.get_next_version(str(at))}
            config = saver.put(config, checkpoint_of({}, versions, id=id), {"step": at}, versions)
            if id == "b":
                javascript(config=config, writes=[["delta", [id]]])
            else:
                saver.put_writes(config, [("delta", [id])], "t", "~t")
        writes = javascript(config=config, history=["delta"])["delta"]["writes"]
        told = saver.get_delta_channel_history(config=config, channels=["delta"])
        expected = [("t", "delta", ["a"]), ("js task", "delta", ["b"])]
        assert told["delta"]["writes"] == expected
        assert list(map(tuple, writes)) == expected
        with psycopg.connect(service.dsn) as connection:
            connection.execute(
                "UPDATE checkpoints SET parent_checkpoint_id = 'a' "
                "WHERE thread_id = %s AND checkpoint_id = 'c'",
                (thread,),
            )
        for read in (
            lambda: javascript(config=config, history=["delta"]),
            lambda: saver.get_delta_channel_history(config=config, channels=["delta"]),
        ):
            refused("NOT_AUTHENTIC", read, "it was told where .b. belongs")
