"""What there is to know and to do about threads as a whole: ThreadService from an agent."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from typing_extensions import Unpack

from .client import Client
from .messages import (
    ClaimThreadsResponse,
    ListThreadsRequest,
    ListThreadsResponse,
    PruneThreadsRequest,
    PruneThreadsResponse,
)
from .messages import Thread as StoredThread
from .messages import ThreadCounts as StoredCounts
from .thread_requests import (
    after_listed,
    claim_request,
    copy_request,
    delete_runs_request,
    get_request,
    list_request,
    prune_request,
    release_request,
    renew_request,
    wants_more,
)
from .thread_values import (
    Seconds,
    ThreadFilter,
    ThreadState,
    from_metadata,
    from_status,
    from_time,
)


@dataclass(frozen=True)
class ThreadCounts:
    """What is stored, or was removed or copied. Bytes are those before compression."""

    checkpoints: int = 0
    blobs: int = 0
    writes: int = 0
    stored_bytes: int = 0


@dataclass(frozen=True)
class Claim:
    """A lease as everybody may see it.

    Attributes:
        owner: Who holds it, for people to read.
        expires_at: When it ends unless it is renewed, by the database's clock.
    """

    owner: str
    expires_at: datetime


@dataclass(frozen=True)
class Thread:
    """A thread and how it stands, by its latest root checkpoint.

    Attributes:
        thread_id: Its name.
        checkpoint_id: That checkpoint.
        updated_at: When that checkpoint was made.
        step: The metadata's step, if it has one.
        source: The metadata's source; empty if it has none.
        status: How it stands.
        pending_nodes: The nodes that have not run, where the tables name them;
            ``"__pregel_tasks"`` for a Send.
        graph: The graph's name, if the saver that stored the checkpoint had one.
        metadata: Without that name.
        claim: Who holds it under a lease.
        counts: What is stored of it, where it was asked for.
    """

    thread_id: str
    checkpoint_id: str
    updated_at: datetime
    step: int | None
    source: str
    status: ThreadState
    pending_nodes: list[str]
    graph: str | None
    metadata: dict[str, Any]
    claim: Claim | None = None
    counts: ThreadCounts | None = None


@dataclass(frozen=True)
class Lease:
    """A thread that is the caller's until the lease expires or is released.

    Attributes:
        thread: The thread, as it was when the lease had been taken.
        token: Put it under `LEASE_TOKEN` into the ``configurable`` of what runs the thread, which
            then cannot store anything any more once the lease is lost.
        expires_at: When the lease ends unless it is renewed, by the database's clock.
    """

    thread: Thread
    token: str
    expires_at: datetime


@dataclass(frozen=True)
class Pruned:
    """What `Threads.prune` removed of one thread, or how far it has come.

    Attributes:
        thread_id: None: nothing was removed since the last.
        removed: What went.
        threads_examined: Threads looked at until now.
    """

    thread_id: str | None
    removed: ThreadCounts
    threads_examined: int


class Threads:
    """The calls of ThreadService, with the saver's deadlines and retries: ``saver.threads``.

    Each in two forms, as the saver has them: `list` and `alist`. They raise `CheckpointdError`, and
    TypeError or ValueError naming an argument that is not allowed, before anything is asked.
    Durations are timedeltas or seconds; times have a timezone, and come back in UTC.

    Where threads are chosen, the conditions of `ThreadFilter` are keyword arguments:
    ``saver.threads.list(status="pending", prefix="chat-")``.
    """

    def __init__(self, client: Client) -> None:
        self._client = client

    def list(
        self,
        *,
        order: Literal["newest", "id"] = "newest",
        limit: int | None = None,
        counts: bool = False,
        **filter: Unpack[ThreadFilter],
    ) -> Iterator[Thread]:
        """The threads that match, each once, read as they are asked for.

        Args:
            order: The latest first, or by thread id, byte by byte.
            limit: Threads at the most.
            counts: Count what is stored of each, which reads the size of every row.
            **filter: Which threads.
        """
        return self._list(list_request(order, limit, counts, filter))

    def alist(
        self,
        *,
        order: Literal["newest", "id"] = "newest",
        limit: int | None = None,
        counts: bool = False,
        **filter: Unpack[ThreadFilter],
    ) -> AsyncIterator[Thread]:
        """As `list`."""
        return self._alist(list_request(order, limit, counts, filter))

    def _list(self, request: ListThreadsRequest) -> Iterator[Thread]:
        if not wants_more(request):
            return
        took = after_listed(request)
        for part in self._client.stream("ListThreads", request, ListThreadsResponse, took):
            yield _from_thread(part.thread)
            if not wants_more(request):
                return

    async def _alist(self, request: ListThreadsRequest) -> AsyncIterator[Thread]:
        if not wants_more(request):
            return
        took = after_listed(request)
        async for part in self._client.astream("ListThreads", request, ListThreadsResponse, took):
            yield _from_thread(part.thread)
            if not wants_more(request):
                return

    def get(self, thread_id: str, *, counts: bool = False) -> Thread | None:
        """One thread, with what is stored of it if `counts`; None if there is none."""
        answer = self._client.call("get_thread", get_request(thread_id, counts)).get_thread
        return _from_thread(answer.thread) if answer.HasField("thread") else None

    async def aget(self, thread_id: str, *, counts: bool = False) -> Thread | None:
        """As `get`."""
        request = get_request(thread_id, counts)
        answer = (await self._client.acall("get_thread", request)).get_thread
        return _from_thread(answer.thread) if answer.HasField("thread") else None

    def claim(
        self,
        *,
        owner: str,
        lease: Seconds | None = None,
        grace: Seconds | None = None,
        limit: int = 1,
        thread_id: str = "",
        exclude: Sequence[str] = (),
        **filter: Unpack[ThreadFilter],
    ) -> Sequence[Lease]:
        """Takes leases on threads that match and are free, newest first.

        Each thread goes to one of any number of callers. Repeated only where the service certainly
        did not begin it (no connection was made, or it refused): what a lost answer had claimed is
        free again when its lease expires.

        Args:
            owner: Who claims, for people to read.
            lease: How long the lease holds unless it is renewed, 1 s to 1 h. A minute by default.
            grace: Only threads that were not updated for so long. A minute by default.
            limit: Threads at the most, up to 1000, of which one call gets 100.
            thread_id: Only this thread, in whatever status unless `status` says otherwise, without
                grace.
            exclude: None of these, at most 1000.
            **filter: Which threads; only pending ones unless it has a `status`.
        """
        request = claim_request(owner, lease, grace, limit, thread_id, exclude, filter)
        return _leases(self._client.call("claim_threads", request, False).claim_threads)

    async def aclaim(
        self,
        *,
        owner: str,
        lease: Seconds | None = None,
        grace: Seconds | None = None,
        limit: int = 1,
        thread_id: str = "",
        exclude: Sequence[str] = (),
        **filter: Unpack[ThreadFilter],
    ) -> Sequence[Lease]:
        """As `claim`."""
        request = claim_request(owner, lease, grace, limit, thread_id, exclude, filter)
        return _leases((await self._client.acall("claim_threads", request, False)).claim_threads)

    def renew(self, thread_id: str, token: str, lease: Seconds | None = None) -> datetime:
        """Prolongs a lease from now on, and returns its new end.

        Fails with "failed_precondition" (LEASE_LOST) if it is not held any more.
        """
        request = renew_request(thread_id, token, lease)
        return from_time(self._client.call("renew_claim", request).renew_claim.expire_time)

    async def arenew(self, thread_id: str, token: str, lease: Seconds | None = None) -> datetime:
        """As `renew`."""
        request = renew_request(thread_id, token, lease)
        return from_time((await self._client.acall("renew_claim", request)).renew_claim.expire_time)

    def release(self, thread_id: str, token: str) -> None:
        """Ends a lease; nothing happens if it is not held any more, or is somebody else's."""
        self._client.call("release_claim", release_request(thread_id, token))

    async def arelease(self, thread_id: str, token: str) -> None:
        """As `release`."""
        await self._client.acall("release_claim", release_request(thread_id, token))

    def copy(self, source: str, target: str) -> ThreadCounts:
        """Copies everything of a thread under another name, all or nothing.

        Fails with "failed_precondition" (TARGET_NOT_EMPTY) if anything is stored there, which a
        second call would meet too: it is repeated only where the service certainly did not begin
        it. A source that does not exist is copied as nothing.
        """
        answer = self._client.call("copy_thread", copy_request(source, target), False)
        return _from_counts(answer.copy_thread.copied)

    async def acopy(self, source: str, target: str) -> ThreadCounts:
        """As `copy`."""
        answer = await self._client.acall("copy_thread", copy_request(source, target), False)
        return _from_counts(answer.copy_thread.copied)

    def delete_runs(self, run_ids: Sequence[str]) -> ThreadCounts:
        """Deletes the checkpoints whose metadata has one of these as ``run_id``, in all threads.

        At most 1000 of them; the saver's ``delete_for_runs`` takes any number. Fails with
        "failed_precondition" (STILL_NEEDED), and deletes nothing, if a checkpoint of another run
        rebuilds a delta channel from one of them.
        """
        answer = self._client.call("delete_runs", delete_runs_request(run_ids))
        return _from_counts(answer.delete_runs.removed)

    async def adelete_runs(self, run_ids: Sequence[str]) -> ThreadCounts:
        """As `delete_runs`."""
        answer = await self._client.acall("delete_runs", delete_runs_request(run_ids))
        return _from_counts(answer.delete_runs.removed)

    def prune(
        self,
        *,
        keep_last: int | None = None,
        delete: bool = False,
        thread_ids: Sequence[str] = (),
        older_than: Seconds | None = None,
        dry_run: bool = False,
        **filter: Unpack[ThreadFilter],
    ) -> Iterator[Pruned]:
        """Removes what the arguments let go, while what it returns is iterated.

        Tells of each thread that lost something, in the order of their ids, each once. Nothing that
        a remaining checkpoint needs is removed. **Nothing happens before the first is asked for**,
        and leaving early stops it: what is removed by then stays removed.

        Args:
            keep_last: Checkpoints that stay in each namespace, from 1. Give this or `delete`.
            delete: The whole thread goes.
            thread_ids: These threads and no filter.
            older_than: Only checkpoints (with `delete`: threads) older than this.
            dry_run: Count what would go and remove nothing.
            **filter: Which threads.
        """
        request = prune_request(keep_last, delete, thread_ids, older_than, dry_run, filter)
        return self._prune(request)

    def aprune(
        self,
        *,
        keep_last: int | None = None,
        delete: bool = False,
        thread_ids: Sequence[str] = (),
        older_than: Seconds | None = None,
        dry_run: bool = False,
        **filter: Unpack[ThreadFilter],
    ) -> AsyncIterator[Pruned]:
        """As `prune`."""
        request = prune_request(keep_last, delete, thread_ids, older_than, dry_run, filter)
        return self._aprune(request)

    def _prune(self, request: PruneThreadsRequest) -> Iterator[Pruned]:
        pruning = _Pruning(request)
        for part in self._client.stream(
            "PruneThreads", request, PruneThreadsResponse, pruning.took, opens=pruning.opens
        ):
            yield pruning.told(part)

    async def _aprune(self, request: PruneThreadsRequest) -> AsyncIterator[Pruned]:
        pruning = _Pruning(request)
        async for part in self._client.astream(
            "PruneThreads", request, PruneThreadsResponse, pruning.took, opens=pruning.opens
        ):
            yield pruning.told(part)


