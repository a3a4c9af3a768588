import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { describe, expect, it } from "vitest";
import { type Answer, type Call, type Event, type Rows, readEvents } from "./call_history.js";
import { checkHistories, type Rule } from "./check.js";
import { errors, simulate } from "./check_simulation.js";

describe("of runs in memory", () => {
  it("finds nothing if the store makes no mistake", () => {
    for (let seed = 0; seed < 3_000; seed++) {
      const { events, rows } = simulate(seed);
      expect(checkHistories(events, rows), `seed ${seed}`).toEqual([]);
    }
  });

  it.each(errors)("finds %s", (error) => {
    const found = Array.from({ length: 100 }, (_, seed) => {
      const { events, rows } = simulate(seed, error);
      return checkHistories(events, rows).length > 0;
    });
    expect(found.filter(Boolean).length).toBeGreaterThan(2);
  });
});

describe("acknowledged", () => {
  it("finds a checkpoint, a blob or a write that is not stored", () => {
    const acknowledged = [done(0, 1, put("c1")), done(2, 3, putWrites("c1", [0, 1]))];
    expectRules(acknowledged, stored(["c1"], ["c1 a"], ["c1 0", "c1 1"]), []);
    expectRules(acknowledged, stored([], ["c1 a"], ["c1 0", "c1 1"]), ["acknowledged", "whole"]);
    expectRules(acknowledged, stored(["c1"], [], ["c1 0", "c1 1"]), ["acknowledged", "whole"]);
    expectRules(acknowledged, stored(["c1"], ["c1 a"], ["c1 0"]), ["acknowledged", "whole"]);
    expectRules(acknowledged, stored(["c1"], ["c1 a"], []), ["acknowledged"]);
    expectRules(acknowledged, undefined, []);
  });

  it("asks for nothing that was not acknowledged", () => {
    expectRules([unknown(0, put("c1")), failed(0, 1, put("c2"), "unavailable")], stored(), []);
    expectRules([failed(0, 1, put("c1"), "invalid_argument")], stored(), []);
  });

  it("asks for nothing that a delete may have removed", () => {
    const remove = { kind: "deleteThread" } as const;
    expectRules([done(0, 1, put("c1")), done(2, 3, remove)], stored(), []);
    expectRules([done(0, 4, put("c1")), done(2, 3, remove)], stored(), []);
    expectRules([done(2, 3, put("c1")), done(0, 4, remove)], stored(), []);
    expectRules([unknown(0, remove), done(2, 3, put("c1"))], stored(), []);
    expectRules([failed(0, 1, remove, "unavailable"), done(2, 3, put("c1"))], stored(), []);
    expectRules([failed(0, 1, remove, "invalid_argument"), done(2, 3, put("c1"))], stored(), [
      "acknowledged",
    ]);
    expectRules([done(0, 1, remove), done(2, 3, put("c1"))], stored(), ["acknowledged"]);
  });
});

describe("whole", () => {
  it("finds a checkpoint without its blob, or with another's", () => {
    const either = [unknown(0, put("c1"))];
    expectRules(either, stored(["c1"], ["c1 a"]), []);
    expectRules(either, stored(), []);
    expectRules(either, stored(["c1"], []), ["whole"]);
    expectRules(either, stored([], ["c1 a"]), ["whole"]);
    const other = stored(["c1"], ["c1 a"]);
    other.blobs[0]!.sum = "other";
    expectRules(either, other, ["whole"]);
  });

  it("finds a part of a putWrites", () => {
    const either = [unknown(0, putWrites("c1", [0, 1]))];
    expectRules(either, stored([], [], ["c1 0", "c1 1"]), []);
    expectRules(either, stored([], [], ["c1 0"]), ["whole"]);
    // The part may be that of another.
    expectRules([...either, unknown(0, putWrites("c1", [0]))], stored([], [], ["c1 0"]), []);
  });

  it("finds what nobody put", () => {
    expectRules([unknown(0, put("c1"))], stored(["c2"]), ["whole"]);
    expectRules([unknown(0, put("c1"))], stored([], ["c2 a"]), ["whole"]);
    expectRules([unknown(0, putWrites("c1", [0]))], stored([], [], ["c1 1"]), ["whole"]);
    expectRules([failed(0, 1, put("c1"), "invalid_argument")], stored(["c1"], ["c1 a"]), ["whole"]);
    const elsewhere = stored(["c1"], ["c1 a"]);
    elsewhere.checkpoints[0]!.ns = "other";
    expectRules([unknown(0, put("c1"))], elsewhere, ["whole"]);
  });

  it("finds another parent or another version", () => {
    const again = [done(0, 1, put("c1")), done(2, 3, { ...put("c1"), parent: "c0" })];
    const rows = stored(["c1"], ["c1 a"]);
    expectRules(again, rows, []);
    rows.checkpoints[0]!.parent = "c0";
    expectRules(again, rows, []);
    rows.checkpoints[0]!.parent = "c9";
    expectRules(again, rows, ["whole"]);
    rows.checkpoints[0]!.parent = null;
    rows.checkpoints[0]!.channel_versions = { a: "other" };
    expectRules(again, rows, ["whole"]);
  });
});

