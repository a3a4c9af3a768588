"""What is done about each thread that was left: the part that both forms of recovery share."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Mapping
from contextlib import aclosing, closing
from dataclasses import dataclass
from socket import gethostname
from time import monotonic
from typing import Any, Literal

from langchain_core.runnables import RunnableConfig

from .errors import CheckpointdError
from .foreign_threads import find_foreign, needs_checkpoint
from .lease_watch import Watch
from .names import LEASE_TOKEN
from .pauses import Pauses
from .saver import ConnectSaver
from .thread_values import (
    RECOVER_NAMES,
    RecoverFilter,
    Seconds,
    check_integer,
    check_known,
    to_seconds,
)
from .threads import Lease, Thread

Durability = Literal["sync", "async", "exit"]
Outcome = Literal["resumed", "failed", "stuck", "lost", "stopped"]

# Threads that a claim can be told to leave out.
_MOST_EXCLUDED = 1000


@dataclass(frozen=True)
class Recovered:
    """How the run of one thread ended.

    Attributes:
        thread: The thread, as it was when it was claimed.
        outcome: ``"resumed"``: the graph came to its end, and the thread has moved (maybe to an
            interrupt). ``"failed"``: the graph raised. ``"stuck"``: the graph came to its end, and
            the thread stands where it stood: the same latest checkpoint, and nothing that a task
            wrote since. ``"lost"``: the lease was lost, and nothing was stored since.
            ``"stopped"``: the run was told to stop before its end, and the thread is free for
            others. One that failed or is stuck stays under its lease until that runs out, so that
            no worker tries it at once.
        error: What the graph raised, or how the loss was noticed.
    """

    thread: Thread
    outcome: Outcome
    error: BaseException | None = None


@dataclass
class RecoverySummary:
    """How many runs ended how, and how many times a thread was skipped."""

    resumed: int = 0
    failed: int = 0
    stuck: int = 0
    lost: int = 0
    stopped: int = 0
    skipped: int = 0


class Run:
    """A thread under a lease, and what becomes of it."""

    def __init__(self, lease: Lease, held_until: float) -> None:
        self.thread = lease.thread
        self.token = lease.token
        # By this clock and from before the request: never later than the database has it.
        self.held_until = held_until
        self.watch = Watch(lease.thread.checkpoint_id)
        self.foreign: Exception | None = None
        self.error: BaseException | None = None
        self.is_stopped = False

    @property
    def outcome(self) -> Outcome:
        """How it ended."""
        if self.watch.lost is not None:
            return "lost"
        if self.is_stopped:
            return "stopped"
        if self.error is not None:
            return "failed"
        return "resumed" if self.watch.has_moved else "stuck"

    @property
    def may_stand_elsewhere(self) -> bool:
        """Whether it is to be seen if somebody else's saver moved it."""
        return self.foreign is None and not self.watch.has_moved and self.outcome != "lost"

    @property
    def is_to_be_freed(self) -> bool:
        """Whether others may have the thread at once."""
        # A foreign one at once: another version of the graph may have what this one lacks.
        return self.foreign is not None or self.outcome in ("resumed", "stopped")

    def raised(self, error: BaseException | None) -> None:
        """Takes note of what the graph raised."""
        self.error = error
        # Of a graph with a saver of its own only this tells it.
        if isinstance(error, CheckpointdError) and error.reason == "LEASE_LOST":
            self.watch.lose(error)

    def look(self, now: Thread | None) -> None:
        """Takes note of how the thread stands: also what other savers stored counts."""
        before = self.thread
        if now is None or (now.checkpoint_id, now.status) != (before.checkpoint_id, before.status):
            self.watch.has_moved = True

    def renewed(self, asked: float, lease: float) -> None:
        """Takes note of a renewal that was asked for then."""
        self.held_until = asked + lease

    def not_renewed(self, error: CheckpointdError) -> None:
        """Takes note that somebody else may have the thread."""
        if error.code == "failed_precondition" or monotonic() >= self.held_until:
            self.watch.lose(error)


