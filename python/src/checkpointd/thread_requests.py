"""ThreadService's requests, of arguments that are checked."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from . import messages
from .messages import (
    ListThreadsRequest,
    ListThreadsResponse,
    OpenSessionRequest,
    PruneThreadsRequest,
)
from .names import check_name
from .thread_values import (
    FILTER_NAMES,
    Seconds,
    ThreadFilter,
    check_flag,
    check_integer,
    check_known,
    check_names,
    set_duration,
    to_filter,
)

_ORDERS = {
    "newest": messages.THREAD_ORDER_NEWEST_FIRST,
    "id": messages.THREAD_ORDER_BY_ID,
}


def list_request(
    order: str,
    limit: int | None,
    counts: bool,
    with_reasons: bool,
    examine_limit: int | None,
    filter: ThreadFilter,
) -> ListThreadsRequest:
    """What lists threads."""
    names = ("order", "limit", "counts", "with_reasons", "examine_limit")
    check_known("threads.list", filter, names, FILTER_NAMES)
    if order not in _ORDERS:
        raise ValueError(f"order must be one of {', '.join(_ORDERS)}, not {order!r}")
    request = ListThreadsRequest(
        order=_ORDERS[order],
        with_counts=check_flag("counts", counts),
        with_reasons=check_flag("with_reasons", with_reasons),
    )
    # Above what the wire has room for is more than any list has.
    if limit is not None and check_integer("limit", limit) < 2**31:
        request.limit = limit
    if examine_limit is not None and check_integer("examine_limit", examine_limit) < 2**31:
        request.examine_limit = examine_limit
    to_filter(request.filter, filter)
    return request


def wants_more(request: ListThreadsRequest) -> bool:
    """Whether there is room in its limit."""
    return not request.HasField("limit") or request.limit > 0


def after_listed(request: ListThreadsRequest) -> Callable[[ListThreadsResponse], None]:
    """Has the request go on behind each thread that came."""

    def took(part: ListThreadsResponse) -> None:
        request.after.thread_id = part.thread.thread_id
        request.after.update_time.CopyFrom(part.thread.update_time)
        if request.HasField("limit"):
            request.limit -= 1

    return took


def get_request(thread_id: str, counts: bool, with_reasons: bool) -> OpenSessionRequest:
    """What reads one thread."""
    request = OpenSessionRequest()
    request.get_thread.thread_id = check_name("thread_id", thread_id)
    request.get_thread.with_counts = check_flag("counts", counts)
    request.get_thread.with_reasons = check_flag("with_reasons", with_reasons)
    return request


def claim_request(
    owner: str,
    lease: Seconds | None,
    grace: Seconds | None,
    limit: int,
    thread_id: str,
    exclude: Sequence[str],
    filter: ThreadFilter,
) -> OpenSessionRequest:
    """What claims threads."""
    own = ("owner", "lease", "grace", "limit", "thread_id", "exclude")
    check_known("threads.claim", filter, own, FILTER_NAMES)
    request = OpenSessionRequest()
    claim = request.claim_threads
    claim.owner = check_name("owner", owner)
    claim.limit = check_integer("limit", limit)
    claim.thread_id = check_name("thread_id", thread_id)
    claim.except_thread_ids.extend(check_names("exclude", exclude))
    if lease is not None:
        set_duration(claim.lease_duration, "lease", lease)
    if grace is not None:
        set_duration(claim.grace, "grace", grace)
    to_filter(claim.filter, filter)
    return request


def renew_request(thread_id: str, token: str, lease: Seconds | None) -> OpenSessionRequest:
    """What prolongs a lease."""
    request = OpenSessionRequest()
    request.renew_claim.thread_id = check_name("thread_id", thread_id)
    request.renew_claim.lease_token = check_name("token", token)
    if lease is not None:
        set_duration(request.renew_claim.lease_duration, "lease", lease)
    return request


def release_request(thread_id: str, token: str) -> OpenSessionRequest:
    """What ends a lease."""
    request = OpenSessionRequest()
    request.release_claim.thread_id = check_name("thread_id", thread_id)
    request.release_claim.lease_token = check_name("token", token)
    return request


def copy_request(source: str, target: str) -> OpenSessionRequest:
    """What copies a thread."""
    request = OpenSessionRequest()
    request.copy_thread.source_thread_id = check_name("source", source)
    request.copy_thread.target_thread_id = check_name("target", target)
    return request


def delete_runs_request(run_ids: Sequence[str]) -> OpenSessionRequest:
    """What deletes runs."""
    request = OpenSessionRequest()
    request.delete_runs.run_ids.extend(check_names("run_ids", run_ids))
    request.delete_runs.SetInParent()
    return request


def prune_request(
    keep_last: int | None,
    delete: bool,
    thread_ids: Sequence[str],
    older_than: Seconds | None,
    dry_run: bool,
    filter: ThreadFilter,
) -> PruneThreadsRequest:
    """What prunes threads."""
    own = ("keep_last", "delete", "thread_ids", "older_than", "dry_run")
    check_known("threads.prune", filter, own, FILTER_NAMES)
    request = PruneThreadsRequest()
    if check_flag("delete", delete) == (keep_last is not None):
        raise ValueError("prune: give keep_last or delete=True, and not both")
    if keep_last is None:
        request.delete = True
    else:
        request.keep_last = check_integer("keep_last", keep_last)
    request.thread_ids.extend(check_names("thread_ids", thread_ids))
    if older_than is not None:
        set_duration(request.older_than, "older_than", older_than)
    request.dry_run = check_flag("dry_run", dry_run)
    to_filter(request.filter, filter)
    return request