describe("deleted", () => {
  const remove = { kind: "deleteThread" } as const;

  it("finds what came back by itself", () => {
    const before = [done(0, 1, put("c1")), done(2, 3, putWrites("c1", [0])), done(4, 5, remove)];
    expectRules(before, stored(), []);
    expectRules(before, stored(["c1"], ["c1 a"]), ["deleted"]);
    expectRules(before, stored([], ["c1 a"]), ["deleted"]);
    expectRules(before, stored([], [], ["c1 0"]), ["deleted"]);
    expectRules([...before, done(6, 7, getTuple(), tuple("c1"))], undefined, ["deleted"]);
    expectRules([...before, done(6, 7, list(), { checkpoints: ["c1"] })], undefined, ["deleted"]);
    // Begun before the delete was answered, it may have been read before it.
    expectRules([...before, done(4.5, 7, getTuple(), tuple("c1"))], stored(), []);
  });

  it("lets come back what was not answered", () => {
    const rows = stored(["c1"], ["c1 a"]);
    expectRules([unknown(0, put("c1")), done(4, 5, remove)], rows, []);
    expectRules([failed(0, 1, put("c1"), "unavailable"), done(4, 5, remove)], rows, []);
    expectRules([done(0, 6, put("c1")), done(4, 5, remove)], rows, []);
    expectRules([done(0, 1, put("c1")), unknown(4, remove)], rows, []);
    // Put once more.
    expectRules([done(0, 1, put("c1")), done(4, 5, remove), unknown(6, put("c1"))], rows, []);
  });

  it("knows of a delete by what is gone", () => {
    const gone = [
      done(0, 1, put("c1")),
      done(0, 1, put("c2")),
      unknown(2, remove),
      done(4, 5, getTuple("c1"), { checkpoint: null }),
    ];
    expectRules(gone, stored(), []);
    expectRules([...gone, done(6, 7, getTuple("c2"), tuple("c2"))], stored(), ["deleted"]);
    expectRules([...gone, done(4.5, 7, getTuple("c2"), tuple("c2"))], stored(), []);
    expectRules([...gone, done(2, 3, put("c2"))], stored(["c2"], ["c2 a"]), []);
    expectRules(gone, stored(["c2"], ["c2 a"]), ["deleted"]);
  });
});

