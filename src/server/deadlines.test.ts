/** A call that is given up, by whomever, is given up in Postgres too. */
import { Code } from "@connectrpc/connect";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import { type Blocker, block, untilBlocked } from "../testing/blocking.js";
import {
  type Call,
  expectSameWords,
  failureOf,
  post,
  secret,
  sessions,
  startEdge,
  type Way,
  ways,
} from "../testing/edge.js";
import { startRelay } from "../testing/relay.js";

let edge: Awaited<ReturnType<typeof startEdge>>;
let blocker: Blocker | undefined;
beforeAll(async () => {
  // Few connections: a statement left behind would be in everybody's way. One of them may be
  // taken by the server's own look at the tables.
  edge = await startEdge({ poolSize: 2 });
});
afterEach(async () => {
  await blocker?.release();
});
afterAll(async () => {
  expect(edge.captured.text()).not.toContain(secret);
  await edge.stop();
});

const seed = { threadId: `${secret}-seed`, checkpointId: "1" };
const calls: Record<Call["rpc"], Call> = {
  getTuple: { rpc: "getTuple", request: seed },
  put: { rpc: "put", request: { ...seed, checkpointJson: `{"late":true}` } },
  putWrites: {
    rpc: "putWrites",
    request: { ...seed, taskId: "t", writes: [{ channel: "c", value: { type: "t" } }] },
  },
  list: { rpc: "list", request: {} },
  deleteThread: { rpc: "deleteThread", request: seed },
};

/** Nobody else may even read the tables, until the blocker is released. */
async function lockTables(): Promise<void> {
  blocker = await block(
    edge.database.url,
    "lock table checkpoints, checkpoint_blobs, checkpoint_writes in access exclusive mode",
  );
}

async function expectGivenUp(before: string): Promise<void> {
  // While the lock is held: the statement did not end by itself.
  await untilBlocked(edge.sql, 0);
  await blocker?.release();
  expect(await edge.rowCounts()).toBe(before);
  const { tuple } = await edge.clients.connect.getTuple(seed);
  expect(tuple?.checkpointJson).not.toContain("late");
}

for (const call of Object.values(calls)) {
  describe(call.rpc, () => {
    for (const way of ways) {
      test(`the client's deadline, over ${way}`, async () => {
        const before = await edge.rowCounts();
        await lockTables();
        const error = await failureOf(makeWithin(way, call, { timeoutMs: 300 }));
        expect(Code[error.code]).toBe("DeadlineExceeded");
        await expectGivenUp(before);
      });

      test(`the client's cancellation, over ${way}`, async () => {
        const before = await edge.rowCounts();
        await lockTables();
        const canceller = new AbortController();
        const { signal } = canceller;
        const failure = failureOf(makeWithin(way, call, { signal }));
        await untilBlocked(edge.sql, 1);
        canceller.abort();
        expect(Code[(await failure).code]).toBe("Canceled");
        await expectGivenUp(before);
      });
    }
  });
}

async function makeWithin(
  way: Way,
  { rpc, request }: Call,
  options: { timeoutMs?: number; signal?: AbortSignal },
): Promise<void> {
  const client = edge.clients[way];
  if (rpc !== "list") await client[rpc](request as never, options);
  else for await (const _ of client.list(request, options));
}

test("the server itself tells of the deadline, to a client that waits longer", async () => {
  const before = await edge.rowCounts();
  await lockTables();
  const { error } = await post(edge.server.url, "DeleteThread", JSON.stringify(seed), {
    "content-type": "application/json",
    "connect-timeout-ms": "200",
  });
  expect(error?.code).toBe("deadline_exceeded");
  for (const way of sessions) {
    const told = await failureOf(edge.clients[way].deleteThread(seed, { timeoutMs: 200 }));
    expect(told.rawMessage).toBe(error?.message);
  }
  await expectGivenUp(before);
});

test("a deadline that passed before the call began", async () => {
  const { error } = await post(edge.server.url, "GetTuple", JSON.stringify(seed), {
    "content-type": "application/json",
    "connect-timeout-ms": "0",
  });
  expect(error?.code).toBe("deadline_exceeded");
});

