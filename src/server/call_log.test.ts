/** What the log has of calls: under a storm of failures, and when they are slow. */
import { setTimeout as sleep } from "node:timers/promises";
import { Code, ConnectError } from "@connectrpc/connect";
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from "vitest";
import { createLog } from "../log.js";
import { block, untilBlocked } from "../testing/blocking.js";
import { captureLog } from "../testing/captured_log.js";
import { failureOf, secret, startEdge, ways } from "../testing/edge.js";
import { createCallLog } from "./call_log.js";

const seed = { threadId: `${secret}-seed`, checkpointId: "1" };
const putSeed = { ...seed, checkpointJson: "{}" };

test("10,000 failures are a few lines, with their number", { timeout: 120_000 }, async () => {
  const captured = captureLog((destination) => createLog("info", destination, 600_000));
  const edge = await startEdge({ log: captured.log, slowCallMs: 0 });
  await edge.sql.query("alter table checkpoints rename to elsewhere");
  const threads = Array.from({ length: 50 }, (_, i) => `t-${i}`);
  for (let round = 0; round < 100; round++) {
    await Promise.all(
      threads.flatMap((threadId) => [
        failureOf(edge.clients.session.getTuple({ threadId })),
        failureOf(edge.clients.session.getTuple({ threadId: "" })),
      ]),
    );
  }
  await edge.stop();
  const calls = captured.lines({ rpc: "checkpointd.v1.SessionService/getTuple" });
  expect(calls.filter(({ msg }) => msg === "call failed")).toMatchObject(
    Array(5).fill({ code: "Unavailable", reason: "SCHEMA_OLD", error: { code: "42P01" } }),
  );
  expect(calls.filter(({ msg }) => msg === "call refused")).toMatchObject(
    Array(5).fill({ code: "InvalidArgument", reason: "REQUIRED" }),
  );
  expect(captured.lines().length).toBeLessThan(50);
});

describe("a call slower than the threshold", () => {
  let edge: Awaited<ReturnType<typeof startEdge>>;
  beforeAll(async () => {
    edge = await startEdge({ slowCallMs: 200 });
  });
  afterAll(() => edge.stop());

  const slowLines = (rpc: string) =>
    edge.captured.lines({ level: 40, msg: "slow call" }).filter((line) => line.rpc === rpc);
  const lockSeed = async () => {
    const lock = await block(
      edge.database.url,
      "select from checkpoints where checkpoint_id = '1' for update",
    );
    onTestFinished(() => lock.release());
    return lock;
  };

  for (const way of ways) {
    const service = way.startsWith("session")
      ? ["SessionService/put", "SessionService/listPage"]
      : ["CheckpointService/Put", "CheckpointService/List"];
    const [put, list] = service.map((rpc) => `checkpointd.v1.${rpc}`) as [string, string];

    test(`has a line when it succeeds: ${way}`, async () => {
      const before = slowLines(put).length;
      const lock = await lockSeed();
      const call = edge.clients[way].put(putSeed);
      await untilBlocked(edge.sql, 1);
      await sleep(250);
      await lock.release();
      await call;
      const [line, ...more] = slowLines(put).slice(before);
      expect(line).toMatchObject({ code: "Ok", requestId: expect.any(String) });
      expect(line?.ms).toBeGreaterThanOrEqual(250);
      expect(more).toEqual([]);
    });

    test(`has a line when it is given up: ${way}`, async () => {
      const before = slowLines(put).length;
      const lock = await lockSeed();
      await failureOf(edge.clients[way].put(putSeed, { timeoutMs: 400 }));
      await expect.poll(() => slowLines(put).length).toBe(before + 1);
      expect(slowLines(put)[before]?.code).toMatch(/^(DeadlineExceeded|Canceled)$/);
      await lock.release();
    });

    test(`has a line when it is a List: ${way}`, async () => {
      const before = slowLines(list).length;
      const lock = await block(edge.database.url, "lock table checkpoints");
      onTestFinished(() => lock.release());
      const tuples = (async () => {
        let count = 0;
        for await (const _ of edge.clients[way].list({})) count++;
        return count;
      })();
      await untilBlocked(edge.sql, 1);
      await sleep(250);
      await lock.release();
      expect(await tuples).toBe(1);
      expect(slowLines(list).slice(before)).toMatchObject([{ code: "Ok" }]);
    });
  }

  test("has none when it is the reader of a List who is slow", async () => {
    const edge = await startEdge({ slowCallMs: 1_500 });
    onTestFinished(() => edge.stop());
    for (let i = 0; i < 3; i++) {
      await edge.clients.session.put({ ...putSeed, threadId: "slowly", checkpointId: `${i}` });
    }
    const requestId = "slowly-read";
    const headers = { "x-request-id": requestId };
    let tuples = 0;
    for await (const _ of edge.clients.grpc.list({ threadId: "slowly" }, { headers })) {
      tuples++;
      await sleep(600);
    }
    expect(tuples).toBe(3);
    expect(edge.captured.lines({ requestId })).toMatchObject([{ msg: "call", code: "Ok" }]);
  });

  test("quick ones have none", async () => {
    const edge = await startEdge({ slowCallMs: 20_000 });
    onTestFinished(() => edge.stop());
    const requestId = "quick";
    await edge.clients.connect.getTuple(seed, { headers: { "x-request-id": requestId } });
    expect(edge.captured.lines({ requestId })).toMatchObject([{ level: 20, msg: "call" }]);
  });
});

describe("the line of a call", () => {
  const line = (slowMs: number, waitMs: number, answer?: ConnectError) => {
    const { log, lines } = captureLog();
    createCallLog(
      log,
      slowMs,
    )({
      requestId: "r",
      rpc: "x/Put",
      carrier: "connect",
      totalMs: waitMs,
      waitMs,
      queueMs: 0,
      batchSize: 1,
      requestBytes: 0,
      answerBytes: 0,
      answer,
      error: answer,
    });
    return lines();
  };
  const failed = new ConnectError("", Code.Unavailable);
  const refused = new ConnectError("", Code.InvalidArgument);

  test.each([
    ["that was quick", 1000, 999, undefined, { level: 20, msg: "call", code: "Ok" }],
    ["that was slow", 1000, 1000, undefined, { level: 40, msg: "slow call", waitMs: 1000 }],
    ["refused", 1000, 1, refused, { level: 30, msg: "call refused", code: "InvalidArgument" }],
    ["refused slowly", 1000, 2000, refused, { level: 40, msg: "slow call" }],
    ["that failed", 1000, 1, failed, { level: 50, msg: "call failed", code: "Unavailable" }],
    ["that failed slowly", 1000, 2000, failed, { level: 50, msg: "call failed", slow: true }],
    ["that was slow, with 0", 0, 60_000, undefined, { level: 20, msg: "call" }],
  ])("%s", (_, slowMs, waitMs, answer, expected) => {
    expect(line(slowMs, waitMs, answer)).toMatchObject([expected]);
  });
});