describe("reads", () => {
  it("finds a latest that is older than it can be", () => {
    const two = [done(0, 1, put("c1")), done(2, 3, put("c2"))];
    const read = (from: number, id: string | null) => done(from, 9, getTuple(), tuple(id));
    const rows = stored(["c1", "c2"], ["c1 a", "c2 a"]);
    expectRules([...two, read(4, "c2")], rows, []);
    expectRules([...two, read(4, "c1")], rows, ["reads"]);
    expectRules([...two, read(4, null)], rows, ["reads"]);
    expectRules([...two, read(2.5, "c1")], rows, []);
    expectRules([...two, unknown(3, { kind: "deleteThread" }), read(4, "c1")], rows, ["deleted"]);
    expectRules([...two, unknown(3, { kind: "deleteThread" }), read(4, null)], stored(), []);
  });

  it("finds one that does not see what a read before it saw", () => {
    const rows = stored(["c1"], ["c1 a"]);
    const seen = [unknown(0, put("c1")), done(2, 3, getTuple(), tuple("c1"))];
    expectRules([...seen, done(4, 5, getTuple("c1"), tuple("c1"))], rows, []);
    expectRules([...seen, done(4, 5, getTuple("c1"), tuple(null))], rows, ["reads"]);
    expectRules([...seen, done(4, 5, list(), { checkpoints: [] })], rows, ["reads"]);
    expectRules([...seen, done(2.5, 5, getTuple("c1"), tuple(null))], rows, []);
    expectRules(seen, stored(), ["acknowledged"]);
  });

  it("finds what was never put, or not yet", () => {
    const rows = stored(["c1"], ["c1 a"]);
    expectRules([done(0, 1, getTuple(), tuple("c1")), done(2, 3, put("c1"))], rows, ["reads"]);
    expectRules([done(0, 3, getTuple(), tuple("c1")), done(2, 4, put("c1"))], rows, []);
    expectRules(
      [done(0, 1, getTuple("c1"), tuple("c2")), unknown(0, put("c2"))],
      stored(["c2"], ["c2 a"]),
      ["reads"],
    );
  });

  it("finds values that are missing or another's", () => {
    const rows = stored(["c1"], ["c1 a"]);
    const read = (blobs: Record<string, string>) =>
      done(2, 3, getTuple(), { checkpoint: "c1", blobs, writes: [] });
    expectRules([done(0, 1, put("c1")), read({ a: "c1 a" })], rows, []);
    expectRules([done(0, 1, put("c1")), read({})], rows, ["reads"]);
    expectRules([done(0, 1, put("c1")), read({ a: "other" })], rows, ["reads"]);
    expectRules([done(0, 1, put("c1")), read({ a: "c1 a", b: "c1 a" })], rows, ["reads"]);
    // From a checkpoint before it.
    const inherited = [done(0, 1, put("c0", "b")), done(0, 1, put("c1"))];
    const both = stored(["c0", "c1"], ["c0 b", "c1 a"]);
    both.checkpoints[0]!.channel_versions = { b: "c0" };
    expectRules([...inherited, read({ a: "c1 a", b: "c0 b" })], both, []);
  });

  it("finds writes that are missing, in parts, or never written", () => {
    const both = stored(["c1"], ["c1 a"], ["c1 0", "c1 1"]);
    const written = [done(0, 1, put("c1")), done(0, 1, putWrites("c1", [0, 1]))];
    const read = (idx: number[], from = 2) => done(from, 3, getTuple(), tuple("c1", idx));
    expectRules([...written, read([0, 1])], both, []);
    expectRules([...written, read([])], both, ["reads"]);
    expectRules([...written, read([], 0.5)], both, []);
    expectRules([...written, read([0], 0.5)], both, ["whole"]);
    expectRules([...written, read([0, 1, 2])], both, ["reads"]);
    expectRules([...written, read([0, 1, 1])], both, ["reads"]);
  });

  it("knows which write is kept and which replaces", () => {
    const write = (idx: number, sum: string): Call => ({
      kind: "putWrites",
      checkpoint: "c1",
      task: "t",
      writes: [{ idx, channel: "a", sum }],
    });
    const rows = (idx: number, sum: string): Rows => ({
      checkpoints: [],
      blobs: [],
      writes: [{ thread: "t", ns: "", checkpoint: "c1", task: "t", idx, sum }],
    });
    const twice = (idx: number) => [done(0, 1, write(idx, "x")), done(2, 3, write(idx, "y"))];
    expectRules(twice(0), rows(0, "x"), []);
    expectRules(twice(0), rows(0, "y"), ["acknowledged"]);
    expectRules(twice(-1), rows(-1, "y"), []);
    expectRules(twice(-1), rows(-1, "x"), ["acknowledged"]);
    expectRules(twice(-1), rows(-1, "z"), ["acknowledged"]);
    for (const idx of [0, -1]) {
      const together = [done(0, 3, write(idx, "x")), done(2, 4, write(idx, "y"))];
      for (const sum of ["x", "y"]) expectRules(together, rows(idx, sum), []);
      const late = [unknown(0, write(idx, "x")), done(2, 3, write(idx, "y"))];
      for (const sum of ["x", "y"]) expectRules(late, rows(idx, sum), []);
    }
    const between = done(1.2, 1.8, { kind: "deleteThread" });
    expectRules([...twice(0), between], rows(0, "y"), []);
    expectRules([...twice(0), between], rows(0, "x"), ["acknowledged"]);
  });

  it("finds lists that lack, repeat, mix up or invent", () => {
    const three = [done(0, 1, put("c1")), done(0, 1, put("c2")), unknown(0, put("c3"))];
    const listed = (...checkpoints: string[]) => [...three, done(2, 3, list(), { checkpoints })];
    const rows = stored(["c1", "c2", "c3"], ["c1 a", "c2 a", "c3 a"]);
    expectRules(listed("c3", "c2", "c1"), rows, []);
    expectRules(listed("c2", "c1"), rows, []);
    expectRules(listed("c2"), rows, ["reads"]);
    expectRules(listed("c2", "c2", "c1"), rows, ["reads"]);
    expectRules(listed("c1", "c2"), rows, ["reads"]);
    expectRules(listed("c4", "c2", "c1"), rows, ["reads"]);
  });
});

