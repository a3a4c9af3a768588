/**
 * The rules of what is stored: of each thing (a checkpoint, a blob, a write) when it is there for
 * certain, and when it may be.
 *
 * There for certain is what an acknowledged operation stored, or a read showed, unless a delete of
 * the thread can have come after. The deletes cut time into spans that none of them can touch, and
 * only within a span does one operation testify for a later one. It cannot be there if every
 * operation that stored it was answered before a delete that is over for certain: one that was
 * acknowledged, or one of which a read showed the effect.
 */
import type { Report } from "./check.js";
import type { CheckpointRow, Operation, OperationOf, Rows } from "./history.js";
import { ofKind } from "./history.js";

type Put = OperationOf<"put">;
type PutWrites = OperationOf<"putWrites">;
type Writer = Put | PutWrites;

/** When something was seen, or asked for: at one moment between these. */
interface Moment {
  from: number;
  to: number;
}

/** A delete that is over for certain by `before` and took place after `after`. */
interface Over {
  after: number;
  before: number;
  operation: Operation | undefined;
}

/** A checkpoint, a blob or a write, with what stored it and what showed it. */
interface Thing<By extends Writer = Writer> {
  name: string;
  by: By[];
  /** In each span the moment that ended first, with the operation it was. */
  seen: Map<number, { moment: Moment; operation: Operation }>;
  /** Of a write that is only kept: what each span showed. */
  shown: Map<number, { sum: string; operation: Operation }>;
}

/** The rows were read after everything. */
const inTheEnd: Moment = { from: Number.POSITIVE_INFINITY, to: Number.POSITIVE_INFINITY };
const never: Over = {
  after: Number.NEGATIVE_INFINITY,
  before: Number.NEGATIVE_INFINITY,
  operation: undefined,
};
/** Threads of more operations are not looked at for deletes that reads show. */
const mostForEffects = 2_000;

export function checkState(
  operations: readonly Operation[],
  rows: Rows | undefined,
  report: Report,
): void {
  new State(operations, report).check(rows);
}

class State {
  readonly #report: Report;
  readonly #deletes: OperationOf<"deleteThread">[];
  /** #latestEnd[n]: the end of the first n deletes, by their beginning. */
  readonly #latestEnd: number[] = [Number.NEGATIVE_INFINITY];
  readonly #over: Over[];
  /** By their end: of the first ones the delete that took place last. */
  #lastOf: Over[] = [];
  readonly #checkpoints = new Map<string, Thing<Put>>();
  readonly #blobs = new Map<string, Thing<Put>>();
  /** By checkpoint, then by task and idx. */
  readonly #writes = new Map<string, Map<string, Thing<PutWrites>>>();
  readonly #sums = new Map<string, Set<string>>();
  /** Sums by channel, whatever the version. */
  readonly #channels = new Map<string, Set<string>>();
  readonly #tuples: OperationOf<"getTuple">[];
  readonly #lists: OperationOf<"list">[];
  readonly #small: boolean;

