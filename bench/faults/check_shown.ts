/** What is seen: that somebody stored it, that it was not deleted, and that it is what was stored. */

import type { CheckpointRow, Operation, OperationOf } from "./call_history.js";
import type { Report } from "./check.js";
import type { Stored } from "./check_stored.js";
import {
  blobKey,
  inTheEnd,
  type Moment,
  type Put,
  type PutWrites,
  type Thing,
  type Things,
  writeKey,
} from "./check_things.js";

/** Judges what reads and rows show. */
export class Shown {
  readonly #things: Things;
  readonly #report: Report;

  constructor(things: Things, report: Report) {
    this.#things = things;
    this.#report = report;
  }

  /** Reports what cannot be there, or not so. */
  check(stored: Stored | undefined): void {
    for (const read of this.#things.tuples) this.#checkTuple(read);
    for (const read of this.#things.lists) {
      for (const id of read.answer?.checkpoints ?? []) this.#checkMayBe(id, read, read);
    }
    if (stored) this.#checkStored(stored);
  }

  #checkMayBe(id: string, moment: Moment, read: Operation | undefined): boolean {
    const by = this.#things.checkpoints.get(id)?.by ?? [];
    if (this.#things.mayBe(by, moment)) return true;
    const where = read ? read.call.kind : "the database";
    if (by.some(({ from }) => from < moment.to)) {
      const { operation } = this.#things.deletes.lastOver(moment);
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
      const puts = this.#things.checkpoints.get(id)?.by ?? [];
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
          const isShared = this.#things.blobs
            .get(key)
            ?.by.some((put) => put.call.checkpoint !== call.checkpoint);
          if (sum && !(isShared && this.#things.deletes.all.length > 0))
            wrong = `the value of ${channel} is missing`;
        } else if (!this.#things.sums.get(key)?.has(found)) {
          wrong = `the value of ${channel} is none that was put`;
        }
      }
      for (const channel of channels) {
        if (channel in call.blobs) continue;
        const found = sumOf(channel, "");
        // From an earlier checkpoint.
        if (found !== undefined && !this.#things.channels.get(channel)?.has(found)) {
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
    const things = this.#things.writes.get(checkpoint);
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
      } else if (!this.#things.mayBe(by, moment)) {
        const { operation } = this.#things.deletes.lastOver(moment);
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
    if (storedBy(by, key) !== sum || by.to <= this.#things.deletes.lastOver(moment).after)
      return false;
    const isReplaced = thing.by.some(
      (each) =>
        replaces(each) && each.done === "ok" && by.to <= each.from && each.to <= moment.from,
    );
    if (isReplaced) return false;
    // What is stored already is kept.
    const tried = { from: by.from, to: Math.min(by.to, moment.to) };
    return replaces(by) || this.#things.proofOf(thing, tried) === undefined;
  }

  /** A write that nothing replaces stays as it is while nothing is deleted. */
  #checkKept(thing: Thing<PutWrites>, sum: string, read: Operation): void {
    const span = this.#things.deletes.spanOf(read);
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

  #checkStored(stored: Stored): void {
    for (const name of stored.strange) {
      this.#report("whole", [], `in the end there is ${name}, which was never put`);
    }
    for (const [id, row] of stored.checkpoints) {
      if (!this.#checkMayBe(id, inTheEnd, undefined)) continue;
      const puts = this.#things.checkpoints.get(id)?.by ?? [];
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
      const thing = this.#things.blobs.get(key);
      if (!thing) {
        this.#report("whole", [], `in the end there is the blob ${key}, which was never put`);
      } else if (!this.#things.mayBe(thing.by, inTheEnd)) {
        this.#report(
          "deleted",
          thing.by,
          `the blob ${thing.name} is stored, which had been deleted`,
        );
      } else if (!this.#things.sums.get(key)?.has(sum)) {
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
