/** What is left out of the log when it repeats itself, and that it says so. */
import { execFile } from "node:child_process";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { createLog } from "./log.js";
import { captureLog } from "./testing/captured_log.js";

const capture = (level: Parameters<typeof createLog>[0] = "info") =>
  captureLog((destination) => createLog(level, destination));

it("holds no character that moves a terminal's cursor or turns the writing direction", () => {
  const destination: string[] = [];
  const log = createLog("info", { write: (line) => destination.push(line) });
  const name = "a\u001b[2J\u007f\u009b\u202e\u2066\u061c\u200f\u2028\ud800b";
  log.warn({ name, [name]: name.repeat(9), error: new Error(name) }, `name ${name}`);
  const [line = ""] = destination;
  expect(line).toMatch(/^[^\p{Cc}\p{Cs}\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]*\n$/u);
  expect(JSON.parse(line)).toMatchObject({ msg: `name ${name}`, name, [name]: name.repeat(9) });
});

describe("lines that repeat", () => {
  beforeEach(() => void vi.useFakeTimers());
  afterEach(() => void vi.useRealTimers());

  it("writes the first five of a kind, and at the end of the window how many were left out", () => {
    const { log, lines } = capture();
    for (let i = 0; i < 10_000; i++) {
      log.error({ requestId: `r-${i}`, rpc: "Put", error: { code: "53100" } }, "call failed");
    }
    expect(lines().map(({ requestId }) => requestId)).toEqual(["r-0", "r-1", "r-2", "r-3", "r-4"]);
    vi.advanceTimersByTime(10_000);
    expect(lines()).toHaveLength(6);
    expect(lines().at(-1)).toMatchObject({
      level: "error",
      msg: "call failed",
      rpc: "Put",
      error: { code: "53100" },
      suppressed: 9_995,
    });
    expect(lines().at(-1)).not.toHaveProperty("requestId");
    vi.advanceTimersByTime(60_000);
    expect(lines()).toHaveLength(6);
  });

  it("begins anew after the window", () => {
    const { log, lines } = capture();
    for (let i = 0; i < 7; i++) log.warn("too many connections");
    vi.advanceTimersByTime(10_000);
    for (let i = 0; i < 8; i++) log.warn("too many connections");
    vi.advanceTimersByTime(10_000);
    expect(lines().map(({ suppressed }) => suppressed)).toEqual([...Array(5), 2, ...Array(5), 3]);
  });

  it("says nothing of a kind of which everything was written", () => {
    const { log, lines } = capture();
    for (let i = 0; i < 5; i++) log.info("draining");
    vi.advanceTimersByTime(10_000);
    expect(lines()).toHaveLength(5);
  });

  it("tells kinds apart by level, sentence, rpc, code, reason and the error's code", () => {
    const { log, lines } = capture();
    const kinds: (() => void)[] = [
      () => log.info({ rpc: "Put", code: "Aborted" }, "call refused"),
      () => log.warn({ rpc: "Put", code: "Aborted" }, "call refused"),
      () => log.info({ rpc: "Put", code: "Aborted" }, "slow call"),
      () => log.info({ rpc: "GetTuple", code: "Aborted" }, "call refused"),
      () => log.info({ rpc: "Put", code: "Canceled" }, "call refused"),
      () => log.info({ rpc: "Put", code: "Aborted", reason: "CONFLICT" }, "call refused"),
      () => log.info({ rpc: "Put", code: "Aborted", error: { code: "X" } }, "call refused"),
      () => log.info({ rpc: "Put", code: "Aborted", err: { code: "Y" } }, "call refused"),
    ];
    for (let i = 0; i < 20; i++) for (const write of kinds) write();
    vi.advanceTimersByTime(10_000);
    expect(lines()).toHaveLength(6 * kinds.length);
    const left = lines().flatMap(({ suppressed }) => (suppressed === undefined ? [] : suppressed));
    expect(left).toEqual(kinds.map(() => 15));
  });

  it("bounds the kinds: what is beyond counts together", () => {
    const { log, lines } = capture();
    for (let i = 0; i < 10_000; i++) log.error(`sentence ${i}`);
    vi.advanceTimersByTime(10_000);
    expect(lines()).toHaveLength(200 + 5 + 1);
    expect(lines().at(-1)).toMatchObject({
      msg: "lines of many other kinds",
      suppressed: 10_000 - 205,
    });
  });

  it("keeps what a child of the log adds", () => {
    const { log, lines } = capture();
    for (let i = 0; i < 6; i++) log.child({ pid: 7 }).error("failed");
    vi.advanceTimersByTime(10_000);
    expect(lines({ pid: 7 })).toHaveLength(6);
  });

  it("writes every line of level debug", () => {
    const { log, lines } = capture("debug");
    for (let i = 0; i < 100; i++) log.debug({ rpc: "Put" }, "call");
    expect(lines()).toHaveLength(100);
  });
});

it("says what it left out when the process ends, for which it does not wait", async () => {
  const module = fileURLToPath(new URL("../dist/src/log.js", import.meta.url));
  const script = `
    import { createLog } from ${JSON.stringify(module)};
    const log = createLog("info", undefined, 3_600_000);
    for (let i = 0; i < 1000; i++) log.error({ rpc: "Put" }, "call failed");`;
  const { stderr } = await promisify(execFile)(process.execPath, [
    "--input-type=module",
    "--eval",
    script,
  ]);
  const lines = stderr.trim().split("\n");
  expect(lines).toHaveLength(6);
  expect(JSON.parse(lines[5] as string)).toMatchObject({ msg: "call failed", suppressed: 995 });
});
