import cluster, { type Worker } from "node:cluster";
import { type AddressInfo, createServer } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";
import { createLog } from "../log.js";
import type { Samples } from "../metrics/samples.js";
import { listen, othersMask } from "../server/http.js";
import { defaultLimits } from "../server/limits.js";
import { keepPage, metricsPath, startMetricsPort } from "../server/metrics_page.js";
import { startReadiness } from "../server/readiness.js";
import {
  type MetricsPrimary,
  type Server,
  type ServerOptions,
  startServer,
} from "../server/server.js";
import { openDb } from "../store/db.js";
import { stopSignal, workerMark } from "./stop_signal.js";
import { logUnhandled } from "./unhandled.js";
import { type Asked, createWorkerMetrics } from "./worker_metrics.js";

/** Several processes that serve one port as if they were one server. */
export interface Workers extends Server {
  /** Resolves when a worker could not be kept running: the service has to end. */
  readonly failed: Promise<void>;
}

/** What workers are started with. */
type WorkersOptions = ServerOptions & { migrate: boolean };
/** What is left for them: who migrates is here. */
type WorkerOptions = Omit<WorkersOptions, "log" | "migrationUrl">;

/** What a worker is told. */
type Order =
  | { kind: "start"; options: WorkerOptions; logLevel: string }
  | { kind: "migrated" }
  | { kind: "drain" }
  | { kind: "measure"; id: number }
  | { kind: "page"; id: number; text: string };

/** What a worker tells. "loaded": it can take orders now. */
type Report =
  | { kind: "loaded" }
  | { kind: "listens"; url: string }
  | { kind: "ready" }
  | { kind: "measured"; id: number; samples: Samples }
  | { kind: "askPage"; id: number };

/** A worker that ends younger than this has failed; so many failures in a row are too many. */
const youngMs = 10_000;
const failuresAllowed = 5;
/** How much longer than the drain timeout a worker may take to end before it is killed. */
const killAfterMs = 5_000;

/**
 * Starts `count` processes that run this command line again, share the port and each have an
 * equal part of the pool, and resolves when all of them listen. The tables are migrated here,
 * once; retention runs in one of them. Node hands the connections out in turn; one that was
 * handed out stays where it is. A worker that ends is replaced: at once when it had lived for
 * a while, later and later when it had not.
 *
 * Workers end by `drain`, and by themselves when this process is gone.
 *
 * @throws when the address cannot be listened on, or a worker fails again and again; the
 *   signal's reason when it aborts before all of them listen
 */
