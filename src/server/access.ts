/** Who may do what: every operation and stream passes here when the server asks who calls. */
import type { Operation, Principal } from "../auth/principal.js";
import { missing } from "../auth/refusal.js";
import {
  type Answer,
  type AnswerInit,
  type CallName,
  operations,
  type Request,
  streams,
} from "../protocol/operations.js";
import { accessRules, grantFor } from "./access_rules.js";
import { type Audit, type Audited, type Names, toNames, withName } from "./audit.js";
import type { Call } from "./call.js";
import type { Operations } from "./operation_handlers.js";
import type { Streams } from "./stream_handlers.js";
import type { TenantStore } from "./tenants.js";

/** What answers the calls of one tenant. */
export interface Store {
  readonly operations: Operations;
  readonly streams: Streams;
}

/** What is told in the audit log when it was done; the others only when they are denied. */
const audited: { readonly [Name in CallName]?: (request: Request<Name>) => Done } = {
  deleteThread: ({ threadId }) => ({ operation: "delete", threads: [threadId] }),
  deleteRuns: ({ runIds }) => ({ operation: "delete", prefix: "", runs: runIds }),
  claimThreads: ({ threadId, filter }) =>
    threadId
      ? { operation: "lease", threads: [threadId] }
      : { operation: "lease", prefix: filter?.threadIdPrefix ?? "" },
  releaseClaim: ({ threadId, force }) => ({
    operation: force ? "admin" : "lease",
    threads: [threadId],
  }),
  copyThread: ({ sourceThreadId, targetThreadId }) => ({
    operation: "copy",
    threads: [targetThreadId, sourceThreadId],
  }),
  pruneThreads({ threadIds, filter, dryRun }) {
    if (dryRun) return undefined;
    if (threadIds.length > 0) return { operation: "prune", threads: threadIds };
    return { operation: "prune", prefix: filter?.threadIdPrefix ?? "" };
  },
};
/**
 * What counts against a tenant's quota: what comes, inflated, and what of a value is there already. Of a
 * copy its answer tells.
 */
const stores: { readonly [Name in CallName]?: (request: Request<Name>, call: Call) => number } = {
  put: (_, call) => sizeOf(call),
  putWrites: (_, call) => sizeOf(call),
  putExtending: ({ prefixes }, call) =>
    prefixes.reduce((bytes, { length }) => bytes + length, sizeOf(call)),
  copyThread: (_, call) => sizeOf(call),
};
const sizeOf = ({ requestBytes, inflatedBytes }: Call) => Math.max(requestBytes, inflatedBytes);
const copiedBytes = (answer: object) =>
  Number((answer as AnswerInit<"copyThread">).copied?.storedBytes ?? 0);
/** By its names, or by what they begin with. */
type Done =
  | {
      operation: Operation;
      threads?: readonly string[];
      prefix?: string;
      runs?: readonly string[];
    }
  | undefined;
/** That it was given up before its end, and not by us. */
const cutOff = new Error("its reader went away");

/**
 * Operations and streams that are carried out for whom the rules allow them, in the store of its
 * tenant. Without a principal there is none: a way here that forgot to ask answers UNAUTHENTICATED.
 */
export function createAccess(
  storeOf: (principal: Principal) => TenantStore | Promise<TenantStore>,
  audit: Audit,
): Store {
  function enter<Name extends CallName>(
    name: Name,
    request: Request<Name>,
    call: Call,
  ): TenantStore | Promise<TenantStore> {
    const { principal } = call;
    if (!principal) throw missing();
    try {
      accessRules[name](principal, request);
    } catch (error) {
      audit.call(call, { action: name, ...namedBy(request), error });
      throw error;
    }
    return storeOf(principal);
  }

  /** `came` are the threads that it came to, where the request names none. */
  function tell<Name extends CallName>(
    name: Name,
    request: Request<Name>,
    call: Call,
    came: Names,
    error?: unknown,
  ): void {
    const done = audited[name]?.(request);
    if (!done || !call.principal) return;
    const { operation, threads, prefix, runs } = done;
    audit.call(call, {
      action: name,
      threads: threads ? toNames(threads) : came,
      prefix,
      ...(runs ? { runs: toNames(runs) } : {}),
      grant: grantFor(call.principal, operation, threads?.[0] ?? prefix ?? ""),
      error,
    });
  }

  const carried = Object.keys(operations).map((key) => {
    const name = key as keyof Operations;
    const isAudited = audited[name] !== undefined;
    const stored = stores[name];
    const carryOut = async (request: never, call: Call) => {
      const entered = enter(name, request, call);
      // Not awaited for nothing: that is one more turn for each call.
      const { operations, quota } = entered instanceof Promise ? await entered : entered;
      const isCounted = stored !== undefined && quota.isLimited;
      if (!isAudited && !isCounted) return operations[name](request, call);
      const carry = (): Promise<object> => operations[name](request, call);
      const run = () =>
        isCounted ? quota.store(stored(request, call), carry, copiedBytes) : carry();
      if (!isAudited) return run();
      try {
        const answer = await run();
        tell(name, request, call, claimedIn(answer));
        return answer;
      } catch (error) {
        tell(name, request, call, nothing, error);
        throw error;
      }
    };
    return [name, carryOut];
  });
  const streamed = Object.keys(streams).map((key) => {
    const name = key as keyof Streams;
    return [
      name,
      async function* (request: never, call: Call) {
        const store = await enter(name, request, call);
        if (!audited[name]) {
          yield* store.streams[name](request, call);
          return;
        }
        let came = nothing;
        let error: unknown = cutOff;
        try {
          for await (const message of store.streams[name](request, call)) {
            const { threadId } = message as Partial<Answer<"pruneThreads">>;
            if (threadId) came = withName(came, threadId);
            yield message;
          }
          error = undefined;
        } catch (reason) {
          error = reason;
          throw reason;
        } finally {
          tell(name, request, call, came, error);
        }
      },
    ];
  });
  return {
    operations: Object.fromEntries(carried) as Operations,
    streams: Object.fromEntries(streamed) as Streams,
  };
}

const nothing = toNames([]);

/** The threads that a claim came to; none in other answers. */
function claimedIn(answer: object): Names {
  const { threads = [] } = answer as AnswerInit<"claimThreads">;
  return toNames(threads.flatMap(({ thread }) => thread?.threadId ?? []));
}

/** The threads that a request which is denied names, wherever it does. */
function namedBy(request: object): Pick<Audited, "threads" | "prefix"> {
  let threads = nothing;
  let prefix: string | undefined;
  const look = (part: object) => {
    for (const [key, value] of Object.entries(part)) {
      if (/thread_?id$/i.test(key) && typeof value === "string" && value !== "") {
        threads = withName(threads, value);
      } else if (/thread_?ids$/i.test(key) && Array.isArray(value)) {
        for (const name of value) threads = withName(threads, name);
      } else if (/^(put|list|after)$/.test(key)) {
        look(value ?? {});
      } else if (key === "filter") {
        prefix = value?.threadIdPrefix ?? "";
      }
    }
  };
  look(request);
  return { threads, prefix };
}
