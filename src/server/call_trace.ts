/**
 * The spans of calls. Only loaded where calls are traced, since OpenTelemetry's API is loaded by it;
 * everybody else knows its types.
 */

import { Code, type ConnectError } from "@connectrpc/connect";
import {
  type Attributes,
  type Context,
  createTraceState,
  type HrTime,
  ROOT_CONTEXT,
  type Span,
  SpanKind,
  SpanStatusCode,
  type Tracer,
  trace,
} from "@opentelemetry/api";
import { ErrorDetailSchema } from "../../gen/checkpointd/v1/checkpoint_pb.js";
import { SessionService } from "../../gen/checkpointd/v1/session_service_pb.js";
import { codeName, mostTracestateCharacters, spanNames, threadOf } from "../protocol/trace.js";
import type { RanStatement } from "../store/db.js";
import { summaryOf } from "../store/statement_summary.js";
import type { Store } from "./access.js";
import type { Call, CallCarrier } from "./call.js";

/** As a request's headers, or an operation of a session, have them. */
export interface GivenTrace {
  traceparent?: string | string[] | undefined;
  tracestate?: string | string[] | undefined;
}

/** What lines of the log are found by, under the names that OpenTelemetry has for it. */
export interface TraceIds {
  readonly trace_id: string;
  readonly span_id: string;
}

/** What spans are made with. */
export interface CallTracesOptions {
  tracer: Tracer;
  /** Whether one more call may be traced that is to be. */
  mayTrace: () => boolean;
  /** Whether they have the names of threads. */
  threads: boolean;
  /** Of every span of a call. */
  server: Attributes;
  /** The database's name. */
  database: string;
  /** Where it is, as `host:port` or a socket's path. */
  databaseHost: () => string;
}

/** Makes the spans of a server's calls. */
export class CallTraces {
  constructor(readonly options: CallTracesOptions) {}

  /** Begins the span of a call of ours; of health and reflection there are none. */
  begin(call: Call, given: GivenTrace): void {
    const name = byRpc.get(call.rpc);
    if (name !== undefined) call.trace = new CallTrace(this.options, call, name, given);
  }

  /** Has the spans of a store's calls tell the thread. */
  tellThreads({ operations, streams }: Store): Store {
    const telling = <Calls extends object>(calls: Calls): Calls =>
      Object.fromEntries(
        Object.entries(calls).map(([name, run]) => [
          name,
          (request: object, call: Call) => {
            if (this.options.threads) call.trace?.tellThread(threadOf(request));
            return run(request, call);
          },
        ]),
      ) as Calls;
    return { operations: telling(operations), streams: telling(streams) };
  }
}

/** The span of one call, and those of its statements. */
export class CallTrace {
  readonly ids: TraceIds;
  readonly #span: Span;
  readonly #context: Context;
  /** The clock of the wall at performance.now() = 0, the same for all spans of the call. */
  readonly #clock = Date.now() - performance.now();
  readonly #options: CallTracesOptions;

