/** OpenTelemetry's SDK: which calls are sampled, and how their spans leave the process. */
import { randomUUID } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import { DiagLogLevel, diag, TraceFlags } from "@opentelemetry/api";
import { OTLPTraceExporter } from "@opentelemetry/exporter-trace-otlp-proto";
import {
  defaultResource,
  detectResources,
  envDetector,
  resourceFromAttributes,
} from "@opentelemetry/resources";
import {
  BasicTracerProvider,
  BatchSpanProcessor,
  type SpanExporter,
  type SpanProcessor,
} from "@opentelemetry/sdk-trace-base";
import type { Log } from "../log.js";
import { parseDatabaseUrl } from "../store/address.js";
import { version } from "../version.js";
import { CallTraces } from "./call_trace.js";
import type { SpanTally, Traces, TracesOptions } from "./traces.js";

/** Within which what is left has to be sent at the end. */
const flushMs = 2_000;

/** Begins to export spans as the environment says. */
export function startExport(options: TracesOptions, databaseHost: () => string): Traces {
  const { log, host, port } = options;
  // What the packages say of variables that they cannot read. Later they say more of an endpoint
  // that is down than one wants to read.
  const tell = (message: string) => log.warn({ error: message }, "OpenTelemetry's configuration");
  diag.setLogger(
    { error: tell, warn: tell, info() {}, debug() {}, verbose() {} },
    { logLevel: DiagLogLevel.WARN, suppressOverrideMessage: true },
  );
  const tally: SpanTally = { ended: 0, sent: 0, failed: 0, limitedCalls: 0 };
  const provider = new BasicTracerProvider({
    resource: defaultResource()
      .merge(
        resourceFromAttributes({
          "service.name": "checkpointd",
          "service.version": version(),
          "service.instance.id": randomUUID(),
          "process.pid": process.pid,
        }),
      )
      .merge(detectResources({ detectors: [envDetector] })),
    spanProcessors: [
      countEnded(tally),
      new BatchSpanProcessor(new WatchedExporter(new OTLPTraceExporter(), log, tally)),
    ],
  });
  diag.disable();
  const stop = async () => {
    const late = new AbortController();
    // What is not sent by then is lost: the collector is gone.
    const flushed = provider.shutdown().catch(() => {});
    await Promise.race([
      flushed,
      sleep(flushMs, undefined, { signal: late.signal }).catch(() => {}),
    ]);
    late.abort();
  };
  let stopped: Promise<void> | undefined;
  return {
    calls: new CallTraces({
      tracer: provider.getTracer("checkpointd", version()),
      mayTrace: createLimit(options.traceLimit, log, tally),
      threads: options.traceThreads,
      server: { "server.address": host, ...(port ? { "server.port": port } : {}) },
      database: parseDatabaseUrl(options.databaseUrl, true).hosts[0]?.options.database ?? "",
      databaseHost,
    }),
    tally,
    stop: () => (stopped ??= stop()),
  };
}

/** The batches say nothing of what they drop: it is what ended, without what was exported and waits. */
const countEnded = (tally: SpanTally): SpanProcessor => ({
  onStart() {},
  onEnd(span) {
    if (span.spanContext().traceFlags & TraceFlags.SAMPLED) tally.ended++;
  },
  forceFlush: () => Promise.resolve(),
  shutdown: () => Promise.resolve(),
});

/** Within which it is not told again that the limit is reached. */
const limitToldMs = 60_000;

/**
 * Returns what says whether one more call may be traced: so many a second, as many at once. The
 * sampled flag is the client's word, and samplers that heed it, as the default does, would have one
 * client decide what the process and the collector are busy with.
 */
export function createLimit(
  aSecond: number,
  log: Log,
  tally: Pick<SpanTally, "limitedCalls">,
  now = () => performance.now(),
) {
  let left = aSecond;
  let at = now();
  let toldAt = Number.NEGATIVE_INFINITY;
  return (): boolean => {
    const time = now();
    left = Math.min(aSecond, left + ((time - at) * aSecond) / 1e3);
    at = time;
    if (left >= 1) {
      left--;
      return true;
    }
    tally.limitedCalls++;
    if (time > toldAt + limitToldMs) {
      toldAt = time;
      log.warn(
        { traceLimit: aSecond },
        "more calls are to be traced than --trace-limit allows: some are not",
      );
    }
    return false;
  };
}

/** Says once that spans do not arrive, and once that they do again. */
class WatchedExporter implements SpanExporter {
  #isFailing = false;

  constructor(
    readonly exporter: SpanExporter,
    readonly log: Log,
    readonly tally: Pick<SpanTally, "sent" | "failed">,
  ) {}

  export(...[spans, done]: Parameters<SpanExporter["export"]>): void {
    this.exporter.export(spans, (result) => {
      const isFailing = result.code !== 0;
      this.tally[isFailing ? "failed" : "sent"] += spans.length;
      if (isFailing !== this.#isFailing) {
        this.#isFailing = isFailing;
        const { message, code } = (result.error ?? {}) as { message?: string; code?: unknown };
        if (isFailing) {
          this.log.warn({ error: { message, code } }, "spans cannot be exported: they are dropped");
        } else {
          this.log.info("spans are exported again");
        }
      }
      done(result);
    });
  }

  shutdown(): Promise<void> {
    return this.exporter.shutdown();
  }

  forceFlush(): Promise<void> {
    return this.exporter.forceFlush?.() ?? Promise.resolve();
  }
}
