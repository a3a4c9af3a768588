"""What `saver.threads` tells and does, in both forms."""

from __future__ import annotations

import asyncio
import inspect
import math
import operator
from datetime import datetime, timedelta, timezone
from typing import Annotated, TypedDict

import psycopg
import pytest
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.graph import END, START, StateGraph
from langgraph.types import Interrupt, interrupt

from checkpointd import (
    LEASE_TOKEN,
    CheckpointdError,
    ConnectSaver,
    Pruned,
    ThreadCounts,
    Threads,
    async_session,
    blocking_session,
)


class State(TypedDict, total=False):
    steps: Annotated[list[str], operator.add]
    mode: str


def second(state):
    if state["mode"] == "fail":
        raise ValueError("as asked")
    return {"steps": [interrupt("well?") if state["mode"] == "ask" else "done"]}


def build():
    graph = StateGraph(State).add_node("first", lambda state: {"steps": ["first"]})
    graph.add_node("second", second).add_edge(START, "first").add_edge("first", "second")
    return graph.add_edge("second", END)


def config_of(thread, **more):
    return {"configurable": {"thread_id": thread, **more}}


def run(saver, thread, mode, run_id=None):
    config = {**config_of(thread), "metadata": {"run_id": run_id or "none"}}
    before = ["second"] if mode == "leave" else None
    graph = build().compile(checkpointer=saver, interrupt_before=before)
    try:
        graph.invoke({"mode": mode, "steps": []}, config)
    except ValueError:
        assert mode == "fail"


class InALoop:
    """The async form as if it were the sync one."""

    def __init__(self, threads):
        self.threads = threads

    def __getattr__(self, name):
        call = getattr(self.threads, f"a{name}")

        def made(*arguments, **more):
            told = call(*arguments, **more)
            if inspect.isawaitable(told):
                return asyncio.run(_awaited(told))
            return asyncio.run(_collected(told))

        return made


async def _awaited(told):
    return await told


async def _collected(told):
    return [it async for it in told]


@pytest.fixture(params=["sync", "async"])
def threads(request, saver):
    return saver.threads if request.param == "sync" else InALoop(saver.threads)


@pytest.fixture
def four(saver, thread):
    """One thread of each status; what their ids begin with."""
    for name, mode in (("a", "end"), ("b", "ask"), ("c", "fail"), ("d", "leave")):
        run(saver, f"{thread}-{name}", mode)
    return f"{thread}-"


def ids(found):
    return [it.thread_id.rsplit("-", 1)[1] for it in found]


def test_tell_how_they_stand(threads, four):
    newest = list(threads.list(prefix=four))
    assert [(it.thread_id[-1], it.status, it.step) for it in newest] == [
        ("d", "pending", 1),
        ("c", "failed", 1),
        ("b", "interrupted", 1),
        ("a", "completed", 2),
    ]
    assert [it.pending_nodes for it in newest] == [["second"], ["second"], ["second"], []]
    by_id = list(threads.list(prefix=four, order="id"))
    assert by_id == newest[::-1]
    first = by_id[0]
    assert (first.source, first.metadata["step"], first.claim, first.counts, first.graph) == (
        "loop",
        2,
        None,
        None,
        None,
    )
    assert first.updated_at.tzinfo is timezone.utc
    assert abs(first.updated_at - datetime.now(timezone.utc)) < timedelta(minutes=5)
    assert threads.get(four + "a") == first
    assert threads.get(four + "nobody") is None


def test_tell_why_they_do_not_go_on(threads, four, saver):
    told = list(threads.list(prefix=four, order="id", with_reasons=True))
    assert [(len(it.interrupts), len(it.errors)) for it in told] == [(0, 0), (1, 0), (0, 1), (0, 0)]
    asked = told[1].interrupts[0]
    state = build().compile(checkpointer=saver).get_state(config_of(four + "b"))
    assert (asked.value, asked.id, asked.task_id, asked.name, asked.unread) == (
        "well?",
        state.interrupts[0].id,
        state.tasks[0].id,
        "second",
        None,
    )
    error = told[2].errors[0]
    assert "as asked" in error.error and (error.name, error.unread) == ("second", None)
    assert threads.get(four + "b", with_reasons=True) == told[1]
    without = threads.get(four + "b")
    assert (without.interrupts, without.errors) == (None, None)
    assert [it.errors for it in threads.list(prefix=four)] == [None] * 4