def _leases(answer: ClaimThreadsResponse) -> Sequence[Lease]:
    return [
        Lease(_from_thread(it.thread), it.lease_token, from_time(it.expire_time))
        for it in answer.threads
    ]


class _Pruning:
    """Where a prune goes on when its connection was cut, and what it has done by then."""

    def __init__(self, request: PruneThreadsRequest) -> None:
        self._request = request
        # Of the calls that were cut off, until the last thread that they told.
        self._examined_before = 0
        self._examined = 0

    def opens(self) -> None:
        self._examined_before = self._examined

    def took(self, part: PruneThreadsResponse) -> None:
        if part.thread_id:
            self._request.after_thread_id = part.thread_id
            self._examined = self._examined_before + part.threads_examined

    def told(self, part: PruneThreadsResponse) -> Pruned:
        return Pruned(
            part.thread_id or None,
            _from_counts(part.removed),
            self._examined_before + part.threads_examined,
        )


def _from_thread(stored: StoredThread) -> Thread:
    metadata, graph = from_metadata(stored.metadata_json)
    claim = None
    if stored.HasField("claim"):
        claim = Claim(stored.claim.owner, from_time(stored.claim.expire_time))
    return Thread(
        thread_id=stored.thread_id,
        checkpoint_id=stored.checkpoint_id,
        updated_at=from_time(stored.update_time),
        step=stored.step if stored.HasField("step") else None,
        source=stored.source,
        status=from_status(stored.status),
        pending_nodes=[*stored.pending_nodes],
        graph=graph,
        metadata=metadata,
        claim=claim,
        counts=_from_counts(stored.counts) if stored.HasField("counts") else None,
    )


def _from_counts(stored: StoredCounts) -> ThreadCounts:
    return ThreadCounts(stored.checkpoints, stored.blobs, stored.writes, stored.stored_bytes)
