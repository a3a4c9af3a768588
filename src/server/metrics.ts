/** Everything that a server measures, when somebody asks for it. */

import { startProcessMetrics } from "../metrics/process_metrics.js";
import { put, type Samples } from "../metrics/samples.js";
import type { Db } from "../store/db.js";
import { version } from "../version.js";
import type { Calls } from "./call.js";
import { type CallMetrics, createCallMetrics } from "./call_metrics.js";
import type { Gate } from "./gate.js";
import type { Listener } from "./http.js";
import type { Limits } from "./limits.js";
import type { Operations } from "./operation_handlers.js";
import type { Readiness } from "./readiness.js";
import type { RetentionTally } from "./retention.js";
import type { Rpc } from "./rpc.js";
import type { createTenants } from "./tenants.js";
import type { ThreadSample } from "./thread_sample.js";
import type { SpanTally } from "./traces.js";

/** The parts of a server that are measured. */
export interface Measured {
  db: Db;
  /** What the pool was made with. */
  options: { poolSize: number; queueLimit: number };
  limits: Pick<Limits, "requestBytes">;
  calls: Calls;
  rpc: Rpc;
  listener: Listener;
  readiness: Readiness;
  isDraining: () => boolean;
  gate: Gate | undefined;
  tenants: ReturnType<typeof createTenants> | undefined;
  listed: { readonly bytes: number };
  /** Undefined where there is no retention. */
  retention: RetentionTally | undefined;
  /** Undefined where threads are not sampled. */
  sample: ThreadSample | undefined;
  /** Undefined where calls are not traced. */
  spans: Readonly<SpanTally> | undefined;
}

/** The metrics of one server. */
export interface ServerMetrics {
  /** For createCalls. */
  readonly observe: CallMetrics["observe"];
  /** The operations, of which the leases are counted that they give. */
  countLeases(operations: Operations): Operations;
  /** What was measured until now. */
  samples(parts: Measured): Samples;
  stop(): void;
}

/** Begins to measure calls and the process; the other parts are asked when somebody asks. */
export function startServerMetrics(): ServerMetrics {
  const ofCalls = createCallMetrics();
  const ofProcess = startProcessMetrics();
  let leasesTaken = 0;
  return {
    observe: ofCalls.observe,
    countLeases: (operations) => ({
      ...operations,
      async claimThreads(request, signal) {
        const answer = await operations.claimThreads(request, signal);
        leasesTaken += answer.threads?.length ?? 0;
        return answer;
      },
    }),
    samples(parts) {
      const samples: Samples = {};
      ofCalls.addTo(samples, ["", ...(parts.gate?.authenticator.tenants.keys() ?? [])]);
      put(samples, "leasesTaken", leasesTaken);
      addPool(samples, parts);
      addDatabase(samples, parts);
      addClients(samples, parts);
      addCallers(samples, parts);
      addRetention(samples, parts.retention);
      parts.sample?.addTo(samples);
      addSpans(samples, parts.spans);
      put(samples, "buildInfo", 1, version(), process.versions.node);
      put(samples, "workers", 1);
      ofProcess.addTo(samples);
      return samples;
    },
    stop: () => ofProcess.stop(),
  };
}

function addPool(samples: Samples, { db, options }: Measured): void {
  const { running, waiting } = db.load();
  const { idle, long, longLimit, resultBytes, resultBytesLimit, history } = db.measures();
  put(samples, "poolConnections", running, "in_use");
  put(samples, "poolConnections", idle, "idle");
  put(samples, "poolLimit", options.poolSize);
  put(samples, "poolWaiting", waiting);
  put(samples, "poolWaitingLimit", options.queueLimit);
  put(samples, "poolLong", long);
  put(samples, "poolLongLimit", longLimit);
  put(samples, "poolOpened", history.opened);
  put(samples, "poolFailed", history.failed);
  for (const [reason, n] of Object.entries(history.lost)) put(samples, "poolLost", n, reason);
  put(samples, "resultBytes", resultBytes);
  put(samples, "resultBytesLimit", resultBytesLimit);
  if (history.host !== "") put(samples, "databaseHost", 1, history.host);
}