class Other:
    """A serde that reads nothing."""

    def loads_typed(self, data):
        raise NotImplementedError

    def dumps_typed(self, value):
        return JsonPlusSerializer().dumps_typed(value)


def test_tell_why_a_reason_is_not_there(saver, service, four):
    at = saver.get_tuple(config_of(four + "b")).config
    saver.put_writes(at, [("__interrupt__", [Interrupt("x" * 70_000, id="large")])], "large")
    # What JavaScript's LangGraph stores of both.
    javascript = [{"value": {"question": "sure?"}, "id": "js"}]
    saver.put_writes(at, [("__interrupt__", javascript)], "js")
    saver.put_writes(at, [("__error__", {"name": "Error", "message": "no"})], "failed")

    def by_task(found):
        return {it.task_id: it for it in [*found.interrupts, *found.errors]}

    found = by_task(saver.threads.get(four + "b", with_reasons=True))
    assert (found["large"].value, found["large"].unread) == (None, "it is larger than 65536 bytes")
    assert (found["js"].value, found["js"].id) == ({"question": "sure?"}, "js")
    assert found["failed"].error == {"name": "Error", "message": "no"}
    with ConnectSaver(service.url, serde=Other()) as other:
        found = by_task(other.threads.get(four + "b", with_reasons=True))
    assert (found["js"].value, found["js"].unread) == (None, "NotImplementedError")


def test_are_filtered_limited_and_counted(threads, four, saver):
    def listed(**more):
        return ids(threads.list(prefix=four, **more))

    times = [it.updated_at for it in threads.list(prefix=four, order="id")]
    for order in ("newest", "id"):
        turn = -1 if order == "newest" else 1
        assert listed(order=order, status=["pending", "failed"]) == ["c", "d"][::turn]
        assert listed(order=order, status="interrupted") == ["b"]
        assert listed(order=order, metadata={"step": 1, "run_id": "none"}, limit=2) == (
            ["d", "c"] if order == "newest" else ["b", "c"]
        )
        assert listed(order=order, updated_before=times[1]) == ["a"]
        # Another timezone's spelling of the same time.
        after = times[1].astimezone(timezone(timedelta(hours=5)))
        assert listed(order=order, updated_after=after) == ["b", "c", "d"][::turn]
    assert listed(limit=0) == []
    assert listed(examine_limit=0) == []
    assert listed(examine_limit=2**40, status="completed") == ["a"]
    assert len(listed(limit=2**40, graph="")) == 4
    assert listed(graph="other") == []
    counted = threads.get(four + "a", counts=True).counts
    assert (counted.checkpoints, counted.stored_bytes > 1000) == (4, True)
    assert [it.counts for it in threads.list(prefix=four + "a", counts=True)] == [counted]


@pytest.fixture
def cut(monkeypatch):
    """Has the next streams break after their first message."""
    left = [5]
    call, acall = blocking_session.call, async_session.call

    def broken_call(*given):
        for message in call(*given):
            yield message
            if left[0] > 0:
                left[0] -= 1
                raise CheckpointdError("unavailable", "cut")

    async def broken_acall(*given):
        async for message in acall(*given):
            yield message
            if left[0] > 0:
                left[0] -= 1
                raise CheckpointdError("unavailable", "cut")

    monkeypatch.setattr(blocking_session, "call", broken_call)
    monkeypatch.setattr(async_session, "call", broken_acall)


@pytest.mark.parametrize("order", ["newest", "id"])
def test_lists_go_on_where_they_broke(order, threads, four, cut):
    turn = -1 if order == "newest" else 1
    assert ids(threads.list(prefix=four, order=order, limit=3)) == list("abcd"[::turn][:3])
    assert ids(threads.list(prefix=four, order=order)) == list("abcd"[::turn])


