import { setMaxListeners } from "node:events";
import type { IncomingMessage } from "node:http";
import type { Socket } from "node:net";
import type { ConnectError, ConnectRouter, ServiceImpl } from "@connectrpc/connect";
import { CheckpointService } from "../../gen/checkpointd/v1/checkpoint_service_pb.js";
import { SessionService } from "../../gen/checkpointd/v1/session_service_pb.js";
import { ThreadService } from "../../gen/checkpointd/v1/thread_service_pb.js";
import { Health } from "../../gen/health/v1/health_pb.js";
import type { Log } from "../log.js";
import { compressFromBytes } from "../protocol/wire.js";
import type { Calls } from "./call.js";
import type { Gate } from "./gate.js";
import { createHandler, type NodeHandler, type OpenStreams } from "./handler.js";
import { createInterceptor } from "./interceptors.js";
import { defaultLimits, type Limits } from "./limits.js";
import type { Operations } from "./operation_handlers.js";
import { createReflection } from "./reflection.js";
import { boundedGzip } from "./request_body.js";
import { createServices } from "./services.js";
import { createSessions, type Sessions } from "./session.js";
import { carrySession, carryUpgraded, createSessionService } from "./session_stream.js";
import type { Streams } from "./stream_handlers.js";

/** What requests are answered with. */
export interface RpcOptions {
  operations: Operations;
  streams: Streams;
  calls: Calls;
  health: ServiceImpl<typeof Health>;
  /** Services that are no part of ours, served just as they are: the tests bring their judge's. */
  others?: (router: ConnectRouter) => void;
  /** While it is false, calls that need the database are refused. */
  isReady: () => boolean;
  /** Answers what is no RPC. */
  fallback: NodeHandler;
  /** As ServerOptions has them. */
  maxMessageSize: number;
  compression: boolean;
  callTimeoutMs: number;
  sessionAgeMs: number;
  limits?: Pick<Limits, "streamedAnswers" | "streamsInAll">;
  /** Asks who calls; undefined: everybody may do everything. */
  gate?: Gate | undefined;
  log: Log;
}

/** The answers to every RPC and session, for a listener. */
export interface Rpc {
  readonly handler: NodeHandler;
  /** As ListenerOptions has it. */
  readonly upgrade: (request: IncomingMessage, socket: Socket) => boolean;
  /** What is open, to be told to whoever watches the server. */
  measures(): {
    sessions: ReturnType<Sessions["measures"]>;
    streams: Readonly<OpenStreams>;
    streamsLimit: number;
    answersLimit: number;
  };
  /** Asks the clients of all sessions that there are to move. */
  retire(): void;
  /** Asks the clients of all sessions to move, and those that come later at once. */
  sayGoodbye(): void;
  /** Gives up everything that runs, which is answered with the error. */
  abort(error: ConnectError): void;
}

/** Serves the operations and streams by RPCs, in each protocol that connect-es speaks, and sessions. */
export function createRpc(options: RpcOptions): Rpc {
  const { operations, streams, calls, isReady, maxMessageSize, callTimeoutMs, gate, log } = options;
  const { streamedAnswers, streamsInAll } = options.limits ?? defaultLimits;
  const shutdown = new AbortController();
  // Every running call listens to it.
  setMaxListeners(0, shutdown.signal);
  const open: OpenStreams = { all: 0, answers: 0, refused: 0 };
  const services = createServices(operations, streams, calls, callTimeoutMs, streamedAnswers, open);
  const sessions = createSessions({
    operations,
    calls,
    isReady,
    callTimeoutMs,
    maxInFlight: 256,
    maxAgeMs: options.sessionAgeMs,
    usage: gate?.usage,
  });
  const handler = createHandler(
    (router) => {
      router.service(CheckpointService, services.checkpoints);
      router.service(ThreadService, services.threads);
      router.service(SessionService, createSessionService(sessions));
      router.service(Health, options.health);
      createReflection([CheckpointService, ThreadService, SessionService, Health])(router);
      options.others?.(router);
    },
    {
      interceptors: [createInterceptor(isReady)],
      readMaxBytes: maxMessageSize,
      // Kept, each would be an object; they would be forgotten all the same.
      binaryOptions: { readUnknownFields: false },
      // Not replaced by U+FFFD: a name that is not UTF-8 must not be stored as another.
      // (Documented by connect for its JSON serialization, missing in the router's type.)
      jsonOptions: { textDecoder: new TextDecoder("utf-8", { fatal: true }) } as object,
      // Compressed requests are always read. Many clients say that they accept answers that are,
      // also on a local network, where it costs more than it saves (47 KB: 1 ms of CPU).
      acceptCompression: [boundedGzip],
      compressMinBytes: options.compression ? compressFromBytes : 0xffff_ffff,
      shutdownSignal: shutdown.signal,
    },
    maxMessageSize,
    streamsInAll,
    open,
    calls,
    log,
    gate,
    (request, response, principal) =>
      carrySession(sessions, maxMessageSize, request, response, principal),
    options.fallback,
  );
  return {
    handler,
    upgrade: (request, socket) => carryUpgraded(sessions, maxMessageSize, gate, request, socket),
    measures: () => ({
      sessions: sessions.measures(),
      streams: open,
      streamsLimit: streamsInAll,
      answersLimit: streamedAnswers,
    }),
    retire: () => sessions.retire(),
    sayGoodbye: () => sessions.sayGoodbye(),
    abort(error) {
      sessions.abort(error);
      shutdown.abort(error);
    },
  };
}
