import { create } from "@bufbuild/protobuf";
import { timestampDate } from "@bufbuild/protobuf/wkt";
import type { PutRequest } from "../../gen/checkpointd/v1/checkpoint_service_pb.js";
import { ThreadFilterSchema } from "../../gen/checkpointd/v1/thread_service_pb.js";
import type { Principal } from "../auth/principal.js";
import { CheckpointdError } from "../errors.js";
import type { Log } from "../log.js";
import type { AnswerInit, OperationName, Request } from "../protocol/operations.js";
import { copyThread } from "../store/copy_thread.js";
import type { Db, Signal } from "../store/db.js";
import { deleteRuns } from "../store/delete_runs.js";
import { deleteThread } from "../store/delete_thread.js";
import { claimThreads, countLeases, endLease, releaseLease, renewLease } from "../store/leases.js";
import { listPage } from "../store/list_checkpoints.js";
import { createPut } from "../store/put.js";
import { createPutExtending } from "../store/put_extending.js";
import { createPutWrites } from "../store/put_writes.js";
import { createGetTuple } from "../store/read.js";
import { getThread } from "../store/read_threads.js";
import { mayAll } from "./access_rules.js";
import {
  checkDeleteThread,
  checkGetTuple,
  checkListPage,
  checkPut,
  checkPutExtending,
  checkPutWrites,
} from "./request_checks.js";
import {
  checkClaimThreads,
  checkCopyThread,
  checkDeleteRuns,
  checkGetThread,
  checkReleaseClaim,
  checkRenewClaim,
  toMs,
} from "./thread_checks.js";

/** Who waits for an operation, and who that is where the server asks. */
export interface Caller extends Signal {
  readonly principal?: Principal | undefined;
}

/** Every operation, for whatever carries it: RPCs and sessions. Errors rise to who carries it. */
export type Operations = {
  readonly [Name in OperationName]: (
    request: Request<Name>,
    signal: Caller,
  ) => Promise<AnswerInit<Name>>;
};

const defaultLeaseMs = 60_000;
const defaultGraceMs = 60_000;

/**
 * Each is: check the request, run it, answer. `maxMessageSize` also holds for what a request stands
 * for when it is not sent in full.
 */
export function createOperations(db: Db, maxMessageSize: number, log: Log): Operations {
  const getTuple = createGetTuple(db);
  const put = createPut(db);
  const putExtending = createPutExtending(db);
  const putWrites = createPutWrites(db);
  /** The last claim of each principal that has a limit of leases. */
  const claiming = new Map<string, Promise<unknown>>();
  return {
    getTuple: checked(checkGetTuple, async (request, signal) => {
      const tuple = await getTuple(request, signal);
      return tuple ? { tuple } : {};
    }),
    put: checked(
      (request: Request<"put">) => checkPut(request, maxMessageSize),
      async (request, signal) => {
        await put(request, signal);
        return {};
      },
    ),
    putExtending: checked(
      (request: Request<"putExtending">) => checkPutExtending(request, maxMessageSize),
      async ({ put, prefixes }, signal) => {
        const extending = { put: put as PutRequest, prefixes };
        return { transactionId: await putExtending(extending, signal) };
      },
    ),
    putWrites: checked(checkPutWrites, async (request, signal) => {
      await putWrites(request, signal);
      return {};
    }),
    deleteThread: checked(checkDeleteThread, async (request, signal) => {
      await deleteThread(db, request.threadId, signal);
      return {};
    }),
    async listPage(request, signal) {
      const list = checkListPage(request);
      const { maxTuples, afterCheckpointJson: checkpointJson } = request;
      const last =
        list.after && checkpointJson !== "" ? { key: list.after, checkpointJson } : undefined;
      return listPage(db, list, maxTuples, last, signal);
    },
    getThread: checked(checkGetThread, async (request, signal) => {
      const thread = await getThread(db, request, signal);
      return thread ? { thread } : {};
    }),
    claimThreads: checked(checkClaimThreads, async (request, signal) => {
      const { principal } = signal;
      const claim = async (most: number) => {
        const wanted = {
          owner: principal ? ownerOf(principal, request.owner) : request.owner,
          byId: principal !== undefined && !mayAll(principal, "lease"),
          leaseMs: toMs(request.leaseDuration, defaultLeaseMs),
          graceMs: toMs(request.grace, defaultGraceMs),
          limit: Math.min(request.limit || 1, most),
          filter: request.filter ?? create(ThreadFilterSchema),
          threadId: request.threadId,
          except: request.exceptThreadIds,
        };
        return { threads: await claimThreads(db, wanted, signal) };
      };
      const limit = principal?.limits.leases;
      if (!principal || limit === undefined) return claim(Number.POSITIVE_INFINITY);
      return inTurn(claiming, principal.name, async () =>
        claim(await leasesLeft(db, principal.name, limit, signal)),
      );
    }),
    renewClaim: checked(checkRenewClaim, async (request, signal) => {
      const { threadId, leaseToken, leaseDuration } = request;
      const leaseMs = toMs(leaseDuration, defaultLeaseMs);
      return { expireTime: await renewLease(db, threadId, leaseToken, leaseMs, signal) };
    }),
    releaseClaim: checked(checkReleaseClaim, async ({ threadId, leaseToken, force }, signal) => {
      if (!force) {
        await releaseLease(db, threadId, leaseToken, signal);
        return {};
      }
      const ended = await endLease(db, threadId, signal);
      if (ended) {
        // With the names: who takes a thread from a worker has to answer for it.
        const until = timestampDate(ended.expires).toISOString();
        log.warn({ threadId, owner: ended.owner, until }, "a lease was ended by force");
      }
      return {};
    }),
    copyThread: checked(checkCopyThread, async (request, signal) => {
      const { sourceThreadId, targetThreadId } = request;
      return { copied: await copyThread(db, sourceThreadId, targetThreadId, signal) };
    }),
    deleteRuns: checked(checkDeleteRuns, async (request, signal) => {
      return { removed: await deleteRuns(db, request.runIds, signal) };
    }),
  };
}

/**
 * A lease's owner is the principal, whatever else the worker calls itself: without a "/" there, by
 * which "user" could pass for "user/ann".
 */
const ownerOf = ({ name }: Principal, owner: string) => `${name}/${owner.replaceAll("/", "%2F")}`;

/** How many leases the caller may yet take. Throws LIMIT_REACHED if it is none. */
async function leasesLeft(db: Db, name: string, limit: number, signal: Caller): Promise<number> {
  const left = limit - (await countLeases(db, `${name}/`, signal));
  if (left > 0) return left;
  throw new CheckpointdError(
    "resource_exhausted",
    `the credential holds its ${limit} leases; release one or wait until one ends`,
    { reason: "LIMIT_REACHED", field: "leases", limit },
  );
}

/** Runs it after what was run before it under the name: several claims at once would each find the same room. */
async function inTurn<Answer>(
  turns: Map<string, Promise<unknown>>,
  name: string,
  run: () => Promise<Answer>,
): Promise<Answer> {
  const before = turns.get(name);
  const turn = (async () => {
    await before?.catch(() => {});
    return run();
  })();
  turns.set(name, turn);
  try {
    return await turn;
  } finally {
    if (turns.get(name) === turn) turns.delete(name);
  }
}

function checked<Message, Answer>(
  check: (request: Message) => unknown,
  run: (request: Message, signal: Caller) => Promise<Answer>,
): (request: Message, signal: Caller) => Promise<Answer> {
  return async (request, signal) => {
    check(request);
    return run(request, signal);
  };
}
