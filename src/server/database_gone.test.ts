/** A database that is not there yet, goes away, and comes back. */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { Code, createClient } from "@connectrpc/connect";
import pg from "pg";
import { expect, test } from "vitest";
import { Health } from "../../gen/health/v1/health_pb.js";
import { startEmbedded } from "../store/embedded.js";
import { migrate } from "../store/migrate.js";
import { block, untilBlocked } from "../testing/blocking.js";
import { captureLog } from "../testing/captured_log.js";
import {
  type Call,
  createClients,
  createTransport,
  expectTold,
  failureOf,
  make,
  secret,
  ways,
} from "../testing/edge.js";
import { createDatabase } from "../testing/postgres.js";
import { startUnreadyServer } from "../testing/test_server.js";
import { ServingStatus } from "./health.js";

const named = { threadId: `${secret}-thread`, checkpointId: "1" };
const calls: Call[] = [
  { rpc: "getTuple", request: named },
  { rpc: "put", request: { ...named, checkpointJson: "{}" } },
  {
    rpc: "putWrites",
    request: { ...named, taskId: "t", writes: [{ channel: "c", value: { type: "t" } }] },
  },
  { rpc: "list", request: {} },
  { rpc: "deleteThread", request: named },
];

/** Starts a server without waiting for its database. */
async function start(databaseUrl: string, migrates: boolean) {
  const captured = captureLog();
  const server = await startUnreadyServer(databaseUrl, {
    poolSize: 2,
    queueLimit: 100,
    migrate: migrates,
    log: captured.log,
  });
  const health = createClient(Health, createTransport("grpc", server.url));
  const probe = async (path: string) => (await fetch(server.url + path)).status;
  return { server, captured, clients: createClients(server.url), health, probe };
}

type Started = Awaited<ReturnType<typeof start>>;

async function expectEachRefused(
  { clients }: Started,
  reason: "NOT_READY" | "DATABASE_UNAVAILABLE",
) {
  for (const call of calls) {
    for (const way of ways) {
      const error = await failureOf(make(clients[way], call));
      expectTold(error, { code: Code.Unavailable, reason });
    }
  }
}

async function expectEachServed({ clients }: Started) {
  for (const call of calls) await make(clients.connect, call);
}

async function expectHealth({ server, health, probe }: Started, ready: boolean) {
  const wanted = ready ? ServingStatus.SERVING : ServingStatus.NOT_SERVING;
  while ((await health.check({})).status !== wanted) await sleep(20);
  expect((await health.check({ service: "checkpointd.v1.CheckpointService" })).status).toBe(wanted);
  const { status, headers } = await fetch(`${server.url}/readyz`);
  expect(status).toBe(ready ? 200 : 503);
  expect(headers.get("retry-after")).toBe(ready ? null : "1");
  expect(await probe("/healthz")).toBe(200);
}

test("tables that are missing: NOT_READY until they are there", async () => {
  const database = await createDatabase({ template: false });
  const started = await start(database.url, false);
  await expectEachRefused(started, "NOT_READY");
  await expectHealth(started, false);
  await migrate({ databaseUrl: database.url, schema: "public" });
  await started.server.ready;
  await expectEachServed(started);
  await expectHealth(started, true);
  const warnings = started.captured.lines({ level: 40 });
  expect(warnings).toMatchObject([{ error: { code: "42P01" } }]);
  expect(warnings[0]?.msg).toContain("checkpointd migrate");
  await started.server.drain();
  await database.drop();
});

test("a database that goes away and comes back", { timeout: 120_000 }, async () => {
  const dataDir = await mkdtemp(path.join(tmpdir(), "checkpointd-gone-"));
  const quick = { fsync: "off", max_prepared_transactions: "1" };
  let postgres = await startEmbedded({ dataDir, onProgress: () => {}, settings: quick });
  const { databaseUrl } = postgres;
  const { port } = new URL(databaseUrl);
  const again = async () => {
    postgres = await startEmbedded({ dataDir, onProgress: () => {}, settings: { ...quick, port } });
  };
  const connect = async () => {
    const client = new pg.Client({ connectionString: databaseUrl });
    client.on("error", () => {});
    await client.connect();
    return client;
  };
  await postgres.stop();

  // Not there when the server starts.
  const started = await start(databaseUrl, true);
  await expectEachRefused(started, "NOT_READY");
  await expectHealth(started, false);
  await again();
  await started.server.ready;
  await expectEachServed(started);
  await expectHealth(started, true);

  // Gone while a call runs.
  await started.clients.connect.put({ ...named, checkpointJson: "{}" });
  // A prepared transaction's lock outlives the shutdown. That of a session may be free a moment
  // before the statement is ended too, which then succeeds.
  const lock = await block(databaseUrl, "lock table checkpoints in share mode");
  await lock.query("prepare transaction 'in the way'");
  await lock.release();
  const before = await connect();
  const running = failureOf(started.clients.grpc.put({ ...named, checkpointJson: "{}" }));
  await untilBlocked(before, 1);
  await postgres.stop();
  expectTold(await running, { code: Code.Unavailable, reason: "DATABASE_UNAVAILABLE" });
  await expectEachRefused(started, "DATABASE_UNAVAILABLE");
  await expectHealth(started, false);

  // And back: the very next calls may reach it, and what was stored is there.
  await again();
  const after = await connect();
  await after.query("rollback prepared 'in the way'");
  await after.end();
  await expectHealth(started, true);
  await expectEachServed(started);
  const messages = started.captured.lines().map(({ msg }) => msg);
  expect(messages).toContain("database ready again");
  expect(started.captured.lines({ code: "Internal" })).toEqual([]);
  expect(started.captured.text()).not.toContain(secret);
  // The password is in the URL.
  expect(started.captured.text()).not.toContain(new URL(databaseUrl).password);

  await started.server.drain();
  await postgres.stop();
  await rm(dataDir, { recursive: true, force: true });
});

test("a database that was dropped", async () => {
  const database = await createDatabase();
  const started = await start(database.url, true);
  await started.server.ready;
  await expectEachServed(started);
  await database.drop();
  await expectEachRefused(started, "DATABASE_UNAVAILABLE");
  await started.server.drain();
});
