/** What a thread consists of, and what is known of it: when it is there for certain, and when it may be. */
import { type Operation, type OperationOf, ofKind } from "./call_history.js";

export type Put = OperationOf<"put">;
export type PutWrites = OperationOf<"putWrites">;
export type Writer = Put | PutWrites;

/** When something was seen, or asked for: at one moment between these. */
export interface Moment {
  from: number;
  to: number;
}

/** A delete that is over for certain by `before` and took place after `after`. */
export interface Over {
  after: number;
  before: number;
  operation: Operation | undefined;
}

/** A checkpoint, a blob or a write, with what stored it and what showed it. */
export interface Thing<By extends Writer = Writer> {
  name: string;
  by: By[];
  /** In each span the moment that ended first, with the operation it was. */
  seen: Map<number, { moment: Moment; operation: Operation }>;
  /** Of a write that is only kept: what each span showed. */
  shown: Map<number, { sum: string; operation: Operation }>;
}

/** The rows were read after everything. */
export const inTheEnd: Moment = { from: Number.POSITIVE_INFINITY, to: Number.POSITIVE_INFINITY };
const never: Over = {
  after: Number.NEGATIVE_INFINITY,
  before: Number.NEGATIVE_INFINITY,
  operation: undefined,
};

/** The deletes of a thread, which cut its time into spans that none of them can touch. */
export class Deletes {
  /** By their beginning. */
  readonly all: OperationOf<"deleteThread">[];
  /** #latestEnd[n]: the end of the first n. */
  readonly #latestEnd: number[] = [Number.NEGATIVE_INFINITY];
  readonly #over: Over[] = [];
  /** By their end: of the first ones the delete that took place last. */
  #lastOf: Over[] | undefined;

  constructor(operations: readonly Operation[]) {
    this.all = ofKind(operations, "deleteThread").filter(({ done }) => done !== "never");
    this.all.sort((a, b) => a.from - b.from);
    for (const operation of this.all) {
      const { from, to, done } = operation;
      this.#latestEnd.push(Math.max(to, this.#latestEnd.at(-1)!));
      if (done === "ok") this.#over.push({ after: from, before: to, operation });
    }
  }

  /** Takes in that one is over, by what a read showed. */
  learn(over: Over): void {
    this.#over.push(over);
    this.#lastOf = undefined;
  }

  /** How many deletes began before. */
  begun(time: number): number {
    return lowerBound(this.all, (each) => each.from < time);
  }

  /** The span in which a moment lies as a whole, undefined if a delete may be beside it. */
  spanOf({ from, to }: Moment): number | undefined {
    const span = this.begun(to);
    return this.#latestEnd[span]! <= from ? span : undefined;
  }

  /** Of the deletes that are over before the moment the one that took place last. */
  lastOver({ from }: Moment): Over {
    this.#lastOf ??= this.#sort();
    const count = lowerBound(this.#over, ({ before }) => before <= from);
    return this.#lastOf[count - 1] ?? never;
  }

  #sort(): Over[] {
    this.#over.sort((a, b) => a.before - b.before);
    let last: Over | undefined;
    return this.#over.map((each) => {
      if (!last || each.after > last.after) last = each;
      return last;
    });
  }
}

/** The things of a thread, with what its operations testify of them. */
export class Things {
  readonly deletes: Deletes;
  readonly checkpoints = new Map<string, Thing<Put>>();
  readonly blobs = new Map<string, Thing<Put>>();
  /** By checkpoint, then by task and idx. */
  readonly writes = new Map<string, Map<string, Thing<PutWrites>>>();
  /** What may be stored as a blob. */
  readonly sums = new Map<string, Set<string>>();
  /** Sums by channel, whatever the version. */
  readonly channels = new Map<string, Set<string>>();
  /** The reads that were answered. */
  readonly tuples: OperationOf<"getTuple">[];
  readonly lists: OperationOf<"list">[];

