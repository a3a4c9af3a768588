/** A server of ours above the store: every request is handed to the test, which gives the answer. */

import { createLog, type Log } from "../log.js";
import { type CallName, operations, streams } from "../protocol/operations.js";
import { defaultMessageBytes } from "../protocol/wire.js";
import { createCalls, type FinishedCall } from "../server/call.js";
import { createHealth } from "../server/health.js";
import { startListener } from "../server/http.js";
import { Intake } from "../server/intake.js";
import { defaultLimits, type Limits } from "../server/limits.js";
import type { Operations } from "../server/operation_handlers.js";
import { createRpc, type RpcOptions } from "../server/rpc.js";
import type { Streams } from "../server/stream_handlers.js";

/** A server that listens. */
export interface EchoServer {
  readonly url: string;
  /** The calls that are over. */
  readonly finished: readonly FinishedCall[];
  stop(): Promise<void>;
}

/**
 * Starts one: `answer` is called with what was asked and returns the answer, of a stream its
 * messages. `limits` are in place of the default ones; their age is the sessions' too. `options` are
 * in place of what it serves with otherwise.
 */
export async function startEchoServer(
  answer: (name: CallName, request: unknown) => unknown,
  ownLimits: Partial<Limits> = {},
  log: Log = createLog("silent"),
  options: Partial<RpcOptions> = {},
): Promise<EchoServer> {
  const finished: FinishedCall[] = [];
  const limits = { ...defaultLimits, ...ownLimits };
  const rpc = createRpc({
    operations: Object.fromEntries(
      Object.keys(operations).map((name) => [
        name,
        async (request: unknown) => answer(name as CallName, request),
      ]),
    ) as unknown as Operations,
    streams: Object.fromEntries(
      Object.keys(streams).map((name) => [
        name,
        async function* (request: unknown) {
          yield* answer(name as CallName, request) as AsyncIterable<unknown>;
        },
      ]),
    ) as unknown as Streams,
    calls: createCalls([(call) => finished.push(call)], new Intake(limits)),
    limits,
    health: createHealth().service,
    isReady: () => true,
    fallback: (_, response) => void response.end(),
    maxMessageSize: defaultMessageBytes,
    compression: false,
    callTimeoutMs: 60_000,
    sessionAgeMs: limits.ageMs || 3_600_000,
    log,
    ...options,
  });
  const { handler, upgrade } = rpc;
  const listener = await startListener({
    host: "127.0.0.1",
    port: 0,
    handler,
    upgrade,
    limits,
    log,
  });
  return {
    url: `http://127.0.0.1:${listener.port}`,
    finished,
    async stop() {
      rpc.sayGoodbye();
      await listener.drain(1_000);
    },
  };
}