def test_are_claimed_once_fenced_and_freed(threads, four, saver, service):
    wanted = {"owner": "worker", "grace": 0, "lease": timedelta(minutes=1), "limit": 10}
    leases = threads.claim(**wanted, prefix=four)
    assert ids(it.thread for it in leases) == ["d"]
    assert threads.claim(**wanted, prefix=four) == []
    lease = leases[0]
    name, token = lease.thread.thread_id, lease.token
    assert threads.get(name).claim.owner == "worker"
    assert threads.get(name).claim.expires_at == lease.expires_at
    assert threads.renew(name, token, 3600) - lease.expires_at > timedelta(minutes=50)
    graph = build().compile(checkpointer=saver)
    graph.update_state(config_of(name, **{LEASE_TOKEN: token}), {"mode": "end"})
    threads.release(name, "somebody else's")
    assert threads.get(name).claim is not None
    threads.release(name, token)
    before = threads.get(name)
    assert before.claim is None
    for held in (
        lambda: graph.invoke(None, config_of(name, **{LEASE_TOKEN: token})),
        lambda: threads.renew(name, token),
    ):
        with pytest.raises(CheckpointdError) as failure:
            held()
        assert (failure.value.code, failure.value.reason) == ("failed_precondition", "LEASE_LOST")
    assert threads.get(name) == before
    # By name in whatever status, and not those that are excluded.
    assert threads.claim(**wanted, prefix=four, exclude=[name]) == []
    assert len(threads.claim(**wanted, thread_id=four + "a")) == 1
    assert len(threads.claim(**wanted, prefix=four, status=["interrupted", "pending"])) == 2
    # The token is a secret: nothing that is stored has it.
    with psycopg.connect(service.dsn) as sql:
        query = "select count(*) from checkpoints where (checkpoint::text || metadata) ~ %s"
        assert sql.execute(query, (token,)).fetchone() == (0,)


def test_are_copied_pruned_and_cleared_of_runs(threads, four, saver):
    source, target = four + "a", four + "copy"
    copied = threads.copy(source, target)
    assert copied.checkpoints == 4
    assert threads.copy(four + "nobody", four + "nothing") == ThreadCounts()
    with pytest.raises(CheckpointdError) as failure:
        threads.copy(source, target)
    assert failure.value.reason == "TARGET_NOT_EMPTY"
    dry = list(threads.prune(thread_ids=[target], keep_last=1, dry_run=True))
    assert threads.get(target, counts=True).counts.checkpoints == 4
    # Nothing before it is iterated.
    real = threads.prune(thread_ids=[target], keep_last=1)
    assert list(real) == dry
    told = next(it for it in dry if it.thread_id)
    assert (told.thread_id, told.removed.checkpoints, told.threads_examined) == (target, 3, 1)
    graph = build().compile(checkpointer=saver)
    assert graph.get_state(config_of(target)).values == graph.get_state(config_of(source)).values
    young = threads.prune(prefix=target, delete=True, older_than=timedelta(days=1))
    assert [it for it in young if it.thread_id] == []
    assert [it.thread_id for it in threads.prune(prefix=target, delete=True)] == [target]
    assert threads.get(target) is None
    run(saver, target, "end", run_id=f"run of {four}")
    assert threads.delete_runs([f"run of {four}"]).checkpoints == 4
    assert threads.get(target) is None