export async function startWorkers(
  count: number,
  options: WorkersOptions,
  signal: AbortSignal,
): Promise<Workers> {
  const { log, migrationUrl: _, ...forWorkers } = options;
  // The port is chosen and tried here, for all of them and with one error; the workers' listener
  // takes it over when the first of them is about to listen. (Told port 0, Node would give them
  // the same one too, but another one after all of them had died.)
  const reserved = createServer((socket) => socket.destroy());
  if (options.port !== undefined) await listen(reserved, options.host, options.port);
  const port = (reserved.address() as AddressInfo | null)?.port;
  const release = once(() => new Promise<void>((resolve) => reserved.close(() => resolve())));
  // The socket is made here, whichever worker asks for it.
  if (options.socketPath !== undefined) process.umask(process.umask() | othersMask);

  const measured = createWorkerMetrics();
  const metricsPage = keepPage(() => measured.page(), defaultLimits.metricsPageMs);
  const ofMetrics = await startMetricsPort(options, metricsPage).catch(async (error) => {
    await release();
    throw error;
  });
  const migration = options.migrate ? startMigration(options) : undefined;
  const running = new Set<Worker>();
  // One that has not begun to listen for it yet would end.
  const reload = () => {
    for (const worker of listening) worker.process.kill("SIGHUP");
  };
  const listening = new Set<Worker>();
  if (options.authFile !== undefined) process.on("SIGHUP", reload);
  const stopping = new AbortController();
  const failed = withResolve<void>();
  let url = "";

  /** Runs one worker; resolves when it has ended. */
  function run(slot: number, listens: () => void, ready: () => void) {
    const worker = cluster.fork({ [workerMark]: "1" });
    const { pid } = worker.process;
    const cutStranded = rememberHandedOut(worker);
    const measuring: Asked = { ask: (id) => tell(worker, { kind: "measure", id }) };
    running.add(worker);
    worker.on("message", async (report: Report) => {
      if (report.kind === "loaded") {
        await release();
        if (stopping.signal.aborted) return tell(worker, { kind: "drain" });
        tell(worker, {
          kind: "start",
          options: {
            ...forWorkers,
            port,
            poolSize: Math.floor(options.poolSize / count),
            retention: slot === 0 ? options.retention : [],
            metricsThreads: slot === 0 ? options.metricsThreads : 0,
          },
          logLevel: log.level,
        });
        void migration?.done.then(() => tell(worker, { kind: "migrated" }));
      } else if (report.kind === "listens") {
        log.info({ pid }, "a worker listens");
        listening.add(worker);
        measured.begin(measuring);
        url = report.url;
        listens();
      } else if (report.kind === "measured") {
        measured.answered(measuring, report.id, report.samples);
      } else if (report.kind === "askPage") {
        tell(worker, { kind: "page", id: report.id, text: await metricsPage() });
      } else {
        ready();
      }
    });
    return new Promise<{ pid: number | undefined; code: number | null; signal: string | null }>(
      (resolve) => {
        const end = (code: number | null, signal: string | null) => {
          running.delete(worker);
          listening.delete(worker);
          measured.end(measuring, !stopping.signal.aborted);
          cutStranded();
          resolve({ pid, code, signal });
        };
        worker.once("exit", end);
        // Also raised when a connection is handed to a worker that has just died; "exit" follows.
        worker.on("error", (error) => {
          log.warn({ pid, err: error }, "a worker cannot be reached");
          if (pid === undefined) end(null, null);
        });
      },
    );
  }

  /** Runs one worker after the other until the service stops. */
  async function keep(slot: number, listens: () => void, ready: () => void): Promise<void> {
    for (let failures = 0; !stopping.signal.aborted; ) {
      const started = performance.now();
      const end = await run(slot, listens, ready);
      if (stopping.signal.aborted) {
        if (end.code !== 0) log.warn(end, "a worker ended before it had drained");
        return;
      }
      failures = performance.now() - started < youngMs ? failures + 1 : 0;
      if (failures === failuresAllowed) {
        log.error({ ...end, failures }, "a worker ended soon after each start: giving up");
        failed.resolve();
        return;
      }
      log.warn(end, "a worker ended: starting another");
      const pauseMs = failures === 0 ? 0 : 100 * 2 ** failures;
      await sleep(pauseMs, undefined, { signal: stopping.signal }).catch(() => {});
    }
  }

  const slots = Array.from({ length: count }, (_, slot) => {
    const listens = withResolve<void>();
    const ready = withResolve<void>();
    const ended = keep(slot, listens.resolve, ready.resolve);
    return { listens: listens.promise, ready: ready.promise, ended };
  });

  const drain = once(async () => {
    stopping.abort();
    for (const worker of running) tell(worker, { kind: "drain" });
    const timer = setTimeout(() => {
      for (const worker of running) worker.process.kill("SIGKILL");
    }, options.drainTimeoutMs + killAfterMs);
    await Promise.all([...slots.map(({ ended }) => ended), migration?.stop(), release()]);
    await ofMetrics?.close();
    clearTimeout(timer);
  });

  const start = await Promise.race([
    Promise.all(slots.map(({ listens }) => listens)),
    failed.promise,
    aborted(signal),
  ]);
  if (start === undefined) {
    await drain();
    signal.throwIfAborted();
    throw new Error("a worker ended soon after each start; its own message stands above");
  }
  return {
    url,
    port: port ?? 0,
    metricsUrl: options.metricsPort === "main" ? `${url}${metricsPath}` : ofMetrics?.url,
    ready: Promise.all(slots.map(({ ready }) => ready)).then(() => {}),
    failed: failed.promise,
    drain,
  };
}

