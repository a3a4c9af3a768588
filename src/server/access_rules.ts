/**
 * What each call needs its caller to have been granted. A call that has no rule does not compile, and
 * a test goes through every field of every request: one that may name a thread is judged here or has
 * a reason beside it.
 */
import { ThreadOrder } from "../../gen/checkpointd/v1/thread_service_pb.js";
import type { Grant, Operation, Pattern, Principal } from "../auth/principal.js";
import { CheckpointdError } from "../errors.js";
import type { CallName, Request } from "../protocol/operations.js";

/** Throws PERMISSION_DENIED unless the caller may have the request carried out. */
type Rule<Name extends CallName> = (principal: Principal, request: Request<Name>) => void;

/**
 * The rules. They look at the request alone and never at what is stored, so that nobody learns from
 * a denial whether a thread exists. What answers with a status, a lease or a count takes "read" besides,
 * so that nobody learns it from an answer either.
 *
 * Who is not granted all threads lists by a prefix that is granted, and in the order of ids: that walk
 * begins and ends within the prefix, while the others pass what belongs to others, which takes time.
 */
export const accessRules: { readonly [Name in CallName]: Rule<Name> } = {
  getTuple: (principal, { threadId }) => one(principal, "read", "thread_id", threadId),
  put: (principal, { threadId }) => one(principal, "write", "thread_id", threadId),
  putWrites: (principal, { threadId }) => one(principal, "write", "thread_id", threadId),
  putExtending: (principal, { put }) =>
    one(principal, "write", "put.thread_id", put?.threadId ?? ""),
  deleteThread: (principal, { threadId }) => one(principal, "delete", "thread_id", threadId),
  list: listRule,
  listPage: (principal, { list }) => listRule(principal, list ?? {}),
  getThread: (principal, { threadId }) => one(principal, "read", "thread_id", threadId),
  getChannelHistory: (principal, { threadId }) => one(principal, "read", "thread_id", threadId),
  listThreads(principal, { filter, order, after }) {
    prefix(principal, "read", "filter.thread_id_prefix", filter?.threadIdPrefix);
    if (after) one(principal, "read", "after.thread_id", after.threadId);
    if (order !== ThreadOrder.BY_ID && !mayAll(principal, "read")) {
      throw denied("order", "list all threads by time: ask for THREAD_ORDER_BY_ID");
    }
  },
  claimThreads(principal, { threadId, filter }) {
    for (const operation of ["lease", "read"] as const) {
      if (threadId !== "") one(principal, operation, "thread_id", threadId);
      else prefix(principal, operation, "filter.thread_id_prefix", filter?.threadIdPrefix);
    }
  },
  renewClaim: (principal, { threadId }) => telling(principal, ["lease"], "thread_id", threadId),
  releaseClaim: (principal, { threadId, force }) =>
    telling(principal, [force ? "admin" : "lease"], "thread_id", threadId),
  copyThread(principal, { sourceThreadId, targetThreadId }) {
    telling(principal, ["copy", "write"], "target_thread_id", targetThreadId);
    telling(principal, ["copy"], "source_thread_id", sourceThreadId);
  },
  deleteRuns(principal) {
    // Whose threads the runs are in, only what is stored could tell.
    if (!mayAll(principal, "delete")) throw denied("run_ids", "delete in all threads");
    if (!mayAll(principal, "read")) throw denied("run_ids", "read all threads");
  },
  pruneThreads(principal, { threadIds, filter, strategy, afterThreadId }) {
    const needed: Operation[] = ["prune", "read"];
    if (strategy.case === "delete") needed.push("delete");
    for (const operation of needed) {
      for (const [i, threadId] of threadIds.entries()) {
        one(principal, operation, `thread_ids[${i}]`, threadId);
      }
      if (threadIds.length === 0) {
        prefix(principal, operation, "filter.thread_id_prefix", filter?.threadIdPrefix);
      }
      if (afterThreadId !== "") one(principal, operation, "after_thread_id", afterThreadId);
    }
  },
};

/** The operations, and `read`: what the answer says, or whether there is one, tells of the thread. */
function telling(
  principal: Principal,
  operations: readonly Operation[],
  field: string,
  threadId: string,
): void {
  for (const operation of operations) one(principal, operation, field, threadId);
  one(principal, "read", field, threadId);
}

function listRule(
  principal: Principal,
  { threadId, after }: Partial<Pick<Request<"list">, "threadId" | "after">>,
): void {
  if (threadId !== undefined) one(principal, "read", "thread_id", threadId);
  else if (!mayAll(principal, "read")) throw denied("thread_id", "read all threads: name one");
  if (after) one(principal, "read", "after.thread_id", after.threadId);
}

/** Whether all threads of the tenant are granted for the operation. */
export const mayAll = (principal: Principal, operation: Operation): boolean =>
  findGrant(principal, operation, ({ kind }) => kind === "all") !== undefined;

/** Where in the principal's grants the first one is that allows the operation on a thread; undefined: none does. */
export const grantFor = (
  principal: Principal,
  operation: Operation,
  threadId: string,
): number | undefined =>
  findGrant(principal, operation, (pattern) => {
    if (pattern.kind === "all") return true;
    if (pattern.kind === "exact") return pattern.text === threadId;
    return threadId.startsWith(pattern.text);
  });

function one(principal: Principal, operation: Operation, field: string, threadId: string): void {
  if (grantFor(principal, operation, threadId) !== undefined) return;
  throw denied(field, `${verbs[operation]} this thread`);
}

function prefix(principal: Principal, operation: Operation, field: string, given = ""): void {
  const covers = (pattern: Pattern) =>
    pattern.kind === "all" || (pattern.kind === "prefix" && given.startsWith(pattern.text));
  if (findGrant(principal, operation, covers) !== undefined) return;
  throw denied(field, `${verbs[operation]} all threads: give a prefix that it may`);
}

function findGrant(
  { grants }: Principal,
  operation: Operation,
  covers: (pattern: Pattern) => boolean,
): number | undefined {
  for (let i = 0; i < grants.length; i++) {
    const { operations, threads } = grants[i] as Grant;
    if (operations.has(operation) && threads.some(covers)) return i;
  }
  return undefined;
}

const verbs: Record<Operation, string> = {
  read: "read",
  write: "write to",
  delete: "delete",
  lease: "lease",
  prune: "prune",
  copy: "copy",
  admin: "administer",
};

const denied = (field: string, what: string) =>
  new CheckpointdError("permission_denied", `${field}: the credential may not ${what}`, {
    reason: "NOT_GRANTED",
    field,
  });