  constructor(operations: readonly Operation[], report: Report) {
    this.#report = report;
    this.#small = operations.length <= mostForEffects;
    this.#deletes = ofKind(operations, "deleteThread")
      .filter(({ done }) => done !== "never")
      .sort((a, b) => a.from - b.from);
    for (const { to } of this.#deletes) {
      this.#latestEnd.push(Math.max(to, this.#latestEnd.at(-1)!));
    }
    this.#over = this.#deletes
      .filter(({ done }) => done === "ok")
      .map((operation) => ({ after: operation.from, before: operation.to, operation }));
    this.#tuples = ofKind(operations, "getTuple").filter(({ done }) => done === "ok");
    this.#lists = ofKind(operations, "list").filter(({ done }) => done === "ok");
    for (const put of ofKind(operations, "put")) this.#addPut(put);
    for (const putWrites of ofKind(operations, "putWrites")) this.#addWrites(putWrites);
    for (const read of this.#tuples) this.#addTuple(read);
    for (const read of this.#lists) {
      for (const id of read.answer?.checkpoints ?? []) this.#see(this.#checkpoints.get(id), read);
    }
  }

  check(rows: Rows | undefined): void {
    const latest = this.#latestBySpan();
    for (const read of this.#tuples) this.#checkMissing(read, latest);
    for (const read of this.#lists) this.#checkList(read, latest);
    const stored = rows && new Stored(rows);
    if (stored) this.#checkLost(stored);
    if (this.#small && this.#deletes.length > 0) this.#findEffects(stored);
    this.#sortOver();
    for (const read of this.#tuples) this.#checkTuple(read);
    for (const read of this.#lists) {
      for (const id of read.answer?.checkpoints ?? []) this.#checkMayBe(id, read, read);
    }
    if (stored) this.#checkStored(stored);
  }

  // What was done, and what it testifies.

  #addPut(put: Put): void {
    if (put.done === "never") return;
    const { checkpoint, blobs } = put.call;
    this.#add(this.#checkpoints, checkpoint, checkpoint, put);
    for (const [channel, { version, sum }] of Object.entries(blobs)) {
      const key = blobKey(channel, version);
      this.#add(this.#blobs, key, `${channel} ${version}`, put);
      addTo(this.#sums, key, sum);
      addTo(this.#channels, channel, sum);
    }
  }

  #addWrites(putWrites: PutWrites): void {
    if (putWrites.done === "never") return;
    const { checkpoint, task, writes } = putWrites.call;
    let things = this.#writes.get(checkpoint);
    if (!things) {
      things = new Map();
      this.#writes.set(checkpoint, things);
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
    this.#see(this.#checkpoints.get(checkpoint), read);
    const things = this.#writes.get(checkpoint);
    for (const [task, idx] of writes ?? []) this.#see(things?.get(writeKey(task, idx)), read);
  }

  #see(thing: Thing | undefined, operation: Operation): void {
    if (!thing) return;
    const span = this.#spanOf(operation);
    if (span === undefined) return;
    const first = thing.seen.get(span);
    if (!first || operation.to < first.moment.to) {
      thing.seen.set(span, { moment: operation, operation });
    }
  }

  /** How many deletes began before. */
  #begun(time: number): number {
    return lowerBound(this.#deletes, (each) => each.from < time);
  }

  /** The span in which a moment lies as a whole, undefined if a delete may be beside it. */
  #spanOf({ from, to }: Moment): number | undefined {
    const span = this.#begun(to);
    return this.#latestEnd[span]! <= from ? span : undefined;
  }

  /** What shows that the thing is there for certain at that moment. */
  #proofOf(thing: Thing | undefined, { from, to }: Moment): Operation | undefined {
    const seen = thing?.seen.get(this.#begun(to));
    return seen && seen.moment.to < from ? seen.operation : undefined;
  }

  #sortOver(): void {
    this.#over.sort((a, b) => a.before - b.before);
    let last: Over | undefined;
    this.#lastOf = this.#over.map((each) => {
      if (!last || each.after > last.after) last = each;
      return last;
    });
  }

  /** Of the deletes that are over before the moment the one that took place last. */
  #lastOver({ from }: Moment): Over {
    const count = lowerBound(this.#over, ({ before }) => before <= from);
    return this.#lastOf[count - 1] ?? never;
  }

  // Rules 1 and 4: what is there for certain is seen.

  #latestBySpan(): Map<number, Latest[]> {
    const spans = new Map<number, Latest[]>();
    for (const [id, { seen }] of this.#checkpoints) {
      for (const [span, { moment, operation }] of seen) {
        const latest = spans.get(span);
        const each = { id, to: moment.to, operation, greatest: undefined as never };
        if (latest) latest.push(each);
        else spans.set(span, [each]);
      }
    }
    for (const latest of spans.values()) {
      latest.sort((a, b) => a.to - b.to);
      let greatest = latest[0]!;
      for (const each of latest) {
        if (each.id > greatest.id) greatest = each;
        each.greatest = greatest;
      }
    }
    return spans;
  }

