"""Resuming what was left: claims, looks whether it is the graph's, runs, renews, releases."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from contextvars import copy_context
from typing import Any

from langchain_core.runnables import Runnable, RunnableConfig
from typing_extensions import Unpack

from .recovery import Durability, Recovered, Recovery, RecoverySummary, Run
from .saver import ConnectSaver
from .thread_values import RecoverFilter, Seconds
from .threads import Thread


def recover_threads(
    saver: ConnectSaver,
    graph: Runnable[Any, Any],
    *,
    unnamed: bool | None = None,
    owner: str | None = None,
    concurrency: int = 1,
    lease: Seconds = 60,
    grace: Seconds = 60,
    poll: Seconds | None = None,
    stop: threading.Event | None = None,
    config: RunnableConfig | None = None,
    context: Any = None,
    durability: Durability | None = None,
    on_recovered: Callable[[Recovered], object] | None = None,
    on_skipped: Callable[[Thread, Exception], object] | None = None,
    **filter: Unpack[RecoverFilter],
) -> RecoverySummary:
    """Resumes the threads that were left with work to do.

    Claims each, runs the graph with None as its input, which executes only what was not stored,
    renews the lease meanwhile and releases it. Any number of processes may do so at once: a thread
    is run by one, and one that lost its lease can store nothing any more. Interrupted and failed
    threads are left alone.

    Takes only threads of its graph: those that carry the saver's name (the option ``graph`` of
    `ConnectSaver`), and of them only such as wait for nodes that the graph has. Give the savers of
    every graph in a database a name. A saver without one takes threads without one, if everything
    that their checkpoint names (nodes that have run or wait, channels, an input that waits) is the
    graph's: that keeps another application's threads out unless its names are the same, as those of
    two small chat graphs may be.

    A thread that was run and did not move, and one that was skipped, are not tried again before
    `lease`, twice as long each time; they are remembered, 1000 at the most, by this call and no
    longer. With so many of them nothing more is claimed until the first may be tried again.

    Returns when nothing is left to claim, or with `poll` when `stop` is set. Raises
    `CheckpointdError` when the service cannot be reached, after the runs under way have ended, and
    TypeError or ValueError for what is not allowed: a graph that was compiled with a saver of
    another name, a graph whose threads nobody can tell, nodes that are async only (use
    `arecover_threads`).

    Graphs run in threads, `concurrency` of them, and beside each a thread that does nothing but
    renew its lease. A thread cannot be told to end in the middle of a step: a run that lost its
    lease, or that is to stop, ends after the step that it is in. Callbacks are called in the
    caller's thread.

    A graph that pauses at interrupt_before or interrupt_after must not be recovered so: the tables
    cannot tell such a pause from a crash, and it would be run past it.

    Args:
        saver: The saver that the graph was compiled with, or another of the same name.
        graph: The compiled graph.
        unnamed: Also threads that carry no graph's name: those that savers without one left, or
            LangGraph's own, if all that the thread's checkpoint names is the graph's. What is
            resumed carries the name from then on. Only where the saver has no name by default.
        owner: Who claims, for people to read. The host's name and the process id by default.
        concurrency: Threads that run at once.
        lease: How long a lease holds without being renewed, which happens every third of it: after
            a crash the thread is free again when it ends. 1 second to 1 hour. A thread that was
            skipped or did not move is let alone for so long, and twice as long each time it happens
            again, up to an hour.
        grace: Only threads that were not updated for so long: longer than a step of the graph
            takes, because a thread that somebody runs without a lease looks like one that was left.
        poll: Look again after so long when nothing is left. Return, by default.
        stop: When it is set nothing more is claimed, and the runs under way end after the step that
            they are in.
        config: What every run's config has besides the thread: a recursion limit, callbacks, tags.
        context: The context of every run, for graphs that have one.
        durability: The durability of every run, as `invoke` takes it.
        on_recovered: Called when a run has ended.
        on_skipped: Called when a thread was not run because it is not the graph's, with the reason.
        **filter: Which threads: prefix, metadata, updated_after, updated_before.
    """
    stop = threading.Event() if stop is None else stop
    if not isinstance(stop, threading.Event):
        raise TypeError(f"stop must be a threading.Event, not {stop!r}")
    _check_is_sync(graph)
    recovery = Recovery(
        saver,
        graph,
        unnamed,
        owner,
        concurrency,
        lease,
        grace,
        poll,
        config,
        context,
        durability,
        filter,
        stop.is_set,
    )
    summary = RecoverySummary()

    def settle(future: Future[Run]) -> None:
        for call in recovery.settle(summary, future.result(), on_recovered, on_skipped):
            call()

    running: set[Future[Run]] = set()
    with ThreadPoolExecutor(concurrency, "checkpointd-recover") as pool:
        try:
            while not stop.is_set():
                runs = recovery.claim(concurrency - len(running))
                for run in runs:
                    running.add(pool.submit(copy_context().run, recovery.recover, run))
                if runs and len(running) < concurrency:
                    continue
                if running:
                    within = recovery.poll if len(running) < concurrency else None
                    done, running = wait(running, within, FIRST_COMPLETED)
                    for each in done:
                        settle(each)
                elif recovery.poll is None:
                    break
                else:
                    stop.wait(recovery.poll)
        except Exception:
            raise
        except BaseException:
            # A Ctrl-C: what runs is not to go on for long.
            recovery.is_cut = True
            raise
        finally:
            for each in running:
                settle(each)
    return summary


async def arecover_threads(
    saver: ConnectSaver,
    graph: Runnable[Any, Any],
    *,
    unnamed: bool | None = None,
    owner: str | None = None,
    concurrency: int = 1,
    lease: Seconds = 60,
    grace: Seconds = 60,
    poll: Seconds | None = None,
    stop: asyncio.Event | None = None,
    config: RunnableConfig | None = None,
    context: Any = None,
    durability: Durability | None = None,
    on_recovered: Callable[[Recovered], object] | None = None,
    on_skipped: Callable[[Thread, Exception], object] | None = None,
    **filter: Unpack[RecoverFilter],
) -> RecoverySummary:
    """As `recover_threads`, with these differences.

    Everything happens in the running event loop. A run that lost its lease is cancelled at once.
    `stop` has the runs under way end after the step that they are in; cancelling this call cancels
    them at once, and frees their threads. Callbacks may be coroutine functions.
    """
    stop = asyncio.Event() if stop is None else stop
    if not isinstance(stop, asyncio.Event):
        raise TypeError(f"stop must be an asyncio.Event, not {stop!r}")
    recovery = Recovery(
        saver,
        graph,
        unnamed,
        owner,
        concurrency,
        lease,
        grace,
        poll,
        config,
        context,
        durability,
        filter,
        stop.is_set,
    )
    summary = RecoverySummary()

    async def settle(task: asyncio.Task[Run]) -> None:
        for call in recovery.settle(summary, task.result(), on_recovered, on_skipped):
            told = call()
            if inspect.isawaitable(told):
                await told

    running: set[asyncio.Task[Run]] = set()
    try:
        while not stop.is_set():
            runs = await recovery.aclaim(concurrency - len(running))
            running |= {asyncio.create_task(recovery.arecover(run)) for run in runs}
            if runs and len(running) < concurrency:
                continue
            if running:
                within = recovery.poll if len(running) < concurrency else None
                done, running = await asyncio.wait(
                    running, timeout=within, return_when=asyncio.FIRST_COMPLETED
                )
                for each in done:
                    await settle(each)
            elif recovery.poll is None:
                break
            else:
                await _sleep(stop.wait(), recovery.poll)
    except asyncio.CancelledError:
        for each in running:
            each.cancel()
        raise
    finally:
        if running:
            await asyncio.wait(running)
        for each in running:
            await settle(each)
    return summary


def _check_is_sync(graph: Any) -> None:
    # LangGraph would store that the node failed, and nobody recovers a thread that failed.
    for name, node in (getattr(graph, "nodes", None) or {}).items():
        bound = getattr(node, "bound", None)
        if getattr(bound, "func", True) is None and getattr(bound, "afunc", None) is not None:
            raise TypeError(f"the node {name!r} is async: use arecover_threads")


async def _sleep(until: Awaitable[object], seconds: float) -> None:
    with suppress(asyncio.TimeoutError):
        await asyncio.wait_for(until, seconds)
