import { setTimeout as sleep } from "node:timers/promises";
import { conflictPause, type Db, isDistributed, type Run, type Signal, telling } from "./db.js";
import { createOrder, type Standing } from "./queue.js";
import { ResultGivenUp } from "./results.js";

/** How calls of one kind travel together. */
export interface BatchOptions<Item, Result> {
  /** Calls in one statement at the most. */
  maxItems: () => number;
  /** Bytes in one statement at the most; a larger call travels alone. */
  maxBytes: number;
  /** About how many bytes a call brings. */
  sizeOf: (item: Item) => number;
  /** Calls with the same key never travel together: one statement cannot write a row twice. */
  keyOf?: (item: Item) => string;
  /**
   * Where tables are distributed only calls of the same group travel together, those of one thread:
   * a statement on several would go to many nodes. Without it each travels alone there.
   */
  groupOf?: (item: Item) => string;
  /** Runs the calls as one statement and returns their results in the same order. */
  run: (run: Run, items: readonly Item[], signal: Signal | undefined) => Promise<Result[]>;
}

/**
 * Statements of one kind that run at once, each on a connection of its own: fewer make fuller
 * batches, which is what saves CPU (of agent, service and Postgres, puts at 32 in flight: 4 lanes
 * 380 us each, 3 lanes 355, 2 lanes 340, one lane 324; with one a slow statement would hold up
 * everybody else's).
 */
const lanes = 2;
/** After which calls that wait no longer do so for a fuller batch but take another connection. */
const patienceMs = 20;

interface Waiting<Item, Result> extends Standing {
  item: Item;
  signal: Signal | undefined;
  /** By performance.now(). */
  since: number;
  /** How often it was in a statement that lost a conflict. */
  conflicts: number;
  /** Whether it was in a statement that returned too much. */
  goesAlone: boolean;
  resolve: (result: Result) => void;
  reject: (reason: unknown) => void;
  /** Gives its place in the queue back, once it has taken one. */
  leave: (() => void) | undefined;
  /** Tells the statement it travels in, once it does, that nobody waits for it any more. */
  abandon: (() => void) | undefined;
}

/**
 * Returns a function that runs one call. Calls that are made while others run wait and then
 * travel together in one statement; a call that finds a connection free goes at once, with
 * those of the same tick. While lanes are free nothing is delayed to wait for company. Those that
 * wait go in a fair order, see createOrder.
 *
 * Each call has a result or an error of its own. When a statement of several fails for one
 * of them, or returns too much, each is run again alone, so only that one fails. A call whose signal aborts is
 * rejected with the signal's reason: one that waits is dropped, and a statement is cancelled
 * in Postgres when all its calls have gone. One that left company behind runs on unheard,
 * which is safe because every operation is idempotent.
 */