  #checkMissing(read: OperationOf<"getTuple">, spans: Map<number, Latest[]>): void {
    const { call, answer } = read;
    const found = answer?.checkpoint ?? null;
    if (call.checkpoint) {
      const proof = this.#proofOf(this.#checkpoints.get(call.checkpoint), read);
      if (proof && found !== call.checkpoint) {
        this.#report(
          "reads",
          [proof, read],
          `getTuple of ${call.checkpoint} returned ${found}, though it was there`,
        );
      }
    } else {
      const latest = spans.get(this.#begun(read.to)) ?? [];
      const before = latest[lowerBound(latest, ({ to }) => to < read.from) - 1]?.greatest;
      if (before && (found === null || found < before.id)) {
        this.#report(
          "reads",
          [before.operation, read],
          `the latest was ${found}, though ${before.id} was there`,
        );
      }
    }
    if (found === null) return;
    const writes = new Set((answer?.writes ?? []).map(([task, idx]) => writeKey(task, idx)));
    for (const [key, thing] of this.#writes.get(found) ?? []) {
      const proof = writes.has(key) ? undefined : this.#proofOf(thing, read);
      if (proof) this.#report("reads", [proof, read], `getTuple lacks the write ${thing.name}`);
    }
  }

  #checkList(read: OperationOf<"list">, spans: Map<number, Latest[]>): void {
    const ids = read.answer?.checkpoints ?? [];
    const found = new Set(ids);
    if (found.size < ids.length) this.#report("reads", [read], "a list repeats a checkpoint");
    for (let i = 1; i < ids.length; i++) {
      if (ids[i]! <= ids[i - 1]!) continue;
      this.#report("reads", [read], `a list has ${ids[i]} behind ${ids[i - 1]}`);
      break;
    }
    for (const { id, to, operation } of spans.get(this.#begun(read.to)) ?? []) {
      if (to >= read.from) break;
      if (!found.has(id)) this.#report("reads", [operation, read], `a list lacks ${id}`);
    }
  }

  #checkLost(stored: Stored): void {
    const check = (thing: Thing, isStored: boolean) => {
      const proof = isStored ? undefined : this.#proofOf(thing, inTheEnd);
      if (proof) this.#report("acknowledged", [proof], `${thing.name} is not stored in the end`);
    };
    for (const [id, thing] of this.#checkpoints) check(thing, stored.checkpoints.has(id));
    for (const [key, thing] of this.#blobs) check(thing, stored.blobs.has(key));
    for (const [checkpoint, things] of this.#writes) {
      const writes = stored.writesOf(checkpoint);
      for (const [key, thing] of things) check(thing, writes.has(key));
    }
  }

  // Rule 3: deletes that reads show.

  /** What was there and is not seen any more tells of a delete, which takes everything at once. */
  #findEffects(stored: Stored | undefined): void {
    for (const read of this.#tuples) {
      const { call, answer } = read;
      const found = answer?.checkpoint ?? null;
      if (call.checkpoint) {
        if (found === null) this.#inferDelete(this.#checkpoints.get(call.checkpoint), read);
      } else {
        for (const [id, thing] of this.#checkpoints) {
          if (found === null || id > found) this.#inferDelete(thing, read);
        }
      }
      if (found === null) continue;
      const writes = new Set((answer?.writes ?? []).map(([task, idx]) => writeKey(task, idx)));
      for (const [key, thing] of this.#writes.get(found) ?? []) {
        if (!writes.has(key)) this.#inferDelete(thing, read);
      }
    }
    for (const read of this.#lists) {
      const found = new Set(read.answer?.checkpoints);
      for (const [id, thing] of this.#checkpoints) {
        if (!found.has(id)) this.#inferDelete(thing, read);
      }
    }
    if (!stored) return;
    for (const [id, thing] of this.#checkpoints) {
      if (!stored.checkpoints.has(id)) this.#inferDelete(thing, undefined);
    }
    for (const [checkpoint, things] of this.#writes) {
      const writes = stored.writesOf(checkpoint);
      for (const [key, thing] of things) if (!writes.has(key)) this.#inferDelete(thing, undefined);
    }
  }

  #inferDelete(thing: Thing | undefined, read: Operation | undefined): void {
    const { from, to } = read ?? inTheEnd;
    let after = Number.NEGATIVE_INFINITY;
    for (const moment of thing ? momentsOf(thing) : []) {
      if (moment.to >= from) continue;
      const candidate = this.#deletes.find((each) => each.to > moment.from);
      // Without one it is lost, which was reported.
      if (candidate && candidate.from < to) {
        after = Math.max(after, moment.from, candidate.from);
      }
    }
    if (after > Number.NEGATIVE_INFINITY) this.#over.push({ after, before: to, operation: read });
  }

  // Rules 2, 3 and 4: what is seen may be there, and is what was written.

  /** Whether somebody can have stored it, so that it is there at the moment. */
  #mayBe(writers: readonly Writer[], moment: Moment): boolean {
    const { after } = this.#lastOver(moment);
    return writers.some(({ from, to }) => from < moment.to && to > after);
  }

  #checkMayBe(id: string, moment: Moment, read: Operation | undefined): boolean {
    const by = this.#checkpoints.get(id)?.by ?? [];
    if (this.#mayBe(by, moment)) return true;
    const where = read ? read.call.kind : "the database";
    if (by.some(({ from }) => from < moment.to)) {
      const { operation } = this.#lastOver(moment);
      this.#report(
        "deleted",
        [...by, operation, read],
        `${where} has ${id}, which had been deleted`,
      );
    } else {
      this.#report(read ? "reads" : "whole", [read], `${where} has ${id}, which was never put`);
    }
    return false;
  }

  #checkTuple(read: OperationOf<"getTuple">): void {
    const { checkpoint: id, blobs, writes } = read.answer!;
    const asked = read.call.checkpoint;
    if (!id) return;
    if (asked && asked !== id) {
      this.#report("reads", [read], `getTuple of ${asked} returned ${id}`);
      return;
    }
    if (!this.#checkMayBe(id, read, read)) return;
    if (blobs) {
      const puts = this.#checkpoints.get(id)?.by ?? [];
      const wrong = this.#wrongBlobs(puts, read, (channel) => blobs[channel], Object.keys(blobs));
      if (wrong) this.#report("reads", [...puts, read], `getTuple of ${id}: ${wrong}`);
    }
    if (!writes) return;
    const seen = new Map(writes.map(([task, idx, sum]) => [writeKey(task, idx), sum]));
    if (seen.size < writes.length)
      this.#report("reads", [read], `getTuple of ${id} repeats a write`);
    this.#checkWrites(id, seen, read, read);
  }

  /** What is wrong with the values of a checkpoint, by each put that can have stored it. */
  #wrongBlobs(
    puts: readonly Put[],
    moment: Moment,
    sumOf: (channel: string, version: string) => string | undefined,
    channels: readonly string[],
  ): string | undefined {
    let wrong: string | undefined;
    for (const { from, call } of puts) {
      if (from >= moment.to) continue;
      wrong = undefined;
      for (const [channel, { version, sum }] of Object.entries(call.blobs)) {
        const key = blobKey(channel, version);
        const found = sumOf(channel, String(version));
        if (found === undefined) {
          // Another checkpoint has the same version: its delete can have met this put, which kept
          // the blob, half-way.
          const isShared = this.#blobs
            .get(key)
            ?.by.some((put) => put.call.checkpoint !== call.checkpoint);
          if (sum && !(isShared && this.#deletes.length > 0))
            wrong = `the value of ${channel} is missing`;
        } else if (!this.#sums.get(key)?.has(found)) {
          wrong = `the value of ${channel} is none that was put`;
        }
      }
      for (const channel of channels) {
        if (channel in call.blobs) continue;
        const found = sumOf(channel, "");
        // From an earlier checkpoint.
        if (found !== undefined && !this.#channels.get(channel)?.has(found)) {
          wrong = `the value of ${channel} is none that was put`;
        }
      }
      if (!wrong) return undefined;
    }
    return wrong;
  }

  #checkWrites(
    checkpoint: string,
    seen: ReadonlyMap<string, string>,
    moment: Moment,
    read: Operation | undefined,
  ): void {
    const things = this.#writes.get(checkpoint);
    const where = read ? "getTuple" : "the database";
    for (const [key, sum] of seen) {
      const thing = things?.get(key);
      const by = thing?.by.filter((each) => each.from < moment.to) ?? [];
      if (!thing || by.length === 0) {
        this.#report(
          read ? "reads" : "whole",
          [read],
          `${where} has the write ${checkpoint} ${key}, which was never written`,
        );
      } else if (!this.#mayBe(by, moment)) {
        const { operation } = this.#lastOver(moment);
        this.#report(
          "deleted",
          [...by, operation, read],
          `${where} has the write ${thing.name}, which had been deleted`,
        );
      } else if (!by.some((each) => this.#mayShow(thing, each, key, sum, moment))) {
        const rule = read ? "reads" : "acknowledged";
        this.#report(rule, [...by, read], `the write ${thing.name} has a value it cannot have`);
      }
      if (thing && read) this.#checkKept(thing, sum, read);
    }
    this.#checkParts(things, seen, moment, read);
  }

  /** Whether the write has this value by this operation. */
  #mayShow(
    thing: Thing<PutWrites>,
    by: PutWrites,
    key: string,
    sum: string,
    moment: Moment,
  ): boolean {
    if (storedBy(by, key) !== sum || by.to <= this.#lastOver(moment).after) return false;
    const isReplaced = thing.by.some(
      (each) =>
        replaces(each) && each.done === "ok" && by.to <= each.from && each.to <= moment.from,
    );
    if (isReplaced) return false;
    // What is stored already is kept.
    const tried = { from: by.from, to: Math.min(by.to, moment.to) };
    return replaces(by) || this.#proofOf(thing, tried) === undefined;
  }

  /** A write that nothing replaces stays as it is while nothing is deleted. */
  #checkKept(thing: Thing<PutWrites>, sum: string, read: Operation): void {
    const span = this.#spanOf(read);
    if (span === undefined || thing.by.some(replaces)) return;
    const before = thing.shown.get(span);
    if (!before) thing.shown.set(span, { sum, operation: read });
    else if (before.sum !== sum) {
      this.#report("reads", [before.operation, read], `the write ${thing.name} has changed`);
    }
  }

  /** Of what one call alone wrote all is there or nothing. */
  #checkParts(
    things: ReadonlyMap<string, Thing<PutWrites>> | undefined,
    seen: ReadonlyMap<string, string>,
    moment: Moment,
    read: Operation | undefined,
  ): void {
    const whole = new Map<PutWrites, { present?: string; missing?: string }>();
    for (const [key, thing] of things ?? []) {
      const [only] = thing.by;
      if (thing.by.length !== 1 || !only || only.from >= moment.to) continue;
      const parts = whole.get(only) ?? {};
      whole.set(only, parts);
      parts[seen.has(key) ? "present" : "missing"] = key;
    }
    for (const [putWrites, { present, missing }] of whole) {
      if (present === undefined || missing === undefined) continue;
      this.#report(
        "whole",
        [putWrites, read],
        `of one putWrites ${present} is there and ${missing} is not`,
      );
    }
  }

  // Rules 2 and 3 in the end.

  #checkStored(stored: Stored): void {
    for (const name of stored.strange) {
      this.#report("whole", [], `in the end there is ${name}, which was never put`);
    }
    for (const [id, row] of stored.checkpoints) {
      if (!this.#checkMayBe(id, inTheEnd, undefined)) continue;
      const puts = this.#checkpoints.get(id)?.by ?? [];
      if (!puts.some(({ call }) => (row.parent ?? "") === (call.parent ?? ""))) {
        this.#report("whole", puts, `${id} is stored with the parent ${row.parent}`);
      }
      const fit = puts.filter(({ call }) => hasVersions(row, call));
      const sumOf = (channel: string, version: string) =>
        stored.blobs.get(blobKey(channel, version));
      const wrong =
        fit.length === 0
          ? "with versions that were not put"
          : this.#wrongBlobs(fit, inTheEnd, sumOf, []);
      if (wrong) this.#report("whole", puts, `${id} is stored, but ${wrong}`);
    }
    for (const [key, sum] of stored.blobs) {
      const thing = this.#blobs.get(key);
      if (!thing) {
        this.#report("whole", [], `in the end there is the blob ${key}, which was never put`);
      } else if (!this.#mayBe(thing.by, inTheEnd)) {
        this.#report(
          "deleted",
          thing.by,
          `the blob ${thing.name} is stored, which had been deleted`,
        );
      } else if (!this.#sums.get(key)?.has(sum)) {
        this.#report("whole", thing.by, `the blob ${thing.name} is stored with another value`);
      } else if (!thing.by.some(({ call }) => stored.checkpoints.has(call.checkpoint))) {
        this.#report("whole", thing.by, `the blob ${thing.name} is stored without its checkpoint`);
      }
    }
    for (const [checkpoint, writes] of stored.writes) {
      this.#checkWrites(checkpoint, writes, inTheEnd, undefined);
    }
  }
}

