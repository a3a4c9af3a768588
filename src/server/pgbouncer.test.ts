/** Behind a real PgBouncer, rightly and wrongly: `npm run test:pgbouncer`, not `npm test`. */
import { setTimeout as sleep } from "node:timers/promises";
import { create } from "@bufbuild/protobuf";
import { DurationSchema } from "@bufbuild/protobuf/wkt";
import { createClient } from "@connectrpc/connect";
import { afterEach, describe, expect, it } from "vitest";
import { ThreadService } from "../../gen/checkpointd/v1/thread_service_pb.js";
import { dryRun, migrate } from "../store/migrate.js";
import { captureLog } from "../testing/captured_log.js";
import { createClients, createTransport } from "../testing/edge.js";
import { startPgBouncer } from "../testing/pgbouncer.js";
import { createDatabase } from "../testing/postgres.js";
import { startUnreadyServer } from "../testing/test_server.js";

const cleanups: (() => Promise<unknown>)[] = [];
afterEach(async () => {
  for (const cleanup of cleanups.splice(0).reverse()) await cleanup();
});

async function setUp(template: boolean, mode: "transaction" | "session" | "statement") {
  const database = await createDatabase({ template });
  cleanups.push(database.drop);
  const pooler = await startPgBouncer(database.url, { pool_mode: mode, default_pool_size: 5 });
  cleanups.push(pooler.close);
  return { direct: database.url, pooler };
}

async function serve(databaseUrl: string, options: { prepare: boolean; migrate: boolean }) {
  const { log, lines } = captureLog();
  const server = await startUnreadyServer(databaseUrl, {
    queueLimit: 100,
    callTimeoutMs: 20_000,
    slowCallMs: 0,
    drainTimeoutMs: 2_000,
    log,
    ...options,
  });
  cleanups.push(() => server.drain());
  const warnings = () => lines({ level: 40 }).map(({ msg }) => String(msg));
  const warned = async (text: string) => {
    while (!warnings().some((msg) => msg.includes(text))) await sleep(20);
  };
  return { server, lines, warnings, warned };
}

describe("PgBouncer in transaction mode", () => {
  it("without --no-prepare is named in one sentence, and it is not ready", async () => {
    const { pooler } = await setUp(true, "transaction");
    const { server, warned, warnings } = await serve(pooler.url, { prepare: true, migrate: true });
    await warned("a transaction pooler such as PgBouncer stands before the database");
    expect(warnings()[0]).toContain("start with --no-prepare");
    expect((await fetch(`${server.url}/readyz`)).status).toBe(503);
    await sleep(1_500);
    expect(warnings()).toHaveLength(1);
  });

  it("that drops our setting is noticed", async () => {
    const database = await createDatabase();
    cleanups.push(database.drop);
    const pooler = await startPgBouncer(database.url, {
      pool_mode: "transaction",
      ignore_startup_parameters: "plan_cache_mode",
    });
    cleanups.push(pooler.close);
    const { warned } = await serve(pooler.url, { prepare: true, migrate: false });
    await warned("unless it keeps prepared statements, start with --no-prepare");
  });

  it("does not migrate: said with what to do, nothing is touched; no migration left: goes on", async () => {
    const { direct, pooler } = await setUp(false, "transaction");
    const target = { databaseUrl: pooler.url, schema: "public" };
    for (let n = 0; n < 3; n += 1) {
      await expect(migrate(target)).rejects.toThrow(
        /needs 0001_.*transaction pooler such as PgBouncer: give checkpointd migrate the URL of/,
      );
    }
    expect(await dryRun({ databaseUrl: direct, schema: "public" })).toContain("CREATE TABLE");
    const { warned, server, lines } = await serve(pooler.url, { prepare: false, migrate: true });
    await warned("give checkpointd migrate the URL of Postgres itself");
    await migrate({ databaseUrl: direct, schema: "public" });
    await server.ready;
    expect(await migrate(target)).toEqual({ applied: [] });
    expect(lines({ level: 40 })).toHaveLength(1);
  });

  it("with --no-prepare serves everything, and again after it was killed", async () => {
    const { pooler } = await setUp(true, "transaction");
    const { server, lines } = await serve(pooler.url, { prepare: false, migrate: true });
    await server.ready;
    const { session, grpc, connect } = createClients(server.url);
    const threads = createClient(ThreadService, createTransport("connect", server.url));
    const store = (threadId: string, n: number) =>
      session.put({
        threadId,
        checkpointId: `${n}`,
        checkpointJson: '{"v": 4, "channel_versions": {"c": 1}}',
        blobs: [{ channel: "c", version: "1", value: { type: "bytes", data: new Uint8Array(9) } }],
      });
    const useAll = async (round: number) => {
      const ids = Array.from({ length: 20 }, (_, n) => `t${round}-${n}`);
      await Promise.all(ids.flatMap((id) => [store(id, 1), store(id, 2)]));
      await Promise.all(
        ids.map((threadId) =>
          grpc.putWrites({
            threadId,
            checkpointId: "2",
            taskId: "t",
            writes: [{ channel: "c", value: { type: "t" } }],
          }),
        ),
      );
      for (const threadId of ids) {
        const { tuple } = await connect.getTuple({ threadId });
        expect(tuple).toMatchObject({ key: { checkpointId: "2" }, pendingWrites: [{}] });
        let listed = 0;
        for await (const _ of grpc.list({ threadId })) listed += 1;
        expect(listed).toBe(2);
      }
      const grace = create(DurationSchema);
      const claimed = await threads.claimThreads({ owner: "me", limit: 1000, grace });
      expect(claimed.threads.map(({ thread }) => thread?.threadId).sort()).toEqual(ids.sort());
      expect((await threads.claimThreads({ owner: "you", limit: 1000, grace })).threads).toEqual(
        [],
      );
    };
    await useAll(1);
    for (let round = 2; round < 4; round += 1) {
      await pooler.kill();
      await expect(store("meanwhile", round)).rejects.toThrow(/database|connection/);
      await pooler.start();
      while ((await fetch(`${server.url}/readyz`)).status !== 200) await sleep(50);
      for (;;) {
        if (
          await store("meanwhile", round).then(
            () => true,
            () => false,
          )
        )
          break;
      }
      await connect.deleteThread({ threadId: "meanwhile" });
      await useAll(round);
    }
    expect(lines({ code: "Internal" })).toEqual([]);
  }, 60_000);
});

describe("PgBouncer in session mode", () => {
  it("migrates: each client has a session of its own", async () => {
    const { pooler } = await setUp(false, "session");
    const { applied } = await migrate({ databaseUrl: pooler.url, schema: "public" });
    expect(applied.length).toBeGreaterThan(9);
  });
});