export function createBatch<Item, Result>(
  db: Db,
  options: BatchOptions<Item, Result>,
): (item: Item, signal?: Signal) => Promise<Result> {
  const waiting: Waiting<Item, Result>[] = [];
  const order = createOrder();
  /** The calls of this tick that may go at once and so have taken no place in the queue. */
  let fresh: Waiting<Item, Result>[] = [];
  let asked = 0;
  let running = 0;
  let patience: NodeJS.Timeout | undefined;

  function ask(): void {
    const isApart = isDistributed(db);
    while (waiting.length > asked * (isApart ? 1 : options.maxItems())) {
      // With calls that may not travel together fewer lanes would only be slower.
      if (asked + running >= lanes && !isApart) {
        patience ??= setTimeout(loseIt, patienceMs);
        return;
      }
      asked++;
      db.withConnection(serve, fail);
    }
  }

  /** The lanes are busy with something slow: a lock, a large value. */
  function loseIt(): void {
    patience = undefined;
    if (waiting.length === 0) return;
    if (asked === 0 && db.isFree()) {
      asked++;
      db.withConnection(serve, fail);
    }
    ask();
  }

  /** No connection could be opened. All hear of it now: each may try again elsewhere. */
  function fail(reason: unknown): void {
    asked--;
    fresh = [];
    for (const call of waiting.splice(0)) {
      call.leave?.();
      call.reject(reason);
    }
  }

  async function serve(run: Run): Promise<void> {
    // One turn of the microtask queue, in which the calls of the same tick arrive.
    await undefined;
    asked--;
    running++;
    try {
      const batch = take();
      clearTimeout(patience);
      patience = undefined;
      for (const call of fresh) if (waiting.includes(call)) takePlace(call);
      fresh = [];
      if (batch.length > 0) await runBatch(run, batch);
    } finally {
      running--;
      ask();
    }
  }

  function take(): Waiting<Item, Result>[] {
    const batch: Waiting<Item, Result>[] = [];
    const keys = new Set<string>();
    const most = options.maxItems();
    const isApart = isDistributed(db);
    const { groupOf } = options;
    let group: string | undefined;
    let bytes = 0;
    for (let i = 0; i < waiting.length && batch.length < most; ) {
      const call = waiting[i] as Waiting<Item, Result>;
      const size = options.sizeOf(call.item);
      if (batch.length > 0 && bytes + size > options.maxBytes) break;
      if (batch.length > 0 && (call.goesAlone || batch[0]?.goesAlone)) break;
      const key = options.keyOf?.(call.item);
      const other = isApart && batch.length > 0 && (!groupOf || groupOf(call.item) !== group);
      if (other || (key !== undefined && keys.has(key))) {
        i++;
        continue;
      }
      if (isApart) group = groupOf?.(call.item);
      if (key !== undefined) keys.add(key);
      bytes += size;
      waiting.splice(i, 1);
      order.passed(call);
      call.leave?.();
      // Once only, also where it waits again.
      call.leave = undefined;
      batch.push(call);
    }
    return batch;
  }

  async function runBatch(run: Run, batch: readonly Waiting<Item, Result>[]): Promise<void> {
    const alone = batch.length === 1 ? batch[0] : undefined;
    const abandoned = new AbortController();
    let heeded = batch.length;
    const now = performance.now();
    for (const call of batch) {
      measure(call, now, batch.length);
      call.abandon = () => {
        if (--heeded === 0) abandoned.abort(call.signal?.reason);
      };
    }
    try {
      const items = batch.map((call) => call.item);
      const signal = alone ? alone.signal : abandoned.signal;
      const results = await options.run(followed(run, batch), items, signal);
      const shareMs = (performance.now() - now) / batch.length;
      for (const { signal } of batch) {
        if (signal?.databaseMs !== undefined) signal.databaseMs += shareMs;
      }
      for (const [i, call] of batch.entries()) call.resolve(results[i] as Result);
    } catch (error) {
      if (await runAgain(batch, error)) return;
      if (alone) alone.reject(error);
      else if (error instanceof ResultGivenUp) waitAgain(batch, true);
      else if (!isOneCallsFault(error)) for (const call of batch) call.reject(error);
      else for (const call of batch) await runBatch(run, [call]);
    }
  }

  /**
   * Lets calls wait once more whose statement lost a conflict, but for those of which the client has
   * gone meanwhile: it may have been served elsewhere. False if they may not be tried again.
   */
  async function runAgain(batch: readonly Waiting<Item, Result>[], error: unknown) {
    const conflicts = Math.max(...batch.map((call) => ++call.conflicts));
    const pauseMs = conflictPause(error, conflicts);
    if (pauseMs === undefined) return false;
    await sleep(pauseMs);
    waitAgain(batch);
    return true;
  }

  function waitAgain(batch: readonly Waiting<Item, Result>[], goesAlone = false): void {
    for (const call of batch) call.abandon = undefined;
    const wanted = batch.filter(({ signal }) => !signal?.aborted);
    if (!goesAlone) {
      waiting.unshift(...wanted);
      return;
    }
    // In turn with those that came meanwhile, since each of them may take long.
    for (const call of wanted) {
      call.goesAlone = true;
      order.stand(waiting, call, call.signal?.source);
    }
  }

  function measure({ signal, since }: Waiting<Item, Result>, now: number, size: number): void {
    if (signal?.queueMs === undefined) return;
    // Again where each is run alone after the batch failed.
    signal.queueMs = Math.max(signal.queueMs, now - since);
    signal.batchSize = Math.max(signal.batchSize ?? 0, size);
  }

  /** Where a call of the batch wants to know of its statements, what tells it. */
  function followed(run: Run, batch: readonly Waiting<Item, Result>[]): Run {
    if (!batch.some(({ signal }) => signal?.ran)) return run;
    const signals = batch.map(({ signal }) => signal);
    return (text, parameters, signal) =>
      telling(signals, text, performance.now(), run(text, parameters, signal));
  }

  function drop(call: Waiting<Item, Result>): void {
    const i = waiting.indexOf(call);
    if (i >= 0) waiting.splice(i, 1);
  }

  function takePlace(call: Waiting<Item, Result>): void {
    try {
      call.leave = db.takePlace(undefined, (reason) => {
        drop(call);
        call.reject(reason);
      });
    } catch (error) {
      drop(call);
      call.reject(error);
    }
  }

  return (item, signal) =>
    new Promise<Result>((resolve, reject) => {
      if (signal?.aborted) {
        reject(signal.reason);
        return;
      }
      const onAbort = () => {
        if (waiting.includes(call)) {
          drop(call);
          call.leave?.();
        }
        call.reject(signal?.reason);
        call.abandon?.();
      };
      // Node keeps every signal of AbortSignal.any alive that has a listener, with the request
      // that its reason's stack leads to, and even when it has aborted.
      const unlisten = () => signal?.removeEventListener("abort", onAbort);
      const call: Waiting<Item, Result> = {
        item,
        signal,
        place: 0,
        since: performance.now(),
        conflicts: 0,
        goesAlone: false,
        resolve: (result) => {
          unlisten();
          resolve(result);
        },
        reject: (reason) => {
          unlisten();
          reject(reason);
        },
        leave: undefined,
        abandon: undefined,
      };
      signal?.addEventListener("abort", onAbort);
      order.stand(waiting, call, signal?.source);
      if (asked + running < lanes && db.hasIdle()) fresh.push(call);
      else takePlace(call);
      ask();
    });
}

/** Postgres refused what the statement says, not the connection or the transaction. */
function isOneCallsFault(error: unknown): boolean {
  return /^(2[123]|54|P0001)/.test((error as { code?: string }).code ?? "");
}