/** A checkpoint that was there since `to`, and the greatest of those before it. */
interface Latest {
  id: string;
  to: number;
  operation: Operation;
  greatest: Latest;
}

/** The rows of one thread. */
class Stored {
  readonly checkpoints = new Map<string, CheckpointRow>();
  readonly blobs = new Map<string, string>();
  readonly writes = new Map<string, Map<string, string>>();
  /** What lies in a namespace that no agent writes to. */
  readonly strange: string[] = [];

  constructor(rows: Rows) {
    for (const row of rows.checkpoints) {
      if (row.ns === "") this.checkpoints.set(row.id, row);
      else this.strange.push(`${row.ns} ${row.id}`);
    }
    for (const row of rows.blobs) {
      if (row.ns === "") this.blobs.set(blobKey(row.channel, row.version), row.sum);
      else this.strange.push(`the blob ${row.ns} ${row.channel}`);
    }
    for (const row of rows.writes) {
      if (row.ns !== "") {
        this.strange.push(`the write ${row.ns} ${row.checkpoint}`);
        continue;
      }
      const writes = this.writes.get(row.checkpoint) ?? new Map<string, string>();
      this.writes.set(row.checkpoint, writes.set(writeKey(row.task, row.idx), row.sum));
    }
  }

  writesOf(checkpoint: string): ReadonlyMap<string, string> {
    return this.writes.get(checkpoint) ?? new Map();
  }
}