  constructor(operations: readonly Operation[]) {
    this.deletes = new Deletes(operations);
    this.tuples = ofKind(operations, "getTuple").filter(({ done }) => done === "ok");
    this.lists = ofKind(operations, "list").filter(({ done }) => done === "ok");
    for (const put of ofKind(operations, "put")) this.#addPut(put);
    for (const putWrites of ofKind(operations, "putWrites")) this.#addWrites(putWrites);
    for (const read of this.tuples) this.#addTuple(read);
    for (const read of this.lists) {
      for (const id of read.answer?.checkpoints ?? []) this.#see(this.checkpoints.get(id), read);
    }
  }

  /** What shows that the thing is there for certain at that moment. */
  proofOf(thing: Thing | undefined, { from, to }: Moment): Operation | undefined {
    const seen = thing?.seen.get(this.deletes.begun(to));
    return seen && seen.moment.to < from ? seen.operation : undefined;
  }

  /** Whether somebody can have stored it, so that it is there at the moment. */
  mayBe(writers: readonly Writer[], moment: Moment): boolean {
    const { after } = this.deletes.lastOver(moment);
    return writers.some(({ from, to }) => from < moment.to && to > after);
  }

  #addPut(put: Put): void {
    if (put.done === "never") return;
    const { checkpoint, blobs } = put.call;
    this.#add(this.checkpoints, checkpoint, checkpoint, put);
    for (const [channel, { version, sum }] of Object.entries(blobs)) {
      const key = blobKey(channel, version);
      this.#add(this.blobs, key, `${channel} ${version}`, put);
      addTo(this.sums, key, sum);
      addTo(this.channels, channel, sum);
    }
  }

  #addWrites(putWrites: PutWrites): void {
    if (putWrites.done === "never") return;
    const { checkpoint, task, writes } = putWrites.call;
    let things = this.writes.get(checkpoint);
    if (!things) {
      things = new Map();
      this.writes.set(checkpoint, things);
    }
    for (const idx of new Set(writes.map((write) => write.idx))) {
      this.#add(things, writeKey(task, idx), `${checkpoint} ${task} ${idx}`, putWrites);
    }
  }

  #add<By extends Writer>(things: Map<string, Thing<By>>, key: string, name: string, by: By): void {
    let thing = things.get(key);
    if (!thing) {
      thing = { name, by: [], seen: new Map(), shown: new Map() };
      things.set(key, thing);
    }
    thing.by.push(by);
    if (by.done === "ok") this.#see(thing, by);
  }

  #addTuple(read: OperationOf<"getTuple">): void {
    const { checkpoint, writes } = read.answer!;
    if (!checkpoint) return;
    this.#see(this.checkpoints.get(checkpoint), read);
    const things = this.writes.get(checkpoint);
    for (const [task, idx] of writes ?? []) this.#see(things?.get(writeKey(task, idx)), read);
  }

  #see(thing: Thing | undefined, operation: Operation): void {
    if (!thing) return;
    const span = this.deletes.spanOf(operation);
    if (span === undefined) return;
    const first = thing.seen.get(span);
    if (!first || operation.to < first.moment.to) {
      thing.seen.set(span, { moment: operation, operation });
    }
  }
}

/** The name of a blob. */
export const blobKey = (channel: string, version: string | number) => `${channel} ${version}`;
/** The name of a write, among those of its checkpoint. */
export const writeKey = (task: string, idx: number) => `${task} ${idx}`;

function addTo(sets: Map<string, Set<string>>, key: string, value: string): void {
  const set = sets.get(key);
  if (set) set.add(value);
  else sets.set(key, new Set([value]));
}

/** How many of the first ones it holds for. */
export function lowerBound<T>(sorted: readonly T[], holds: (each: T) => boolean): number {
  let low = 0;
  let high = sorted.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (holds(sorted[middle]!)) low = middle + 1;
    else high = middle;
  }
  return low;
}
