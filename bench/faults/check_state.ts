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

import type { Operation, OperationOf, Rows } from "./call_history.js";
import type { Report } from "./check.js";
import { Shown } from "./check_shown.js";
import { Stored } from "./check_stored.js";
import { inTheEnd, lowerBound, type Moment, type Thing, Things, writeKey } from "./check_things.js";

/** Threads of more operations are not looked at for deletes that reads show. */
const mostForEffects = 2_000;

/** Reports what is not there though it must be, and what is there though it cannot be. */
export function checkState(
  operations: readonly Operation[],
  rows: Rows | undefined,
  report: Report,
): void {
  const things = new Things(operations);
  const stored = rows && new Stored(rows);
  const lost = new Lost(things, report);
  lost.check(stored);
  if (operations.length <= mostForEffects && things.deletes.all.length > 0) {
    lost.findEffects(stored);
  }
  new Shown(things, report).check(stored);
}

/** What must be there. */
class Lost {
  readonly #things: Things;
  readonly #report: Report;

  constructor(things: Things, report: Report) {
    this.#things = things;
    this.#report = report;
  }

  check(stored: Stored | undefined): void {
    const latest = this.#latestBySpan();
    for (const read of this.#things.tuples) this.#checkMissing(read, latest);
    for (const read of this.#things.lists) this.#checkList(read, latest);
    if (stored) this.#checkStored(stored);
  }

  #latestBySpan(): Map<number, Latest[]> {
    const spans = new Map<number, Latest[]>();
    for (const [id, { seen }] of this.#things.checkpoints) {
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
      const proof = this.#things.proofOf(this.#things.checkpoints.get(call.checkpoint), read);
      if (proof && found !== call.checkpoint) {
        this.#report(
          "reads",
          [proof, read],
          `getTuple of ${call.checkpoint} returned ${found}, though it was there`,
        );
      }
    } else {
      const latest = spans.get(this.#things.deletes.begun(read.to)) ?? [];
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
    for (const [key, thing] of this.#things.writes.get(found) ?? []) {
      const proof = writes.has(key) ? undefined : this.#things.proofOf(thing, read);
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
    for (const { id, to, operation } of spans.get(this.#things.deletes.begun(read.to)) ?? []) {
      if (to >= read.from) break;
      if (!found.has(id)) this.#report("reads", [operation, read], `a list lacks ${id}`);
    }
  }

  #checkStored(stored: Stored): void {
    const check = (thing: Thing, isStored: boolean) => {
      const proof = isStored ? undefined : this.#things.proofOf(thing, inTheEnd);
      if (proof) this.#report("acknowledged", [proof], `${thing.name} is not stored in the end`);
    };
    for (const [id, thing] of this.#things.checkpoints) check(thing, stored.checkpoints.has(id));
    for (const [key, thing] of this.#things.blobs) check(thing, stored.blobs.has(key));
    for (const [checkpoint, things] of this.#things.writes) {
      const writes = stored.writesOf(checkpoint);
      for (const [key, thing] of things) check(thing, writes.has(key));
    }
  }

  /** What was there and is not seen any more tells of a delete, which takes everything at once. */
  findEffects(stored: Stored | undefined): void {
    for (const read of this.#things.tuples) {
      const { call, answer } = read;
      const found = answer?.checkpoint ?? null;
      if (call.checkpoint) {
        if (found === null) this.#inferDelete(this.#things.checkpoints.get(call.checkpoint), read);
      } else {
        for (const [id, thing] of this.#things.checkpoints) {
          if (found === null || id > found) this.#inferDelete(thing, read);
        }
      }
      if (found === null) continue;
      const writes = new Set((answer?.writes ?? []).map(([task, idx]) => writeKey(task, idx)));
      for (const [key, thing] of this.#things.writes.get(found) ?? []) {
        if (!writes.has(key)) this.#inferDelete(thing, read);
      }
    }
    for (const read of this.#things.lists) {
      const found = new Set(read.answer?.checkpoints);
      for (const [id, thing] of this.#things.checkpoints) {
        if (!found.has(id)) this.#inferDelete(thing, read);
      }
    }
    if (!stored) return;
    for (const [id, thing] of this.#things.checkpoints) {
      if (!stored.checkpoints.has(id)) this.#inferDelete(thing, undefined);
    }
    for (const [checkpoint, things] of this.#things.writes) {
      const writes = stored.writesOf(checkpoint);
      for (const [key, thing] of things) if (!writes.has(key)) this.#inferDelete(thing, undefined);
    }
  }

  #inferDelete(thing: Thing | undefined, read: Operation | undefined): void {
    const { from, to } = read ?? inTheEnd;
    let after = Number.NEGATIVE_INFINITY;
    for (const moment of thing ? momentsOf(thing) : []) {
      if (moment.to >= from) continue;
      const candidate = this.#things.deletes.all.find((each) => each.to > moment.from);
      // Without one it is lost, which was reported.
      if (candidate && candidate.from < to) {
        after = Math.max(after, moment.from, candidate.from);
      }
    }
    if (after > Number.NEGATIVE_INFINITY) {
      this.#things.deletes.learn({ after, before: to, operation: read });
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

/** Those that stored it for certain, and the first reads that showed it. */
function momentsOf({ by, seen }: Thing): Moment[] {
  return [
    ...by.filter(({ done }) => done === "ok"),
    ...[...seen.values()].map((each) => each.moment),
  ];
}