const blobKey = (channel: string, version: string | number) => `${channel} ${version}`;
const writeKey = (task: string, idx: number) => `${task} ${idx}`;

/** Those that stored it for certain, and the first reads that showed it. */
function momentsOf({ by, seen }: Thing): Moment[] {
  return [
    ...by.filter(({ done }) => done === "ok"),
    ...[...seen.values()].map((each) => each.moment),
  ];
}

/** LangGraph's rule: only where all are special they replace what is stored. */
function replaces({ call }: PutWrites): boolean {
  return call.writes.every(({ idx }) => idx < 0);
}

/** What the call stores there: of several with one idx the last replaces and the first is kept. */
function storedBy(putWrites: PutWrites, key: string): string | undefined {
  const { task, writes } = putWrites.call;
  const own = writes.filter(({ idx }) => writeKey(task, idx) === key);
  return own.at(replaces(putWrites) ? -1 : 0)?.sum;
}

function hasVersions(row: CheckpointRow, { blobs }: Put["call"]): boolean {
  return Object.entries(blobs).every(
    ([channel, { version }]) => String(row.channel_versions[channel]) === String(version),
  );
}

function addTo(sets: Map<string, Set<string>>, key: string, value: string): void {
  const set = sets.get(key);
  if (set) set.add(value);
  else sets.set(key, new Set([value]));
}

/** How many of the first ones it holds for. */
function lowerBound<T>(sorted: readonly T[], holds: (each: T) => boolean): number {
  let low = 0;
  let high = sorted.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (holds(sorted[middle]!)) low = middle + 1;
    else high = middle;
  }
  return low;
}