class Recovery:
    """What both forms of recovery share: whom to claim, how to run it, what became of it."""

    def __init__(
        self,
        saver: ConnectSaver,
        graph: Any,
        unnamed: bool | None,
        owner: str | None,
        concurrency: int,
        lease: Seconds,
        grace: Seconds,
        poll: Seconds | None,
        config: RunnableConfig | None,
        context: Any,
        durability: Durability | None,
        filter: RecoverFilter,
        is_stopped: Callable[[], bool],
    ) -> None:
        check_known("recover_threads", filter, _OWN_NAMES, RECOVER_NAMES)
        _check_graph(saver, graph)
        check_integer("concurrency", concurrency, 1)
        self.poll = None if poll is None else to_seconds("poll", poll)
        # Set when what runs is to end though nobody set `stop`.
        self.is_cut = False
        self._saver = saver
        self._graph = graph
        self._lease = to_seconds("lease", lease)
        self._wanted: dict[str, Any] = {
            "owner": f"{gethostname()}:{os.getpid()}" if owner is None else owner,
            "lease": self._lease,
            "grace": to_seconds("grace", grace),
            **filter,
        }
        # Named threads first.
        self._names = [] if saver.graph is None else [saver.graph]
        if unnamed or (unnamed is None and saver.graph is None):
            self._names.append("")
        self._config = config
        self._arguments: dict[str, Any] = {"stream_mode": "values"}
        if context is not None:
            self._arguments["context"] = context
        if durability is not None:
            self._arguments["durability"] = durability
        self._is_stopped = is_stopped
        self._pauses = Pauses(self._lease)
        # By their ids. One that was freed, or lost, is not to be claimed again before its run has
        # ended and been counted.
        self._running: set[str] = set()

    def claim(self, limit: int) -> list[Run]:
        """Takes what is free and not let alone."""
        exclude = [*self._pauses.threads(), *self._running]
        runs: list[Run] = []
        for name in self._names if len(exclude) < _MOST_EXCLUDED else ():
            if (left := limit - len(runs)) > 0:
                until = monotonic() + self._lease
                leases = self._saver.threads.claim(
                    limit=left, exclude=exclude, graph=name, **self._wanted
                )
                runs += [Run(it, until) for it in leases]
        self._running.update(it.thread.thread_id for it in runs)
        return runs

    async def aclaim(self, limit: int) -> list[Run]:
        """As `claim`."""
        exclude = [*self._pauses.threads(), *self._running]
        runs: list[Run] = []
        for name in self._names if len(exclude) < _MOST_EXCLUDED else ():
            if (left := limit - len(runs)) > 0:
                until = monotonic() + self._lease
                leases = await self._saver.threads.aclaim(
                    limit=left, exclude=exclude, graph=name, **self._wanted
                )
                runs += [Run(it, until) for it in leases]
        self._running.update(it.thread.thread_id for it in runs)
        return runs

    def recover(self, run: Run) -> Run:
        """Runs a thread, in this thread, if it is the graph's; frees it, if it is to be freed."""
        saver, thread = self._saver, run.thread
        ended = threading.Event()
        # It only renews: the thread that runs the graph may be in a step for longer than the lease.
        keeper = threading.Thread(target=self._keep, args=(run, ended), daemon=True)
        saver._watches[run.token] = run.watch
        keeper.start()
        try:
            saved = None
            if needs_checkpoint(self._graph, thread):
                saved = saver.get_tuple({"configurable": {"thread_id": thread.thread_id}})
            run.foreign = find_foreign(self._graph, thread, saved)
            if run.foreign is None:
                self._run(run)
        except Exception as error:
            run.raised(error)
        finally:
            ended.set()
            keeper.join()
            saver._watches.pop(run.token, None)
        try:
            if run.may_stand_elsewhere:
                run.look(saver.threads.get(thread.thread_id))
            if run.is_to_be_freed:
                saver.threads.release(thread.thread_id, run.token)
        except CheckpointdError:
            # A lease that cannot be released runs out by itself, and the next claim will say that
            # the service cannot be reached.
            pass
        return run

    async def arecover(self, run: Run) -> Run:
        """As `recover`. When it is cancelled it frees the thread and returns."""
        saver, thread = self._saver, run.thread
        loop = asyncio.get_running_loop()
        saver._watches[run.token] = run.watch
        runner = loop.create_task(self._arun(run))
        run.watch.on_lost(lambda: loop.call_soon_threadsafe(runner.cancel))
        keeper = loop.create_task(self._akeep(run))
        try:
            await asyncio.wait({runner})
        except asyncio.CancelledError:
            # Told by who waits for this, and done when it is freed.
            run.is_stopped = True
            runner.cancel()
            await asyncio.wait({runner})
        finally:
            keeper.cancel()
            await asyncio.wait({keeper})
            saver._watches.pop(run.token, None)
        run.raised(asyncio.CancelledError() if runner.cancelled() else runner.exception())
        try:
            if run.may_stand_elsewhere:
                run.look(await saver.threads.aget(thread.thread_id))
            if run.is_to_be_freed:
                await saver.threads.arelease(thread.thread_id, run.token)
        except CheckpointdError:
            pass
        return run

    def _run(self, run: Run) -> None:
        # As invoke does it, but with a look at each step's end.
        config = self._config_of(run)
        with closing(self._graph.stream(None, config, **self._arguments)) as steps:
            for _ in steps:
                if self._is_over(run):
                    return

    async def _arun(self, run: Run) -> None:
        thread, saved = run.thread, None
        if needs_checkpoint(self._graph, thread):
            config: RunnableConfig = {"configurable": {"thread_id": thread.thread_id}}
            saved = await self._saver.aget_tuple(config)
        run.foreign = find_foreign(self._graph, thread, saved)
        if run.foreign is not None:
            return
        config = self._config_of(run)
        async with aclosing(self._graph.astream(None, config, **self._arguments)) as steps:
            async for _ in steps:
                if self._is_over(run):
                    return

    def _config_of(self, run: Run) -> RunnableConfig:
        given: Mapping[str, Any] = self._config or {}
        keys = {"thread_id": run.thread.thread_id, LEASE_TOKEN: run.token}
        return {**given, "configurable": {**(given.get("configurable") or {}), **keys}}  # type: ignore[typeddict-item]

    def _is_over(self, run: Run) -> bool:
        if self.is_cut or self._is_stopped():
            run.is_stopped = True
        return run.is_stopped or run.watch.lost is not None

    def _keep(self, run: Run, ended: threading.Event) -> None:
        while run.watch.lost is None and not ended.wait(self._lease / 3):
            asked = monotonic()
            try:
                self._saver.threads.renew(run.thread.thread_id, run.token, self._lease)
                run.renewed(asked, self._lease)
            except CheckpointdError as error:
                run.not_renewed(error)

    async def _akeep(self, run: Run) -> None:
        while run.watch.lost is None:
            await asyncio.sleep(self._lease / 3)
            asked = monotonic()
            try:
                await self._saver.threads.arenew(run.thread.thread_id, run.token, self._lease)
                run.renewed(asked, self._lease)
            except CheckpointdError as error:
                run.not_renewed(error)

    def settle(
        self,
        summary: RecoverySummary,
        run: Run,
        on_recovered: Callable[[Recovered], object] | None,
        on_skipped: Callable[[Thread, Exception], object] | None,
    ) -> list[Callable[[], object]]:
        """Counts it, and returns what is to be called."""
        thread, foreign = run.thread, run.foreign
        self._running.discard(thread.thread_id)
        if foreign is None and (run.watch.has_moved or run.outcome == "lost"):
            self._pauses.forget(thread.thread_id)
        else:
            self._pauses.pause(thread.thread_id)
        if foreign is not None:
            summary.skipped += 1
            return [] if on_skipped is None else [lambda: on_skipped(thread, foreign)]
        outcome = run.outcome
        setattr(summary, outcome, getattr(summary, outcome) + 1)
        error = run.error if run.watch.lost is None else run.watch.lost
        told = Recovered(thread, outcome, None if outcome == "stopped" else error)
        return [] if on_recovered is None else [lambda: on_recovered(told)]


# What recovery takes besides the filter, for the error about what it does not take.
_OWN_NAMES = (
    "unnamed",
    "owner",
    "concurrency",
    "lease",
    "grace",
    "poll",
    "stop",
    "config",
    "context",
    "durability",
    "on_recovered",
    "on_skipped",
)


def _check_graph(saver: ConnectSaver, graph: Any) -> None:
    has_parts = getattr(graph, "nodes", None) and getattr(graph, "channels", None)
    if saver.graph is None and not has_parts:
        raise TypeError(
            "recover_threads cannot tell which threads are this graph's: give the saver the option "
            "graph, a name, or recover with a compiled graph"
        )
    own = getattr(getattr(graph, "checkpointer", None), "graph", None)
    if own is not None and own != saver.graph:
        raise TypeError(
            f"the graph was compiled with a saver of {own!r}, and threads of "
            f"{saver.graph or 'no name'!r} are to be recovered: use the same saver for both"
        )
