/** The metrics of several workers, gathered by their primary onto one page. */
import { setTimeout as sleep } from "node:timers/promises";
import { addMemory } from "../metrics/process_metrics.js";
import { merge, onlyCounted, put, type Samples, toText } from "../metrics/samples.js";

/** One worker, as it is asked. */
export interface Asked {
  /** Sends it the question of this number; answers come by `answered`. */
  ask(id: number): void;
}

/** What gathers. */
export interface WorkerMetrics {
  begin(worker: Asked): void;
  /** To be called with each answer; of a worker's last words too, which nobody asked for. */
  answered(worker: Asked, id: number, samples: Samples): void;
  /** It has ended; `unasked` if nobody told it to. */
  end(worker: Asked, unasked: boolean): void;
  /** The page of all of them. Several who ask at once get the same. */
  page(): Promise<string>;
}

/** A worker that does not answer within this is told of without its gauges. */
const answerMs = 2_000;

/**
 * Sums, or takes the most or the least, as the catalogue says. What a worker has counted stays when it
 * ends: Prometheus takes a sum that goes back for a restart, and would count all that is left of it
 * once more. What it counted after the last time it was asked is lost with one that is killed.
 */
export function createWorkerMetrics(waitMs = answerMs): WorkerMetrics {
  const last = new Map<Asked, Samples>();
  const waiting = new Map<number, (samples: Samples) => void>();
  let ended: Samples = {};
  let endedUnasked = 0;
  let asked = 0;
  let gathering: Promise<string> | undefined;

  async function gather(): Promise<string> {
    const workers = [...last.keys()];
    const answers = await Promise.all(workers.map(askOne));
    const samples = workers.map((worker, i) => answers[i] ?? onlyCounted(last.get(worker) ?? {}));
    const own: Samples = {};
    addMemory(own);
    put(own, "workersEnded", endedUnasked);
    put(own, "workersSilent", answers.filter((answer) => !answer).length);
    return toText(merge([...samples, ended, own]));
  }

  function askOne(worker: Asked): Promise<Samples | undefined> {
    const id = ++asked;
    const late = new AbortController();
    const answer = new Promise<Samples>((resolve) => waiting.set(id, resolve));
    worker.ask(id);
    const bound = sleep(waitMs, undefined, { signal: late.signal, ref: false });
    return Promise.race([answer, bound.catch(() => undefined)]).finally(() => {
      waiting.delete(id);
      late.abort();
    });
  }

  return {
    begin: (worker) => last.set(worker, {}),
    answered(worker, id, samples) {
      // One that has ended is counted already.
      if (last.has(worker)) last.set(worker, samples);
      waiting.get(id)?.(samples);
    },
    end(worker, unasked) {
      ended = merge([ended, onlyCounted(last.get(worker) ?? {})]);
      last.delete(worker);
      if (unasked) endedUnasked++;
    },
    page() {
      gathering ??= gather().finally(() => {
        gathering = undefined;
      });
      return gathering;
    },
  };
}
