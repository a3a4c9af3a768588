"""Of large values that have most of the one before, only the rest is sent."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any
from uuid import uuid4

import ormsgpack
import pytest
from both import rows
from langchain_core.messages import AIMessage, HumanMessage
from langgraph.checkpoint.base.id import uuid6
from langgraph.checkpoint.postgres import PostgresSaver
from langgraph.graph import START, StateGraph
from langgraph.graph.message import add_messages
from typing_extensions import TypedDict

from checkpointd import CheckpointdError, ConnectSaver
from checkpointd.errors import NotCarried
from checkpointd.kept_bytes import KeptBytes, kept_bytes
from checkpointd.value_cache import Large, ValueCache


def restored(stored: bytes, value: bytes, kept: KeptBytes) -> bytes:
    offset, head, length = kept
    return value[:head] + stored[offset : offset + length] + value[head + length :]


def message(i: int) -> str:
    return f"{i} {'word ' * 200}"


def messages(first: int, end: int) -> list[str]:
    return [message(i) for i in range(first, end)]


# Which bytes are kept.


@pytest.mark.parametrize(
    ("before", "offset", "head"),
    [(14, 1, 1), (15, 1, 3), (16, 3, 3), (255, 3, 3), (65_535, 3, 5)],
)
def test_all_of_a_list_in_msgpack_but_its_header_is_kept(before, offset, head):
    texts = [str(i) for i in range(before + 1)] if before > 1000 else messages(0, before + 1)
    stored = ormsgpack.packb(texts[:-1])
    value = ormsgpack.packb(texts)
    kept = kept_bytes(stored, value)
    assert restored(stored, value, kept) == value
    # The header's own bytes may be equal at their end.
    assert len(stored) - offset <= kept.length <= len(stored) - offset + 2
    assert kept.head - kept.offset == head - offset


def test_a_window_of_the_last_messages_keeps_what_it_has_of_the_one_before():
    stored, value = ormsgpack.packb(messages(0, 40)), ormsgpack.packb(messages(3, 43))
    kept = kept_bytes(stored, value)
    assert restored(stored, value, kept) == value
    assert kept.length >= len(stored) - len(ormsgpack.packb(messages(0, 3))) - 3


def test_the_beginning_is_kept_where_it_is_half_of_the_stored_value_or_more():
    stored, value = b"a" * 20_000 + b"b" * 10_000, b"a" * 20_000 + b"c" * 50_000
    assert kept_bytes(stored, value) == (0, 0, 20_000)


def test_nothing_is_kept_of_values_that_have_nothing_in_common():
    one, other = b"\1" * 50_000, b"\2" * 50_000
    assert kept_bytes(one, other) == kept_bytes(one, b"") == kept_bytes(b"", one) == (0, 0, 0)


def test_the_value_comes_back_from_what_is_kept_and_sent_whatever_changed():
    seed = int(time.time())
    rng = random.Random(seed)
    for _ in range(3000):
        # Few different bytes have the anchor in many places.
        letters = rng.choice([1, 2, 3, 256])

        def some(most: int, letters: int = letters) -> bytes:
            return bytes(rng.randrange(letters) for _ in range(rng.randrange(most)))

        stored = value = b"".join(some(2000) for _ in range(rng.randrange(1, 4)))
        for _ in range(rng.randrange(4)):
            at = rng.randrange(len(value) + 1)
            to = at if rng.random() < 0.5 else rng.randrange(at, len(value) + 1)
            value = value[:at] + some(50) + value[to:]
        kept = kept_bytes(stored, value)
        assert restored(stored, value, kept) == value, seed
        assert 0 <= kept.offset <= len(stored) - kept.length, seed
        assert 0 <= kept.head <= len(value) - kept.length, seed


@pytest.mark.parametrize("letters", [b"\0", b"ab", b"abcabd", bytes(range(256))])
def test_values_in_which_nothing_can_be_found_cost_little(letters):
    rng = random.Random(1)
    one, other = (bytes(rng.choices(letters, k=400_000)) * 10 for _ in range(2))
    began = time.thread_time()
    kept_bytes(one, other)
    # 4 MB, which took the serializer longer.
    assert time.thread_time() - began < 0.25


# What is remembered.


def large(key: str, size: int) -> list[Large]:
    return [Large(0, ("thread", "", key), "1", bytes(size))]


def test_the_values_put_last_are_remembered_up_to_a_number_of_bytes():
    cache = ValueCache(100_000)
    for name in "abcde":
        cache.remember(large(name, 20_000), "7")
    cache.remember(large("a", 20_000), "8")
    cache.remember(large("f", 30_000), "9")
    found = [it for it in "abcdef" if cache.extend(large(it, 20_000))]
    assert found == ["a", "d", "e", "f"]
    cache.forget(large("a", 20_000))
    assert not cache.extend(large("a", 20_000))
    cache.remember(large("b", 20_000), "7")
    assert [it for it in "abcdef" if cache.extend(large(it, 20_000))] == ["b", "d", "e", "f"]


def test_many_threads_leave_the_cache_within_its_bytes():
    cache = ValueCache(400_000)

    def work(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(300):
            values = large(str(rng.randrange(50)), rng.randrange(16_384, 40_000))
            cache.extend(values)
            (cache.forget if rng.random() < 0.2 else lambda it: cache.remember(it, "7"))(values)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    left = sum(len(it.data) for it in cache._values.values())
    assert left == cache._bytes <= 400_000


# What is sent, and what is stored.


class Sent:
    """The operations that a saver sends, and how many bytes of each."""

    def __init__(self, saver: ConnectSaver, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[tuple[str, int]] = []
        client = saver._client
        call, acall = client.call, client.acall

        def told(name: str, request: Any) -> None:
            self.seen.append((name, request.ByteSize()))

        def once(name: str, request: Any, *rest: Any) -> Any:
            told(name, request)
            return call(name, request, *rest)

        async def aonce(name: str, request: Any, *rest: Any) -> Any:
            told(name, request)
            return await acall(name, request, *rest)

        monkeypatch.setattr(client, "call", once)
        monkeypatch.setattr(client, "acall", aonce)

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.seen if name.startswith("put")]


@pytest.fixture
def sent(saver: ConnectSaver, monkeypatch: pytest.MonkeyPatch) -> Sent:
    return Sent(saver, monkeypatch)


def config_of(thread: str, **more: str) -> Any:
    return {"configurable": {"thread_id": thread, "checkpoint_ns": "", **more}}


def checkpoint_of(saver: ConnectSaver, values: dict[str, Any]) -> tuple[Any, Any]:
    versions = {channel: saver.get_next_version(None, None) for channel in values}
    return {
        "v": 4,
        "id": str(uuid6()),
        "ts": "",
        "channel_values": values,
        "channel_versions": versions,
        "versions_seen": {},
    }, versions


def put(saver: Any, thread: str, values: dict[str, Any], **more: str) -> Any:
    checkpoint, versions = checkpoint_of(saver, values)
    return saver.put(config_of(thread, **more), checkpoint, {"step": 1}, versions)


async def aput(saver: Any, thread: str, values: dict[str, Any]) -> Any:
    checkpoint, versions = checkpoint_of(saver, values)
    return await saver.aput(config_of(thread), checkpoint, {"step": 1}, versions)


def values_of(saver: Any, thread: str) -> Any:
    return saver.get_tuple(config_of(thread)).checkpoint["channel_values"]


class Chat(TypedDict):
    messages: Annotated[list[Any], add_messages]


def chat_of(saver: Any) -> Any:
    def answer(state: Chat) -> Any:
        number = len(state["messages"])
        return {"messages": [AIMessage(f"answer {number} {'word ' * 300}", id=f"a{number}")]}

    return StateGraph(Chat).add_node("answer", answer).add_edge(START, "answer").compile(saver)


def said(i: int) -> Any:
    return {"messages": [HumanMessage(f"question {i} {'word ' * 300}", id=f"q{i}")]}


@pytest.mark.parametrize("is_async", [False, True])
async def test_of_a_chat_that_grows_only_the_new_messages_are_sent(
    saver, thread, sent, service, is_async
):
    graph = chat_of(saver)
    for i in range(30):
        if is_async:
            await graph.ainvoke(said(i), config_of(thread))
        else:
            graph.invoke(said(i), config_of(thread))
    puts = [size for name, size in sent.seen if name.startswith("put_extending")]
    # The last of them store more than 90 KB each.
    assert len(puts) > 50 and max(puts[-20:]) < 8000
    with PostgresSaver.from_conn_string(service.dsn) as direct:
        theirs = chat_of(direct)
        for i in range(30):
            theirs.invoke(said(i), config_of(f"{thread}-direct"))
        ours, others = (
            values_of(direct, thread)["messages"],
            values_of(direct, f"{thread}-direct")["messages"],
        )
    assert ours == others and len(ours) == 60


def test_the_rows_are_those_of_the_direct_saver(saver, thread, sent, service):
    """Bytes, each the same, of values that grow, shrink, move and change their kind."""
    rng = random.Random(5)
    values: Any = messages(0, 30)
    checkpoints = []
    for i in range(40):
        kind = rng.randrange(6)
        if kind < 3:
            values = [*values, message(100 + i)]
        elif kind == 3:
            values = [message(1000 + i), *values[2:]]
        elif kind == 4:
            values = [*values[:10], message(2000 + i), *values[11:]]
        else:
            values = values[3:] if len(values) > 25 else [*values, *messages(3000, 3010)]
        wholes = {
            "list": values,
            "bytes": message(i).encode() * 20,
            "dict": {"list": values, "i": i},
        }
        checkpoints.append(checkpoint_of(saver, wholes))
    with PostgresSaver.from_conn_string(service.dsn) as direct:
        for checkpoint, versions in checkpoints:
            saver.put(config_of(thread), checkpoint, {"step": 1}, versions)
            direct.put(config_of(f"{thread}-direct"), checkpoint, {"step": 1}, versions)
        assert rows(service.dsn, thread) == rows(service.dsn, f"{thread}-direct")
    assert all(name.startswith("put_extending") for name in sent.names)
    assert sum(size for _, size in sent.seen) < 40 * 30_000


def test_forks_of_a_thread_each_have_their_own_value(saver, thread, sent):
    base = messages(0, 40)
    first = put(saver, thread, {"list": base})
    branches = {}
    for at in range(4):
        branch = [*base, message(900 + at)]
        for step in range(3):
            branch = [*branch, message(at * 10 + step)]
            told = put(
                saver,
                thread,
                {"list": branch},
                checkpoint_id=first["configurable"]["checkpoint_id"],
            )
        branches[told["configurable"]["checkpoint_id"]] = branch
    for checkpoint_id, branch in branches.items():
        found = saver.get_tuple(config_of(thread, checkpoint_id=checkpoint_id))
        assert found.checkpoint["channel_values"]["list"] == branch
    assert {*sent.names[1:]} == {"put_extending.offset"}


@pytest.mark.parametrize("is_async", [False, True])
async def test_the_whole_is_sent_where_the_stored_value_is_lost(saver, thread, sent, is_async):
    values = messages(0, 40)
    put(saver, thread, {"list": values})
    for _ in range(2):
        # Another process of the same agent, say.
        saver.delete_thread(thread)
        values = [*values, message(77)]
        if is_async:
            await aput(saver, thread, {"list": values})
        else:
            put(saver, thread, {"list": values})
        assert values_of(saver, thread) == {"list": values}
    assert sent.names == ["put_extending", *["put_extending.offset", "put_extending"] * 2]


def test_two_savers_of_one_thread_store_what_each_was_given(service, thread):
    values = messages(0, 30)
    with ConnectSaver(service.url) as one, ConnectSaver(service.url) as other:
        for i in range(12):
            values = [*values, message(i)]
            put((one, other)[i % 3 == 2], thread, {"list": values})
            assert values_of(one, thread) == {"list": values}


async def test_many_puts_of_many_threads_at_once(service, thread):
    async with ConnectSaver(service.url, value_cache_bytes=2_000_000) as saver:

        async def work(name: str) -> None:
            values = messages(0, 20)
            for i in range(10):
                values = [*values, message(i)]
                await aput(saver, name, {"list": values, "other": values[5:]})
                found = await saver.aget_tuple(config_of(name))
                assert found.checkpoint["channel_values"]["list"] == values

        def blocking(name: str) -> None:
            values = messages(0, 20)
            for i in range(10):
                values = values[3:] + messages(i * 3, i * 3 + 4)
                put(saver, name, {"list": values})
                assert values_of(saver, name) == {"list": values}

        with ThreadPoolExecutor(8) as pool:
            done = [pool.submit(blocking, f"{thread}-b{i}") for i in range(8)]
            await asyncio.gather(*(work(f"{thread}-a{i}") for i in range(12)))
            for each in done:
                await asyncio.wrap_future(each)


def test_megabytes_grow(saver, thread, sent):
    values = {"list": [message(i) * 3 for i in range(1000)]}
    for i in range(3):
        values = {"list": [*values["list"], message(i)]}
        put(saver, thread, values)
    assert values_of(saver, thread) == values
    assert [size > 1_000_000 for _, size in sent.seen if size > 2000] == [True]


def test_a_value_too_large_for_the_cache_is_put_whole(service, thread, monkeypatch):
    with ConnectSaver(service.url, value_cache_bytes=200_000) as saver:
        sent = Sent(saver, monkeypatch)
        for i in range(2):
            put(saver, thread, {"list": messages(i, 40)})
        put(saver, thread, {"list": messages(0, 3)})
        assert sent.names == ["put"] * 3
    with ConnectSaver(service.url, value_cache_bytes=0) as saver:
        sent = Sent(saver, monkeypatch)
        put(saver, thread, {"list": messages(0, 20)})
        assert sent.names == ["put"]
    with pytest.raises(ValueError, match="value_cache_bytes"):
        ConnectSaver(service.url, value_cache_bytes=-1)


def test_servers_that_do_not_carry_it_are_sent_the_whole(saver, thread, monkeypatch):
    client = saver._client
    call = client.call
    seen = []

    def old(name: str, request: Any, *rest: Any) -> Any:
        if name == "put_extending.offset":
            raise NotCarried("the server knows no put_extending.offset on a session")
        seen.append((name, len(request.put_extending.prefixes)))
        return call(name, request, *rest)

    monkeypatch.setattr(client, "call", old)
    text = {"list": b"x" * 30_000}
    put(saver, thread, {"list": messages(0, 30)})
    put(saver, thread, {"list": messages(0, 31)})
    put(saver, thread, text)
    put(saver, thread, {"list": text["list"] + b"y"})
    assert seen == [("put_extending", 0), ("put", 0), ("put_extending", 0), ("put_extending", 1)]
    assert values_of(saver, thread) == {"list": b"x" * 30_000 + b"y"}


def test_an_operation_that_the_server_does_not_list_is_not_sent(saver, thread):
    put(saver, thread, {"list": []})
    session = saver._client._small.session
    session._wire._known -= {"put_extending", "put_extending.offset"}
    put(saver, thread, {"list": messages(0, 30)})
    assert values_of(saver, thread) == {"list": messages(0, 30)}
    assert not saver._client.values._values


def test_with_a_lease_all_is_sent_whole(saver, thread, sent):
    with pytest.raises(CheckpointdError, match="lease"):
        put(saver, thread, {"list": messages(0, 30)}, __checkpointd_lease=str(uuid4()))
    assert sent.names == ["put"]


async def test_a_cancelled_put_whose_base_was_lost_is_stored_all_the_same(saver, thread):
    values = messages(0, 40)
    await aput(saver, thread, {"list": values})
    await saver.adelete_thread(thread)
    values = [*values, "new"]
    task = asyncio.create_task(aput(saver, thread, {"list": values}))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    until = time.monotonic() + 20
    while (found := await saver.aget_tuple(config_of(thread))) is None:
        assert time.monotonic() < until
        await asyncio.sleep(0.02)
    assert found.checkpoint["channel_values"] == {"list": values}


def test_what_a_serde_writes_into_the_same_memory_is_stored(service, thread):
    memory = bytearray(50_000)

    class Serde:
        def dumps_typed(self, value: Any) -> Any:
            memory[:] = value.encode()
            return "text", memory

        def loads_typed(self, data: Any) -> Any:
            return bytes(data[1]).decode()

    with ConnectSaver(service.url, serde=Serde()) as saver:
        values = []
        for letter in "aab":
            values = ["x" * 30_000 + letter * 20_000]
            put(saver, thread, dict.fromkeys(["text"], Enough(values[0])))
        assert values_of(saver, thread) == {"text": values[0]}


class Enough(list):
    """No str, which would be inline."""

    def encode(self) -> bytes:
        return "".join(self).encode()


def test_a_child_of_a_fork_remembers_nothing_and_holds_no_lock(saver, thread):
    put(saver, thread, {"list": messages(0, 30)})
    saver._client.values._lock.acquire()
    import os

    child = os.fork()
    if child == 0:
        threading.Timer(20, os._exit, (1,)).start()
        put(saver, thread, {"list": messages(0, 31)})
        os._exit(0 if values_of(saver, thread) == {"list": messages(0, 31)} else 2)
    saver._client.values._lock.release()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