def test_prune_goes_on_where_it_was_cut(threads, four, cut):
    told = list(threads.prune(prefix=four, keep_last=1, dry_run=True))
    assert ids(it for it in told if it.thread_id) == list("abcd")
    assert [it.threads_examined for it in told if it.thread_id] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda it: it.list(state="pending"), "threads.list has no argument state: did you mean"),
        (lambda it: it.list(status="done"), "status must be one of completed, pending, .*'done'"),
        (lambda it: it.list(status=["pending", 3]), "status must be one of .* not 3"),
        (lambda it: it.list(order="oldest"), "order must be one of newest, id, not 'oldest'"),
        (lambda it: it.list(limit=-1), "limit must be a whole number from 0, not -1"),
        (lambda it: it.list(limit="3"), "limit must be a whole number from 0, not '3'"),
        (lambda it: it.list(counts=1), "counts must be True or False, not 1"),
        (lambda it: it.list(prefix="a\0"), "prefix must not contain a NUL"),
        (lambda it: it.list(metadata="a"), "metadata must be a mapping, not str"),
        (lambda it: it.list(metadata={"a": 1j}), 'metadata cannot be stored as JSON under "a"'),
        (lambda it: it.list(updated_after=datetime(2026, 1, 1)), "updated_after must have a timez"),
        (lambda it: it.list(updated_before=7), "updated_before must be a datetime, not 7"),
        (lambda it: it.get(None), "thread_id must be a string, not NoneType"),
        (lambda it: it.get("a", counts="no"), "counts must be True or False"),
        (lambda it: it.claim(owner="me", leas=1), "threads.claim has no .*did you mean lease"),
        (
            lambda it: it.claim(owner="me", lease="1m"),
            "lease must be a timedelta or a number of se",
        ),
        (lambda it: it.claim(owner="me", grace=-1), "grace must be .* from 0, not -1"),
        (lambda it: it.claim(owner="me", grace=math.nan), "grace must be .* not nan"),
        (lambda it: it.claim(owner="me", exclude="a"), "exclude must be a sequence of strings"),
        (lambda it: it.renew("a", "b", True), "lease must be a timedelta .* not True"),
        (lambda it: it.release("a", "b\ud800"), "token must not contain a lone surrogate"),
        (lambda it: it.copy("a", object()), "target must be a string, not object"),
        (lambda it: it.delete_runs("a"), "run_ids must be a sequence of strings"),
        (lambda it: it.prune(dryrun=True, keep_last=1), "threads.prune .*did you mean dry_run"),
        (lambda it: it.prune(), "prune: give keep_last or delete=True"),
        (lambda it: it.prune(keep_last=1, delete=True), "give keep_last or delete=True, and not b"),
        (lambda it: it.prune(keep_last=1.5), "keep_last must be a whole number from 0, not 1.5"),
    ],
)
def test_arguments_that_are_not_allowed(call, words, threads):
    # At once, though nothing is iterated.
    with pytest.raises((TypeError, ValueError), match=words):
        call(threads)


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda it: it.claim(owner="me", lease=0.5), "lease_duration"),
        (lambda it: it.claim(owner="me", lease=10**30), "lease_duration"),
        (lambda it: it.claim(owner="me" * 200), "owner"),
        (lambda it: list(it.prune(keep_last=0)), "keep_last"),
        (lambda it: list(it.list(metadata={"a": "x"}, prefix="p" * 70_000)), "prefix"),
    ],
)
def test_what_the_service_refuses(call, field, threads):
    with pytest.raises(CheckpointdError) as failure:
        call(threads)
    assert failure.value.code == "invalid_argument"
    assert field in failure.value.field


def test_both_forms_take_the_same():
    for name, method in inspect.getmembers(Threads, inspect.isfunction):
        if name.startswith(("_", "a")):
            continue
        other = getattr(Threads, f"a{name}")
        assert inspect.signature(method).parameters == inspect.signature(other).parameters, name
        assert inspect.getdoc(method) and inspect.getdoc(other), name


def test_zero_is_not_absent(saver, four):
    # A grace of 0 is one, and a lease that is absent a minute.
    lease = saver.threads.claim(owner="me", grace=timedelta(0), prefix=four)[0]
    assert 30 < (lease.expires_at - datetime.now(timezone.utc)).total_seconds() < 90
    assert saver.threads.claim(owner="me", prefix=four, status=["failed"]) == []
    told = list(saver.threads.prune(keep_last=1, prefix=four + "b", dry_run=True))
    assert told[-1].threads_examined == 1 and isinstance(told[0], Pruned)