/** Serves as one of the workers until the primary says that it is over, then drains. */
export async function runWorker(): Promise<number> {
  // At a SIGTERM for this worker alone it drains, and the primary starts another.
  const stop = Promise.race([aborted(stopSignal), ordered("drain")]).then(() => undefined);
  const start = ordered("start");
  const migrated = ordered("migrated").then(() => {});
  try {
    report({ kind: "loaded" });
    const order = await Promise.race([stop, start]);
    if (!order) return 0;
    const { options, logLevel } = order;
    const log = createLog(logLevel as Parameters<typeof createLog>[0]).child({ pid: process.pid });
    logUnhandled(log);
    const metrics = createMetricsPrimary();
    const server = await startServer(
      { ...options, migrate: options.migrate && migrated, log },
      {},
      metrics,
    );
    report({ kind: "listens", url: server.url });
    void server.ready.then(() => report({ kind: "ready" }));
    await stop;
    await server.drain();
    metrics.tellLast();
    return 0;
  } finally {
    // From then on nothing keeps this process. Where the primary is gone, Node has already
    // ended it: a worker that loses the primary without this exits.
    cluster.worker?.disconnect();
  }
}

/** The primary as a worker's server asks it for metrics, and as it is told them. */
function createMetricsPrimary(): MetricsPrimary & { tellLast(): void } {
  const asked = new Map<number, (page: string) => void>();
  let last = 0;
  let measure: (() => Samples) | undefined;
  const tellAll = (id: number) => {
    if (measure) report({ kind: "measured", id, samples: measure() });
  };
  process.on("message", (order: Order) => {
    if (order.kind === "measure") tellAll(order.id);
    if (order.kind !== "page") return;
    asked.get(order.id)?.(order.text);
    asked.delete(order.id);
  });
  return {
    begin(measured) {
      measure = measured;
    },
    page: () =>
      new Promise((resolve) => {
        asked.set(++last, resolve);
        report({ kind: "askPage", id: last });
      }),
    tellLast: () => tellAll(0),
  };
}

/**
 * Keeps the connection that was last handed to the worker; the result closes it. Node closes its
 * own copy only when the worker acknowledges: a client whose connection was on its way to a
 * worker that died would wait for ever (83 of 76,000 connections in 87 kills). No harm where it
 * was acknowledged: the copy is closed already. There is never more than one on its way.
 */
function rememberHandedOut(worker: Worker): () => void {
  const { process: child } = worker;
  const send = child.send as (...args: unknown[]) => boolean;
  let last: { close?: () => void } | undefined;
  child.send = (...args: unknown[]) => {
    if (args[1]) last = args[1] as typeof last;
    return send.apply(child, args);
  };
  return () => last?.close?.();
}

function ordered<Kind extends Order["kind"]>(kind: Kind): Promise<Extract<Order, { kind: Kind }>> {
  return new Promise((resolve) => {
    process.on("message", (order: Order) => {
      if (order.kind === kind) resolve(order as Extract<Order, { kind: Kind }>);
    });
  });
}

/** With a callback, because a message to a process that has just ended is no error of ours. */
function tell(worker: Worker, order: Order): void {
  if (worker.isConnected()) worker.send(order, () => {});
}

function report(message: Report): void {
  if (process.connected) process.send?.(message, undefined, undefined, () => {});
}

/** Migrates as a lone server would: again and again until the database lets it. */
function startMigration(options: WorkersOptions) {
  const db = openDb({ ...options, poolSize: 1 });
  const readiness = startReadiness(db, options, options.log, () => {});
  const stop = once(async () => {
    readiness.stop();
    await db.close(500);
  });
  // Its connection is given back before the workers, which share the whole pool, take theirs.
  return { done: readiness.migrated.then(stop), stop };
}

function once<T>(use: () => Promise<T>): () => Promise<T> {
  let result: Promise<T> | undefined;
  return () => (result ??= use());
}

function withResolve<T>() {
  let resolve!: (value: T) => void;
  const promise = new Promise<T>((r) => {
    resolve = r;
  });
  return { promise, resolve };
}

/** Resolves when the signal aborts, at once if it has. */
export function aborted(signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    if (signal.aborted) resolve();
    else signal.addEventListener("abort", () => resolve(), { once: true });
  });
}