describe("leases", () => {
  const claim = (owner: string, leaseMs = 100): Call => ({ kind: "claim", owner, leaseMs });
  const first = done(0, 1, claim("a"), { token: "x" });
  const rows = stored(["c1"], ["c1 a"]);
  const write = (lease: string): Call => ({ ...put("c1"), lease });

  it("finds two holders", () => {
    expectRules([first, done(2, 3, claim("b"), { token: "y" })], stored(), ["leases"]);
    expectRules([first, done(0, 3, claim("b"), { token: "y" })], stored(), ["leases"]);
    expectRules([first, done(2, 3, claim("b"), { token: null })], stored(), []);
    expectRules([first, failed(2, 3, claim("b"), "unavailable")], stored(), []);
    expectRules([first, done(101, 102, claim("b"), { token: "y" })], stored(), []);
    // It may have been granted when the first was over.
    expectRules([first, done(2, 102, claim("b", 50), { token: "y" })], stored(), []);
    // It cannot, however late its answer came.
    expectRules([first, done(2, 60, claim("b", 50), { token: "y" })], stored(), ["leases"]);
  });

  it("knows what ends a lease early and what prolongs it", () => {
    const second = done(20, 21, claim("b"), { token: "y" });
    expectRules([first, done(3, 4, { kind: "release", token: "x" }), second], stored(), []);
    expectRules([first, unknown(3, { kind: "release", token: "x" }), second], stored(), []);
    expectRules([first, unknown(3, { kind: "deleteThread" }), second], stored(), []);
    expectRules([first, done(3, 4, { kind: "release", token: "z" }), second], stored(), ["leases"]);
    const renew = done(90, 91, { kind: "renew", token: "x" });
    const third = done(120, 121, claim("b"), { token: "y" });
    expectRules([first, renew, third], stored(), ["leases"]);
    expectRules([first, unknown(90, { kind: "renew", token: "x" }), third], stored(), []);
  });

  it("finds what was acknowledged under a lease that was lost", () => {
    const over = [first, done(101, 102, claim("b"), { token: "y" })];
    expectRules([...over, done(103, 104, write("x"))], rows, ["leases"]);
    expectRules([...over, done(103, 104, { kind: "renew", token: "x" })], stored(), ["leases"]);
    expectRules([...over, done(103, 104, write("y"))], rows, []);
    expectRules([...over, done(101.5, 104, write("x"))], rows, []);
    expectRules([...over, lost(103, 104, write("x"))], stored(), []);
    const released = [first, done(2, 3, { kind: "release", token: "x" })];
    expectRules([...released, done(4, 5, write("x"))], rows, ["leases"]);
    expectRules(
      [first, unknown(2, { kind: "release", token: "x" }), done(4, 5, write("x"))],
      rows,
      [],
    );
  });

  it("finds what was refused and yet stored", () => {
    const over = [first, done(101, 102, claim("b"), { token: "y" })];
    expectRules([...over, lost(103, 104, write("x"))], rows, ["whole"]);
    // A first try may have been in time.
    expectRules([...over, lost(100, 104, write("x"))], rows, []);
  });
});

describe("deadlines", () => {
  it("finds calls that outlive them", () => {
    const late = (to: number, lagMs = 0) => [
      { ...unknown(0, list())[0]!, agent: "a", timeoutMs: 1_000 } as Event,
      { ...failed(0, to, list(), "unavailable")[1]!, agent: "a", lagMs } as Event,
    ];
    expectRules([late(1_400)], stored(), []);
    expectRules([late(1_600)], stored(), ["deadlines"]);
    expectRules([late(1_600, 200)], stored(), []);
  });

  it("finds calls that hang while their agent goes on", () => {
    const call = { kind: "list", agent: "a", op: 0, thread: "t", timeoutMs: 1_000 } as const;
    const hanging: Event[] = [{ e: "invoke", at: 0, ...call }];
    const others = (from: number): Event[] =>
      Array.from({ length: 30 }, (_, i) => {
        const at = from + i * 100;
        return { e: "invoke", at, ...call, op: i + 1, timeoutMs: 60_000 };
      });
    expectRules([hanging], stored(), []);
    expectRules([hanging, others(1_600)], stored(), ["deadlines"]);
    expectRules([hanging, others(0)], stored(), []);
    expectRules([hanging, [{ e: "end", agent: "a", at: 10 }]], stored(), ["deadlines"]);
  });
});

