/** Whether calls are traced, and what traces them; OpenTelemetry itself is loaded only then. */
import type { Log } from "../log.js";
import type { CallTraces } from "./call_trace.js";

/** What traces are started with. */
export interface TracesOptions {
  /** Calls that are traced in a second at the most, whoever asks for it. */
  traceLimit: number;
  /** Whether spans have the names of threads. */
  traceThreads: boolean;
  databaseUrl: string;
  host: string;
  port: number | undefined;
  log: Log;
}

/** What came of spans until now. */
export interface SpanTally {
  /** To be exported: those that were neither sent nor failed wait, or found no room and are lost. */
  ended: number;
  sent: number;
  failed: number;
  /** Calls that the limit left untraced. */
  limitedCalls: number;
}

/** What traces a server's calls. */
export interface Traces {
  readonly calls: CallTraces;
  readonly tally: Readonly<SpanTally>;
  /** Sends what there is yet, for two seconds at the most. Idempotent. */
  stop(): Promise<void>;
}

/**
 * Starts tracing if OpenTelemetry's variables ask for it: an endpoint, or OTEL_TRACES_EXPORTER=otlp.
 * They are read here, and by OpenTelemetry's own packages. What they ask for in vain is told in the
 * log, and the server goes on without traces: a platform may set them for all that it runs.
 */
export async function startTraces(
  options: TracesOptions,
  databaseHost: () => string,
  env: NodeJS.ProcessEnv = process.env,
): Promise<Traces | undefined> {
  const { log } = options;
  const asked = isTraced(env);
  if (typeof asked === "string") log.warn(`no traces: ${asked}`);
  if (asked !== true) return undefined;
  try {
    // 0.14 s of CPU and 10 MB, which only who asked for it pays.
    const { startExport } = await import("./trace_export.js");
    return startExport(options, databaseHost);
  } catch (error) {
    log.warn({ err: error }, "no traces: OpenTelemetry could not be started");
    return undefined;
  }
}

/** Whether the variables ask for traces; a text: they do, but for what there is not. */
export function isTraced(env: NodeJS.ProcessEnv): boolean | string {
  const value = (...names: string[]) => {
    for (const name of names) {
      const found = env[name]?.trim();
      if (found) return found;
    }
    return "";
  };
  if (value("OTEL_SDK_DISABLED").toLowerCase() === "true") return false;
  const exporter = value("OTEL_TRACES_EXPORTER");
  const endpoint = value("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT");
  if (exporter === "none" || (exporter === "" && endpoint === "")) return false;
  if (exporter !== "" && exporter !== "otlp") {
    return `OTEL_TRACES_EXPORTER must be otlp or none, not "${exporter}"`;
  }
  if (
    endpoint !== "" &&
    !/^https?:$/.test(URL.canParse(endpoint) ? new URL(endpoint).protocol : "")
  ) {
    return "OTEL_EXPORTER_OTLP_ENDPOINT must be an http: or https: URL";
  }
  const protocol = value("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL");
  if (protocol !== "" && protocol !== "http/protobuf") {
    return `OTEL_EXPORTER_OTLP_PROTOCOL must be http/protobuf, not "${protocol}": collectors take it on port 4318`;
  }
  return true;
}
