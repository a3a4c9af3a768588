/**
 * Imports nothing that has to be loaded, so that a `serve` hears signals before the rest of the
 * program is loaded: that takes 0.3 s, on a busy machine a second, in which Node's own answer would
 * be to die of them.
 */
import cluster from "node:cluster";

const stopping = new AbortController();

/** Tells a worker of ours from a `serve` that somebody else's cluster runs (pm2 does that). */
export const workerMark = "CHECKPOINTD_IS_WORKER";

/** Whether this process is one that `startWorkers` started. */
export const isWorker = cluster.isWorker && process.env[workerMark] !== undefined;

/** Aborts at the first signal that is to stop this process; see {@link listenForStop}. */
export const stopSignal: AbortSignal = stopping.signal;

/**
 * From now on the first SIGTERM or SIGINT aborts {@link stopSignal} and a later one exits with 1.
 * A worker ignores SIGINT, which a terminal sends to every process of the service: its primary
 * tells it. SIGTERM may be meant for this worker alone.
 */
export function listenForStop(): void {
  let first: number | undefined;
  for (const name of ["SIGTERM", "SIGINT"] as const) {
    process.on(name, () => {
      if (isWorker && name === "SIGINT") return;
      const now = performance.now();
      first ??= now;
      // Under `npm start` one Ctrl-C arrives twice: from the terminal and passed on by npm.
      if (now - first > 500 && !isWorker) process.exit(1);
      stopping.abort(new Error(`stopped by ${name}`));
    });
  }
}
