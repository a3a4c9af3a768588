/** Who may do what: every operation and stream passes here when the server asks who calls. */
import type { Operation, Principal } from "../auth/principal.js";
import { missing } from "../auth/refusal.js";
import { type CallName, operations, type Request, streams } from "../protocol/operations.js";
import { accessRules, grantFor } from "./access_rules.js";
import type { Audit } from "./audit.js";
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
  deleteRuns: () => ({ operation: "delete", threads: [] }),
  claimThreads: ({ threadId, filter }) => ({
    operation: "lease",
    threads: [threadId || `${filter?.threadIdPrefix ?? ""}*`],
  }),
  releaseClaim: ({ threadId, force }) => ({
    operation: force ? "admin" : "lease",
    threads: [threadId],
  }),
  copyThread: ({ sourceThreadId, targetThreadId }) => ({
    operation: "copy",
    threads: [targetThreadId, sourceThreadId],
  }),
  pruneThreads: ({ threadIds, filter, dryRun }) =>
    dryRun
      ? undefined
      : {
          operation: "prune",
          threads: threadIds.length > 0 ? threadIds : [`${filter?.threadIdPrefix ?? ""}*`],
        },
};
/** What counts against a tenant's quota. A copy is counted at the next count. */
const stores: ReadonlySet<CallName> = new Set(["put", "putExtending", "putWrites", "copyThread"]);
type Done = { operation: Operation; threads: readonly string[] } | undefined;

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
      audit(call, { action: name, threads: namedBy(request), error });
      throw error;
    }
    return storeOf(principal);
  }

  function tell<Name extends CallName>(
    name: Name,
    request: Request<Name>,
    call: Call,
    error?: unknown,
  ): void {
    const done = audited[name]?.(request);
    if (!done || !call.principal) return;
    const { operation, threads } = done;
    const grant = grantFor(call.principal, operation, threads[0] ?? "");
    audit(call, { action: name, threads, grant, error });
  }

  const carried = Object.keys(operations).map((key) => {
    const name = key as keyof Operations;
    const isAudited = audited[name] !== undefined;
    const carryOut = async (request: never, call: Call) => {
      const entered = enter(name, request, call);
      // Not awaited for nothing: that is one more turn for each call.
      const { operations, quota } = entered instanceof Promise ? await entered : entered;
      if (stores.has(name)) quota.take(call.requestBytes);
      if (!isAudited) return operations[name](request, call);
      try {
        const answer = await operations[name](request, call);
        tell(name, request, call);
        return answer;
      } catch (error) {
        tell(name, request, call, error);
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
        let error: unknown;
        try {
          yield* store.streams[name](request, call);
        } catch (reason) {
          error = reason;
          throw reason;
        } finally {
          tell(name, request, call, error);
        }
      },
    ];
  });
  return {
    operations: Object.fromEntries(carried) as Operations,
    streams: Object.fromEntries(streamed) as Streams,
  };
}

/** The threads that a request which is denied names, wherever it does. */
function namedBy(request: object): string[] {
  const names: string[] = [];
  for (const [key, value] of Object.entries(request)) {
    if (/thread_?id$/i.test(key) && typeof value === "string" && value !== "") names.push(value);
    else if (/thread_?ids$/i.test(key) && Array.isArray(value)) names.push(...value);
    else if (key === "put" || key === "list") names.push(...namedBy(value ?? {}));
    else if (key === "filter" && value?.threadIdPrefix) names.push(`${value.threadIdPrefix}*`);
  }
  return names;
}