  constructor(options: CallTracesOptions, call: Call, name: string, given: GivenTrace) {
    this.#options = options;
    const parent = parentOf(given);
    const start = { kind: SpanKind.SERVER, startTime: this.#at(call.started) };
    const span = options.tracer.startSpan(name, start, parent);
    const { traceId, spanId } = span.spanContext();
    this.ids = { trace_id: traceId, span_id: spanId };
    // One that never ends is forgotten.
    const isTraced = span.isRecording() && options.mayTrace();
    this.#span = isTraced ? span : trace.wrapSpanContext({ traceId, spanId, traceFlags: 0 });
    this.#context = isTraced ? trace.setSpan(parent, span) : parent;
    if (!isTraced) return;
    // Not before it is known: none of the samplers looks at them.
    span.setAttributes({
      "rpc.system.name": systemOf(call.carrier),
      "rpc.method": name,
      ...options.server,
    });
    call.ran = (statement) => this.#tellStatement(statement);
  }

  tellThread(threadId: string | undefined): void {
    if (threadId === undefined) return;
    this.#span.setAttribute("gen_ai.conversation.id", threadId);
  }

  /** To be called when the call is over. */
  end(call: Call): void {
    const { carrier, answer, queueMs, batchSize, principal } = call;
    const span = this.#span;
    if (!span.isRecording()) return;
    span.setAttributes({
      "checkpointd.carrier": carrier,
      "checkpointd.request_id": call.requestId,
      "checkpointd.request_bytes": call.requestBytes,
      "checkpointd.answer_bytes": call.answerBytes,
      "checkpointd.queue_wait_ms": Math.round(queueMs * 1e3) / 1e3,
      ...(batchSize > 1 ? { "checkpointd.batch_size": batchSize } : {}),
      ...(principal?.tenant ? { "checkpointd.tenant": principal.tenant } : {}),
    });
    if (answer) this.#tellAnswer(answer, carrier);
    else if (systemOf(carrier) === "grpc") span.setAttribute(statusCode, "OK");
    span.end(this.#at(performance.now()));
  }

  #tellAnswer(answer: ConnectError, carrier: CallCarrier): void {
    const { code, rawMessage } = answer;
    const name = codeName(code, systemOf(carrier) === "grpc");
    const reason = answer.findDetails(ErrorDetailSchema)[0]?.reason;
    this.#span.setAttributes({
      [statusCode]: name,
      ...(reason ? { "checkpointd.error_reason": reason } : {}),
    });
    // What is the client's fault is no error of a server, by the conventions.
    if (!serverErrors.has(code)) return;
    this.#span.setAttribute("error.type", name);
    this.#span.setStatus({ code: SpanStatusCode.ERROR, message: rawMessage });
  }

  /**
   * A statement of several calls is told as a span in the trace of each of them, with the same times,
   * and how many they were. One span with links to the calls would be in the trace of one: viewers
   * show a trace by itself, and in all others the time would be missing.
   */
  #tellStatement({ text, since, calls, error }: RanStatement): void {
    const { tracer, database, databaseHost } = this.#options;
    const summary = summaryOf(text);
    const name = calls > 1 ? `BATCH ${summary.text}` : summary.text;
    const span = tracer.startSpan(
      name,
      {
        kind: SpanKind.CLIENT,
        startTime: this.#at(since),
        attributes: {
          "db.system.name": "postgresql",
          "db.query.summary": name,
          "db.namespace": summary.schema === "" ? database : `${database}|${summary.schema}`,
          ...addressOf(databaseHost()),
          ...(calls > 1 ? { "db.operation.batch.size": calls } : {}),
        },
      },
      this.#context,
    );
    if (error !== undefined) {
      const { code, name } = error as { code?: unknown; name?: unknown };
      const isOfPostgres = typeof code === "string" && /^[0-9A-Z]{5}$/.test(code);
      span.setAttribute("error.type", String(code ?? name ?? "_OTHER"));
      if (isOfPostgres) span.setAttribute("db.response.status_code", code);
      // Not the message, which may have parameters in it.
      span.setStatus({ code: SpanStatusCode.ERROR });
    }
    span.end(this.#at(performance.now()));
  }

  /** To the microsecond; a time by itself would be cut to milliseconds. */
  #at(time: number): HrTime {
    const ms = this.#clock + time;
    const seconds = Math.floor(ms / 1e3);
    return [seconds, Math.floor((ms - seconds * 1e3) * 1e6)];
  }
}

/** By the names of calls, as they are or as operations of a session. */
const byRpc = new Map<string, string>();
for (const [name, spanName] of Object.entries(spanNames)) {
  byRpc.set(spanName, spanName);
  byRpc.set(`${SessionService.typeName}/${name}`, spanName);
}

const statusCode = "rpc.status_code";

const systemOf = (carrier: CallCarrier) => (carrier.startsWith("grpc") ? "grpc" : "connectrpc");

const serverErrors = new Set([
  Code.Unknown,
  Code.DeadlineExceeded,
  Code.Unimplemented,
  Code.Internal,
  Code.Unavailable,
  Code.DataLoss,
]);

const traceparentForm =
  /^([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-[\x20-\x7e]*)?$/;

/** The span that a client says its call is part of. What is malformed is none. */
function parentOf({ traceparent, tracestate }: GivenTrace): Context {
  if (typeof traceparent !== "string" || traceparent.length > 256) return ROOT_CONTEXT;
  const [, version, traceId = "", spanId = "", flags = "", more] =
    traceparentForm.exec(traceparent) ?? [];
  if (version === undefined || version === "ff" || (version === "00" && more)) return ROOT_CONTEXT;
  const isShort = typeof tracestate === "string" && tracestate.length <= mostTracestateCharacters;
  const spanContext = {
    traceId,
    spanId,
    traceFlags: Number.parseInt(flags, 16) & 1,
    isRemote: true,
    ...(isShort && tracestate !== "" ? { traceState: createTraceState(tracestate) } : {}),
  };
  // Not of zeros alone.
  if (/^0+$/.test(traceId) || /^0+$/.test(spanId)) return ROOT_CONTEXT;
  return trace.setSpanContext(ROOT_CONTEXT, spanContext);
}

/** The attributes that name a host. */
function addressOf(host: string): Attributes {
  const [, name, port] = /^([^/].*):(\d+)$/.exec(host) ?? [];
  if (name !== undefined) return { "server.address": name, "server.port": Number(port) };
  return host === "" ? {} : { "server.address": host };
}