it("judges each thread by itself: what many threads take grows with their number", () => {
  const started = performance.now();
  function* load(): Generator<Event> {
    for (let n = 0; n < 50_000; n++) {
      const thread = `t${n % 5_000}`;
      const id = `c${String(n).padStart(8, "0")}`;
      for (const [i, pair] of [
        done(0, 1, put(id)),
        done(1, 2, putWrites(id, [0, 1])),
        done(2, 3, getTuple(), tuple(id, [0, 1])),
        done(3, 4, getTuple(id), tuple(id, [0, 1])),
      ].entries()) {
        const op = n * 4 + i;
        for (const event of pair)
          yield { ...event, op, agent: "a", thread, at: n * 5 + event.at } as Event;
      }
    }
  }
  expect(checkHistories(load(), undefined)).toEqual([]);
  expect(performance.now() - started).toBeLessThan(60_000);
}, 120_000);

it("reads what a killed agent left of its history", () => {
  const folder = mkdtempSync(path.join(tmpdir(), "history-"));
  const file = path.join(folder, "a.jsonl");
  expect([...readEvents(file)]).toEqual([]);
  const events = Array.from({ length: 20_000 }, (_, n) => done(n, n + 1, getTuple(`ü${n}`))).flat();
  writeFileSync(file, `${events.map((event) => JSON.stringify(event)).join("\n")}\n{"e":"inv`);
  expect([...readEvents(file)]).toEqual(events);
  rmSync(folder, { recursive: true });
});

/** What is wrong, each rule once. */
function expectRules(operations: Event[][], rows: Rows | undefined, rules: Rule[]): void {
  const events = operations.flat().sort((a, b) => a.at - b.at);
  const violations = checkHistories(events, rows);
  const found = [...new Set(violations.map(({ rule }) => rule))].sort();
  expect(found, JSON.stringify(violations, undefined, 1)).toEqual(rules);
}

function put(checkpoint: string, channel = "a"): Call & { kind: "put" } {
  const blobs = { [channel]: { version: checkpoint, sum: `${checkpoint} ${channel}` } };
  return { kind: "put", checkpoint, parent: null, blobs };
}

function putWrites(checkpoint: string, idx: number[]): Call {
  const writes = idx.map((i) => ({ idx: i, channel: "a", sum: `${checkpoint} ${i}` }));
  return { kind: "putWrites", checkpoint, task: "t", writes };
}

function getTuple(checkpoint?: string): Call {
  return checkpoint ? { kind: "getTuple", checkpoint } : { kind: "getTuple" };
}

function list(): Call {
  return { kind: "list" };
}

function tuple(checkpoint: string | null, idx: number[] = []): Partial<Answer> {
  if (checkpoint === null) return { checkpoint };
  const writes = idx.map((i): [string, number, string] => ["t", i, `${checkpoint} ${i}`]);
  return { checkpoint, blobs: { a: `${checkpoint} a` }, writes };
}

/** An operation of an agent of its own. */
function unknown(at: number, call: Call): Event[] {
  return [{ e: "invoke", op: 1, agent: `a${agents++}`, at, thread: "t", ...call }];
}

let agents = 0;

function done(from: number, to: number, call: Call, result: Partial<Answer> = {}): Event[] {
  const [invoke] = unknown(from, call) as [Event];
  return [invoke, { e: "answer", op: 1, agent: invoke.agent, at: to, outcome: "ok", ...result }];
}

function failed(from: number, to: number, call: Call, code: string, reason = ""): Event[] {
  return done(from, to, call, { outcome: "failed", code, reason });
}

function lost(from: number, to: number, call: Call): Event[] {
  return failed(from, to, call, "failed_precondition", "LEASE_LOST");
}

/** Checkpoints by id, blobs as "version channel", writes as "checkpoint idx". */
function stored(checkpoints: string[] = [], blobs: string[] = [], writes: string[] = []): Rows {
  const key = { thread: "t", ns: "" };
  return {
    checkpoints: checkpoints.map((id) => ({
      ...key,
      id,
      parent: null,
      channel_versions: { a: id },
    })),
    blobs: blobs.map((sum) => {
      const [version = "", channel = ""] = sum.split(" ");
      return { ...key, channel, version, sum };
    }),
    writes: writes.map((sum) => {
      const [checkpoint = "", idx] = sum.split(" ");
      return { ...key, checkpoint, task: "t", idx: Number(idx), sum };
    }),
  };
}
