/**
 * Spans of an agent's calls, where its application has set OpenTelemetry up and a span is active.
 *
 * Nothing is imported for it. What an application registers with `@opentelemetry/api` lies under a
 * symbol of the API's major version, where all copies of the API that are loaded meet; keys of a
 * context are symbols of the registry for the same reason. An optional peer could only be imported by a promise,
 * so that the first calls would not be seen, and bundlers fail where it is not there.
 */
import { ConnectError } from "@connectrpc/connect";
import type { OperationName, StreamName } from "../protocol/operations.js";
import {
  codeName,
  mostTracestateCharacters,
  spanNames,
  type TraceHeaders,
  threadOf,
} from "../protocol/trace.js";
import { NotCarried, type Service } from "./carrier.js";

/** What is used of the API: values that are the same in every version 1. */
interface Registered {
  context?: { active(): Context };
  trace?: { getTracer(name: string): Tracer };
}
interface Context {
  getValue(key: symbol): unknown;
}
interface Tracer {
  startSpan(name: string, options: object, context: Context): Span;
}
interface Span {
  spanContext(): {
    traceId: string;
    spanId: string;
    traceFlags: number;
    traceState?: { serialize(): string };
  };
  isRecording(): boolean;
  setAttribute(name: string, value: string): unknown;
  setStatus(status: { code: number }): unknown;
  end(): void;
}
type Attributes = Record<string, string | number>;

const registry = globalThis as unknown as Record<symbol, Registered | undefined>;
const registered = Symbol.for("opentelemetry.js.api.1");
const activeSpan = Symbol.for("OpenTelemetry Context Key SPAN");
const client = 2;
const error = 2;

/** The span of one try of a call, which begins when it is carried. */
export class CallSpan {
  readonly #name: string;
  readonly #attributes: Attributes;
  readonly #context: Context;
  #span: Span | undefined;

  constructor(name: string, attributes: Attributes, context: Context) {
    this.#name = name;
    this.#attributes = attributes;
    this.#context = context;
  }

  /**
   * To be called by what carries it; returns what is to be sent. Where another carrier goes on with the
   * same try it is the same span.
   */
  begin(): TraceHeaders | undefined {
    try {
      // Without a provider the application's own span is told, so that the trace goes on.
      this.#span ??=
        registry[registered]?.trace
          ?.getTracer("checkpointd")
          .startSpan(this.#name, { kind: client, attributes: this.#attributes }, this.#context) ??
        (this.#context.getValue(activeSpan) as Span);
      return headersOf(this.#span);
    } catch {
      // Whatever is registered, a call is not to fail for it.
      return undefined;
    }
  }

  /** To be called when it is known what came of it. Does nothing the second time. */
  end(reason?: unknown): void {
    const span = this.#span;
    if (span === undefined || span === this.#context.getValue(activeSpan)) return;
    try {
      const isGrpc = this.#attributes["rpc.system.name"] === "grpc";
      // What was not carried here is on another carrier, or as another call.
      if (reason !== undefined && !(reason instanceof NotCarried)) {
        const isOfCall = reason instanceof ConnectError;
        const type = isOfCall
          ? codeName(reason.code, isGrpc)
          : ((reason as Error)?.name ?? "_OTHER");
        if (isOfCall) span.setAttribute("rpc.status_code", type);
        span.setAttribute("error.type", type);
        span.setStatus({ code: error });
      } else if (isGrpc) {
        span.setAttribute("rpc.status_code", "OK");
      }
      if (span.isRecording()) span.end();
    } catch {
      // As above.
    }
  }
}

/** The service, with a span for each try of a call that is made while one is active. */
export function withSpans(service: Service, attributes: Attributes): Service {
  const begin = (name: OperationName | StreamName, request: object): CallSpan | undefined => {
    try {
      const context = registry[registered]?.context?.active();
      if (!context?.getValue(activeSpan)) return undefined;
      const threadId = threadOf(request);
      const all = {
        "rpc.method": spanNames[name],
        ...attributes,
        ...(threadId === undefined ? {} : { "gen_ai.conversation.id": threadId }),
      };
      return new CallSpan(spanNames[name], all, context);
    } catch {
      return undefined;
    }
  };
  const traced = Object.entries(service).map(([key, run]) => {
    const name = key as OperationName | StreamName;
    const carry = run as (request: object, context: object) => unknown;
    return [
      name,
      (request: object, context: { signal?: AbortSignal }) => {
        const span = begin(name, request);
        if (!span) return carry(request, context);
        const carried = carry(request, { ...context, span });
        return carried instanceof Promise
          ? ending(span, carried)
          : reading(span, carried as AsyncIterable<unknown>, context.signal);
      },
    ];
  });
  return Object.fromEntries(traced) as Service;
}

async function ending<T>(span: CallSpan, carried: Promise<T>): Promise<T> {
  try {
    const answer = await carried;
    span.end();
    return answer;
  } catch (reason) {
    span.end(reason);
    throw reason;
  }
}

/** A reader that leaves a stream aborts its signal, of which the stream itself hears nothing. */
async function* reading<T>(
  span: CallSpan,
  messages: AsyncIterable<T>,
  signal: AbortSignal | undefined,
): AsyncGenerator<T> {
  const onAbort = () =>
    span.end(signal?.reason instanceof ConnectError ? signal.reason : undefined);
  signal?.addEventListener("abort", onAbort);
  try {
    yield* messages;
    span.end();
  } catch (reason) {
    span.end(reason);
    throw reason;
  } finally {
    span.end();
    signal?.removeEventListener("abort", onAbort);
  }
}

function headersOf(span: Span): TraceHeaders | undefined {
  const { traceId, spanId, traceFlags, traceState } = span.spanContext();
  // Of a tracer that does nothing, or that was told to be silent.
  if (!/[1-9a-f]/.test(traceId) || traceId.length !== 32) return undefined;
  const tracestate = traceState?.serialize() ?? "";
  return {
    traceparent: `00-${traceId}-${spanId}-0${traceFlags & 1}`,
    tracestate: tracestate.length <= mostTracestateCharacters ? tracestate : "",
  };
}