test("a client that closes its connection", async () => {
  const before = await edge.rowCounts();
  await lockTables();
  const canceller = new AbortController();
  const answer = fetch(`${edge.server.url}/checkpointd.v1.CheckpointService/DeleteThread`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(seed),
    signal: canceller.signal,
  });
  await untilBlocked(edge.sql, 1);
  canceller.abort();
  await expect(answer).rejects.toThrow("aborted");
  await expectGivenUp(before);
});

test("the server's own limit holds for a client that sets none", async () => {
  const bounded = await startEdge({ callTimeoutMs: 200 });
  const lock = await block(bounded.database.url, "lock table checkpoints");
  const errors = [];
  for (const way of ways) {
    errors.push(await failureOf(bounded.clients[way].put({ ...seed, checkpointJson: "{}" })));
  }
  expect(errors.map(({ code }) => Code[code])).toEqual(ways.map(() => "DeadlineExceeded"));
  expectSameWords(errors);
  await untilBlocked(bounded.sql, 0);
  await lock.release();
  await bounded.stop();
});

test("a call that waits for a connection leaves the queue", async () => {
  const narrow = await startEdge({ poolSize: 1 });
  const { connect } = narrow.clients;
  const lock = await block(narrow.database.url, "select from checkpoints for update");
  const first = connect.put({ ...seed, checkpointJson: "{}" });
  await untilBlocked(narrow.sql, 1);
  for (const way of ["grpc", ...sessions] as const) {
    const client = narrow.clients[way];
    const late = await failureOf(client.deleteThread(seed, { timeoutMs: 200 }));
    expect(Code[late.code]).toBe("DeadlineExceeded");
    const canceller = new AbortController();
    const cancelled = failureOf(client.deleteThread(seed, { signal: canceller.signal }));
    canceller.abort();
    expect(Code[(await cancelled).code]).toBe("Canceled");
  }
  await lock.release();
  await first;
  // Those that waited were never begun.
  expect((await connect.getTuple(seed)).tuple).toBeDefined();
  await narrow.stop();
});

test("what was cancelled is logged as such, once", async () => {
  const codes = new Set(edge.captured.lines({ level: 30 }).map(({ code }) => code));
  expect(codes).toContain("DeadlineExceeded");
  expect(codes).toContain("Canceled");
  expect(edge.captured.lines({ code: "Internal" })).toEqual([]);
  const ids = edge.captured.lines().flatMap(({ requestId }) => requestId ?? []);
  expect(new Set(ids).size).toBe(ids.length);
});

test("a deadline at any moment leaves no statement behind", { timeout: 60_000 }, async () => {
  const busy = await startEdge({ poolSize: 4 });
  const lock = await block(busy.database.url, "lock table checkpoints");
  // A request to cancel that reaches Postgres before the statement does is forgotten there.
  for (let round = 0; round < 30; round++) {
    const client = busy.clients[round % 2 ? "connect" : "session"];
    const calls = Array.from({ length: 16 }, (_, i) =>
      failureOf(client.getTuple(seed, { timeoutMs: 1 + 2 * i })),
    );
    const codes = new Set((await Promise.all(calls)).map(({ code }) => Code[code]));
    expect(codes).toEqual(new Set(["DeadlineExceeded"]));
  }
  await untilBlocked(busy.sql, 0);
  await lock.release();
  await busy.stop();
});

test("a deadline while a connection is being opened does not cost the pool its place", async () => {
  const relay = await startRelay(() => Number(new URL(edge.database.url).port));
  const opening = await startEdge({
    databaseUrl: relay.through(edge.database.url),
    poolSize: 2,
    migrate: false,
  });
  // One connection is there and gets occupied; the second is asked for in vain.
  await opening.clients.connect.getTuple(seed);
  relay.door = "keeps waiting";
  blocker = await block(
    edge.database.url,
    "select from checkpoints where checkpoint_id = '1' for update",
  );
  const occupying = opening.clients.connect.put({ ...seed, checkpointJson: "{}" });
  await untilBlocked(edge.sql, 1);
  const late = await failureOf(opening.clients.connect.getTuple(seed, { timeoutMs: 300 }));
  expect(Code[late.code]).toBe("DeadlineExceeded");
  expect(relay.waiting()).toBeGreaterThan(0);
  relay.door = "open";
  const { tuple } = await opening.clients.connect.getTuple(seed, { timeoutMs: 10_000 });
  expect(tuple).toBeDefined();
  await blocker.release();
  await occupying;
  await opening.stop();
  relay.close();
});