function addDatabase(samples: Samples, { readiness, isDraining }: Measured): void {
  const { isReachable, isWritable, lookMs, locks, standbyLagBytes, startedAt } =
    readiness.measures();
  put(samples, "ready", Number(readiness.isReady()));
  put(samples, "draining", Number(isDraining()));
  put(samples, "databaseReachable", Number(isReachable));
  put(samples, "databaseWritable", Number(isWritable));
  if (lookMs !== undefined) put(samples, "databaseProbeSeconds", lookMs / 1e3);
  put(samples, "tableLocks", locks);
  if (startedAt !== undefined) put(samples, "databaseStart", startedAt);
  if (standbyLagBytes !== undefined) put(samples, "standbyLag", standbyLagBytes);
}

function addClients(samples: Samples, { listener, rpc, calls, limits, listed }: Measured): void {
  const { connections, connectionsLimit, unread, unreadBytesLimit, cuts } = listener.measures();
  for (const [protocol, n] of Object.entries(connections)) {
    put(samples, "connections", n, protocol);
  }
  put(samples, "connectionsLimit", connectionsLimit);
  for (const [limit, n] of Object.entries(cuts)) put(samples, "connectionsCut", n, limit);
  const { sessions, streams, streamsLimit, answersLimit } = rpc.measures();
  const { begun, ...byAge } = sessions;
  for (const [age, n] of Object.entries(byAge)) put(samples, "sessions", n, age);
  put(samples, "sessionsOpened", begun);
  put(samples, "streams", streams.answers, "answers");
  // An answer may outlive its stream for a moment.
  put(samples, "streams", Math.max(0, streams.all - streams.answers), "other");
  put(samples, "streamsLimit", answersLimit, "answers");
  put(samples, "streamsLimit", streamsLimit, "all");
  put(samples, "streamsRefused", streams.refused);
  put(samples, "answersStalled", unread.stalled);
  put(samples, "unreadBytes", unread.bytes);
  put(samples, "unreadBytesLimit", unreadBytesLimit);
  put(samples, "requestHeldBytes", calls.intake.held);
  put(samples, "requestHeldBytesLimit", limits.requestBytes);
  put(samples, "listedBytes", listed.bytes);
  put(samples, "callsInFlight", calls.inFlight());
}

function addCallers(samples: Samples, { gate, tenants }: Measured): void {
  for (const [why, n] of gate?.refused ?? []) put(samples, "credentialsRefused", n, why);
  for (const { tenant, stored, limit } of tenants?.stored() ?? []) {
    put(samples, "tenantStoredBytes", stored, tenant);
    put(samples, "tenantStoredBytesLimit", limit, tenant);
  }
}

function addSpans(samples: Samples, spans: Readonly<SpanTally> | undefined): void {
  if (!spans) return;
  put(samples, "spansEnded", spans.ended);
  put(samples, "spansExported", spans.sent, "sent");
  put(samples, "spansExported", spans.failed, "failed");
  put(samples, "traceLimited", spans.limitedCalls);
}

function addRetention(samples: Samples, tally: RetentionTally | undefined): void {
  if (!tally) return;
  for (const [result, n] of Object.entries(tally.runs)) put(samples, "retentionRuns", n, result);
  const { checkpoints, blobs, writes, storedBytes } = tally.removed;
  put(samples, "retentionRemoved", Number(checkpoints), "checkpoints");
  put(samples, "retentionRemoved", Number(blobs), "checkpoint_blobs");
  put(samples, "retentionRemoved", Number(writes), "checkpoint_writes");
  put(samples, "retentionRemovedBytes", Number(storedBytes));
  put(samples, "retentionSeconds", tally.ms / 1e3);
  put(samples, "retentionDoneAt", tally.doneAt / 1e3);
}
