/** What a request of ThreadService may hold; see request_checks.ts. */
import { type Duration, type Timestamp, timestampFromMs } from "@bufbuild/protobuf/wkt";
import {
  type ClaimThreadsRequest,
  type CopyThreadRequest,
  type DeleteRunsRequest,
  type GetChannelHistoryRequest,
  type GetThreadRequest,
  type ListThreadsRequest,
  type PruneThreadsRequest,
  type ReleaseClaimRequest,
  type RenewClaimRequest,
  type ThreadFilter,
  ThreadOrder,
  ThreadStatus,
} from "../../gen/checkpointd/v1/thread_service_pb.js";
import { invalidArgument } from "../errors.js";
import { checkFilterJson } from "./json_checks.js";
import { checkCharacters, checkCount, checkName, checkText, limits } from "./text_checks.js";

const second = 1_000;
const hour = 60 * 60 * second;
const day = 24 * hour;

export function checkListThreads(request: ListThreadsRequest): void {
  checkFilter(request.filter);
  if (!(request.order in ThreadOrder)) {
    throw invalidArgument("order", "OUT_OF_RANGE", "must be a ThreadOrder this server knows");
  }
  if (request.limit !== undefined && request.limit < 0) {
    throw invalidArgument("limit", "OUT_OF_RANGE", "must be zero or more", 0);
  }
  if (request.examineLimit !== undefined && request.examineLimit < 0) {
    throw invalidArgument("examine_limit", "OUT_OF_RANGE", "must be zero or more", 0);
  }
  if (!request.after) return;
  checkName("after.thread_id", request.after.threadId);
  checkTime("after.update_time", request.after.updateTime);
  if (request.order !== ThreadOrder.BY_ID && !request.after.updateTime) {
    throw invalidArgument("after.update_time", "REQUIRED", "must be set for this order");
  }
}

export function checkGetThread(request: GetThreadRequest): void {
  checkName("thread_id", request.threadId);
}

export function checkClaimThreads(request: ClaimThreadsRequest): void {
  checkName("owner", request.owner, limits.owner);
  checkDuration("lease_duration", request.leaseDuration, second, hour);
  checkDuration("grace", request.grace, 0, 365 * day);
  if (request.limit < 0 || request.limit > limits.threads) {
    const range = `must be from 1 to ${limits.threads}, or 0 for 1`;
    throw invalidArgument("limit", "OUT_OF_RANGE", range, limits.threads);
  }
  checkFilter(request.filter);
  checkText("thread_id", request.threadId);
  checkNames("except_thread_ids", request.exceptThreadIds);
}

export function checkRenewClaim(request: RenewClaimRequest): void {
  checkName("thread_id", request.threadId);
  checkName("lease_token", request.leaseToken, limits.leaseToken);
  checkDuration("lease_duration", request.leaseDuration, second, hour);
}

export function checkReleaseClaim(request: ReleaseClaimRequest): void {
  checkName("thread_id", request.threadId);
  if (!request.force) {
    checkName("lease_token", request.leaseToken, limits.leaseToken);
  } else if (request.leaseToken !== "") {
    throw invalidArgument("force", "OUT_OF_RANGE", "must be false where a lease_token is given");
  }
}

export function checkGetChannelHistory(request: GetChannelHistoryRequest): void {
  checkName("thread_id", request.threadId);
  checkText("checkpoint_ns", request.checkpointNs);
  checkText("checkpoint_id", request.checkpointId);
  checkNames("channels", request.channels, limits.elements);
}

export function checkCopyThread(request: CopyThreadRequest): void {
  checkName("source_thread_id", request.sourceThreadId);
  checkName("target_thread_id", request.targetThreadId);
}

export function checkDeleteRuns(request: DeleteRunsRequest): void {
  checkNames("run_ids", request.runIds);
}

export function checkPruneThreads(request: PruneThreadsRequest): void {
  checkFilter(request.filter);
  checkNames("thread_ids", request.threadIds);
  if (request.filter && request.threadIds.length > 0) {
    throw invalidArgument("thread_ids", "OUT_OF_RANGE", "must be empty where a filter is given");
  }
  const { strategy } = request;
  if (strategy.case === undefined) {
    throw invalidArgument("strategy", "REQUIRED", "give keep_last or delete");
  }
  if (strategy.case === "delete" && !strategy.value) {
    throw invalidArgument("delete", "OUT_OF_RANGE", "must be true where it is given");
  }
  if (strategy.case === "keepLast" && (strategy.value < 1 || strategy.value > limits.keepLast)) {
    const range = `must be from 1 to ${limits.keepLast}`;
    throw invalidArgument("keep_last", "OUT_OF_RANGE", range, limits.keepLast);
  }
  checkDuration("older_than", request.olderThan, 0, 36_525 * day);
  checkText("after_thread_id", request.afterThreadId);
}

/** A duration in milliseconds; `fallback` where it is absent. */
export function toMs(duration: Duration | undefined, fallback: number): number {
  return duration ? Number(duration.seconds) * 1_000 + Math.floor(duration.nanos / 1e6) : fallback;
}

function checkFilter(filter: ThreadFilter | undefined): void {
  if (!filter) return;
  if (filter.statuses.length > 4) {
    throw invalidArgument("filter.statuses", "TOO_MANY", "must have at most 4 elements", 4);
  }
  for (const [i, status] of filter.statuses.entries()) {
    if (status === ThreadStatus.UNSPECIFIED || !(status in ThreadStatus)) {
      const field = `filter.statuses[${i}]`;
      throw invalidArgument(field, "OUT_OF_RANGE", "must be a ThreadStatus this server knows");
    }
  }
  checkText("filter.thread_id_prefix", filter.threadIdPrefix);
  if (filter.metadataFilterJson !== "") {
    checkFilterJson("filter.metadata_filter_json", filter.metadataFilterJson);
  }
  if (filter.graph !== undefined) checkCharacters("filter.graph", filter.graph);
  checkTime("filter.updated_after", filter.updatedAfter);
  checkTime("filter.updated_before", filter.updatedBefore);
}

function checkNames(field: string, names: readonly string[], limit: number = limits.threads): void {
  checkCount(field, names.length, limit);
  const seen = new Set<string>();
  for (const [i, name] of names.entries()) {
    checkName(`${field}[${i}]`, name);
    if (seen.size === seen.add(name).size) {
      throw invalidArgument(`${field}[${i}]`, "DUPLICATE", "is given a second time");
    }
  }
}

function checkDuration(
  field: string,
  duration: Duration | undefined,
  least: number,
  most: number,
): void {
  if (!duration) return;
  const ms = toMs(duration, 0);
  if (duration.nanos < 0 || ms < least || ms > most) {
    const range = `must be from ${least / second} to ${most / second} seconds`;
    throw invalidArgument(field, "OUT_OF_RANGE", range, (ms < least ? least : most) / second);
  }
}

/** The years Timestamp promises, 1 to 9999, which Postgres knows too. */
const firstTime = timestampFromMs(Date.parse("0001-01-01T00:00:00Z"));
const lastTime = timestampFromMs(Date.parse("9999-12-31T23:59:59Z"));

function checkTime(field: string, time: Timestamp | undefined): void {
  if (!time) return;
  const isWithin = time.seconds >= firstTime.seconds && time.seconds <= lastTime.seconds;
  if (!isWithin || time.nanos < 0 || time.nanos > 999_999_999) {
    throw invalidArgument(field, "OUT_OF_RANGE", "must be a time of the years 1 to 9999");
  }
}
