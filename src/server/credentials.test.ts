/** What becomes of a principal's calls, streams and sessions when its credential ends, and its limits. */
import http2 from "node:http2";
import { gzipSync } from "node:zlib";
import { Code, ConnectError, createClient } from "@connectrpc/connect";
import pg from "pg";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { ErrorDetailSchema } from "../../gen/checkpointd/v1/checkpoint_pb.js";
import { CheckpointService } from "../../gen/checkpointd/v1/checkpoint_service_pb.js";
import { ThreadService } from "../../gen/checkpointd/v1/thread_service_pb.js";
import { Health } from "../../gen/health/v1/health_pb.js";
import { ConnectSaver } from "../client/saver.js";
import { operations } from "../protocol/operations.js";
import { createAuthFile, everything, type GivenPrincipal } from "../testing/auth_file.js";
import { createTransport } from "../testing/edge.js";
import { createDatabase, type TestDatabase } from "../testing/postgres.js";
import { createSessionTransport } from "../testing/session_transport.js";
import { startTestServer } from "../testing/test_server.js";
import type { Server } from "./server.js";

const limited = (limits: GivenPrincipal["limits"]): GivenPrincipal => ({
  grants: everything,
  ...(limits ? { limits } : {}),
});
const principals: Record<string, GivenPrincipal> = {
  stays: { grants: everything },
  leaves: { grants: everything },
  calls: limited({ calls: 5 }),
  at_once: limited({ callsAtOnce: 2 }),
  bytes_in: limited({ bytesIn: 1_000 }),
  bytes_out: limited({ bytesOut: 1_000 }),
  streams: limited({ streams: 1 }),
  sessions: limited({ sessions: 1 }),
  leases: limited({ leases: 2 }),
  "leases/ann": limited({ leases: 2 }),
  many: limited({ leases: 2 }),
  database: limited({ databaseMs: 20 }),
  unread: limited({ unreadBytes: 3_000_000 }),
  full: { tenant: "full", grants: everything },
  ...Object.fromEntries(
    ["copies", "extends", "inflates", "refused"].map((name) => [
      name,
      { tenant: name, grants: everything },
    ]),
  ),
};
const tenants = ["full", "copies", "extends", "inflates", "refused"];
const auth = createAuthFile(
  Object.fromEntries(tenants.map((schema) => [schema, { schema, storedBytes: 20_000 }])),
  principals,
);
let database: TestDatabase;
let server: Server;
beforeAll(async () => {
  database = await createDatabase();
  server = await startTestServer(database.url, { authFile: auth.file, metricsPort: "main" });
  await checkpoints("stays").put(put("t"));
});
afterAll(async () => {
  await server?.drain();
  await database?.drop();
  auth.remove();
});

const put = (threadId: string, bytes = 10, checkpointId = "1") => ({
  threadId,
  checkpointId,
  checkpointJson: JSON.stringify({ v: 4, channel_versions: { c: checkpointId } }),
  blobs: [
    { channel: "c", version: checkpointId, value: { type: "bytes", data: Buffer.alloc(bytes) } },
  ],
});
const transport = (name: string) => createTransport("connect", server.url, auth.keys[name]);
const checkpoints = (name: string) => createClient(CheckpointService, transport(name));
const threads = (name: string) => createClient(ThreadService, transport(name));
const sessionOf = (name: string) =>
  createClient(CheckpointService, createSessionTransport(transport(name)));

/** What a call is refused with: its code, reason and limit. */
async function refusal(call: Promise<unknown>): Promise<unknown> {
  const error = await call.then(
    () => undefined,
    (reason) => ConnectError.from(reason),
  );
  if (!error) return undefined;
  const [detail] = error.findDetails(ErrorDetailSchema);
  return [Code[error.code], detail?.reason, detail?.field, Number(detail?.limit)];
}
const reached = (field: string, limit: number) => [
  "ResourceExhausted",
  "LIMIT_REACHED",
  field,
  limit,
];

describe("a limit", () => {
  it("of calls a second", async () => {
    const client = checkpoints("calls");
    const answers = await Promise.all(
      Array.from({ length: 12 }, () => refusal(client.getTuple({ threadId: "t" }))),
    );
    const refused = answers.filter((answer) => answer !== undefined);
    expect(refused.length).toBeGreaterThanOrEqual(5);
    expect(refused[0]).toEqual(reached("calls", 5));
    // Others are not concerned, and a second later it may again.
    await checkpoints("stays").getTuple({ threadId: "t" });
    await expect
      .poll(() => refusal(client.getTuple({ threadId: "t" })), { timeout: 10_000 })
      .toBe(undefined);
  });

  it("of calls at a time, which end", async () => {
    const sql = new pg.Client({ connectionString: database.url });
    await sql.connect();
    await sql.query("begin; lock table checkpoints");
    const client = sessionOf("at_once");
    const waiting = [1, 2].map(() => client.getTuple({ threadId: "t" }));
    await expect
      .poll(() => refusal(client.getTuple({ threadId: "t" }, { timeoutMs: 1_000 })))
      .toEqual(reached("callsAtOnce", 2));
    await sql.query("rollback");
    await sql.end();
    await Promise.all(waiting);
    await client.getTuple({ threadId: "t" });
  });

  it.each(["bytes_in", "bytes_out"])("of %s, which is owed", async (name) => {
    const client = sessionOf(name);
    const id = `of ${name}`;
    await checkpoints("stays").put(put(id, 3_000));
    const call = () =>
      name === "bytes_in" ? client.put(put("t2", 3_000)) : client.getTuple({ threadId: id });
    await call();
    const field = name === "bytes_in" ? "bytesIn" : "bytesOut";
    expect(await refusal(call())).toEqual(reached(field, 1_000));
    await expect.poll(() => refusal(call()), { timeout: 20_000, interval: 200 }).toBe(undefined);
  });

  it("of streams and of sessions", async () => {
    for (let i = 0; i < 40; i++) await checkpoints("stays").put(put("long", 200_000, `${100 + i}`));
    const client = checkpoints("streams");
    const stop = new AbortController();
    const first = client
      .list({ threadId: "long" }, { signal: stop.signal })
      [Symbol.asyncIterator]();
    await first.next();
    const second = () => client.list({ threadId: "t" })[Symbol.asyncIterator]().next();
    expect(await refusal(second())).toEqual(reached("streams", 1));
    stop.abort();
    await expect.poll(() => refusal(second()), { timeout: 10_000 }).toBe(undefined);

    const open = sessionOf("sessions");
    await open.getTuple({ threadId: "t" });
    expect(await refusal(sessionOf("sessions").getTuple({ threadId: "t" }))).toEqual(
      expect.arrayContaining(["ResourceExhausted"]),
    );
  });

  it("of leases that are held", async () => {
    const ids = ["l1", "l2", "l3"];
    for (const id of ids) await checkpoints("stays").put(put(id));
    const client = threads("leases");
    const claim = (threadId: string) => client.claimThreads({ owner: "w", threadId });
    for (const id of ids.slice(0, 2)) expect((await claim(id)).threads).toHaveLength(1);
    expect(await refusal(claim("l3"))).toEqual(reached("leases", 2));
    expect(
      (await threads("stays").claimThreads({ owner: "w", threadId: "l3" })).threads,
    ).toHaveLength(1);
  });

  it("of leases, also of claims that come at once", async () => {
    const ids = Array.from({ length: 12 }, (_, i) => `at-once-${i}`);
    for (const id of ids) await checkpoints("stays").put(put(id));
    const client = threads("many");
    const answers = await Promise.all(
      ids.map((threadId) => refusal(client.claimThreads({ owner: "w", threadId }))),
    );
    expect(answers.filter((answer) => answer === undefined)).toHaveLength(2);
    expect(answers.filter(Boolean)).toEqual(Array(10).fill(reached("leases", 2)));
  });

  it("of leases is no other's, whatever a worker calls itself", async () => {
    for (const id of ["n1", "n2", "n3"]) await checkpoints("stays").put(put(id));
    const stays = threads("stays");
    for (const threadId of ["l1", "l2"]) await stays.releaseClaim({ threadId, force: true });
    for (const threadId of ["n1", "n2"]) {
      await threads("leases").claimThreads({ owner: "ann/w", threadId });
    }
    const { thread } = await stays.getThread({ threadId: "n1" });
    expect(thread?.claim?.owner).toBe("leases/ann%2Fw");
    const others = await threads("leases/ann").claimThreads({ owner: "w", threadId: "n3" });
    expect(others.threads).toHaveLength(1);
    // Nor does what "leases/ann" holds count for "leases".
    await stays.releaseClaim({ threadId: "n2", force: true });
    const own = await threads("leases").claimThreads({ owner: "w", threadId: "l1" });
    expect(own.threads).toHaveLength(1);
  });

  it("of the database's time", async () => {
    const sql = new pg.Client({ connectionString: database.url });
    await sql.connect();
    await sql.query("begin; lock table checkpoints");
    const client = sessionOf("database");
    const slow = client.getTuple({ threadId: "t" });
    await new Promise((resolve) => setTimeout(resolve, 200));
    await sql.query("rollback");
    await sql.end();
    await slow;
    expect(await refusal(client.getTuple({ threadId: "t" }))).toEqual(reached("databaseMs", 20));
  });

  it("of answers that are not read, on all its connections together", async () => {
    await checkpoints("stays").put(put("unread", 2_000_000));
    const body = JSON.stringify({ threadId: "unread" });
    const path = "/checkpointd.v1.CheckpointService/GetTuple";
    const ask = (name: string) => {
      const session = http2.connect(server.url).on("error", () => {});
      session
        .request({
          ":method": "POST",
          ":path": path,
          "content-type": "application/json",
          authorization: `Bearer ${auth.keys[name]}`,
        })
        .on("error", () => {})
        .pause()
        .end(body);
      return session;
    };
    const [first, second, others] = [ask("unread"), ask("unread"), ask("stays")];
    const closed = () => [first, second, others].map((session) => session.closed);
    await expect.poll(() => closed().filter(Boolean).length, { timeout: 10_000 }).toBe(1);
    expect(others.closed).toBe(false);
    for (const session of [first, second, others]) session.destroy();
  });

  it("of what a tenant stores", async () => {
    const client = sessionOf("full");
    await client.put(put("big", 15_000));
    // Counted in the background, at the first write.
    await expect
      .poll(() => refusal(client.put(put("big2", 15_000))), { timeout: 10_000 })
      .toEqual(["ResourceExhausted", "QUOTA_REACHED", "", 20_000]);
    await client.getTuple({ threadId: "big" });
    await client.deleteThread({ threadId: "big" });
  });
});

describe("a tenant's quota, before the next count", () => {
  const isFull = ["ResourceExhausted", "QUOTA_REACHED", "", 20_000];
  /** Stores so much once it was counted that there is little. */
  async function begin(name: string, bytes: number): Promise<void> {
    await checkpoints(name).put(put("little"));
    const page = async () => (await fetch(`${server.url}/metrics`, ops)).text();
    const counted = new RegExp(`tenant_stored_bytes\\{tenant="${name}"\\} [1-9]`);
    await expect.poll(page).toMatch(counted);
    await checkpoints(name).put(put("first", bytes));
  }
  const ops = { headers: { authorization: `Bearer ${auth.keys.stays}` } };

  it("has what is copied", async () => {
    await begin("copies", 8_000);
    const copy = (targetThreadId: string) =>
      refusal(threads("copies").copyThread({ sourceThreadId: "first", targetThreadId }));
    expect(await copy("second")).toBe(undefined);
    // It is told what it came to, so the one after that is over.
    expect(await copy("third")).toBe(undefined);
    expect(await copy("fourth")).toEqual(isFull);
  });

  it("has what a value is extended by that is there", async () => {
    await begin("extends", 8_000);
    const session = createSessionTransport(transport("extends"));
    const extend = (checkpointId: string) =>
      refusal(
        session.unary(
          { ...operations.putExtending, localName: "putExtending" } as never,
          undefined,
          undefined,
          undefined,
          {
            put: put("first", 1, checkpointId),
            prefixes: [{ blobIndex: 0, version: "1", transactionId: "1", length: 8_000 }],
          } as never,
        ),
      );
    // Not one that was given, so nothing is stored of it, nor counted.
    for (let i = 0; i < 4; i++) expect(await extend("2")).not.toEqual(isFull);
    await checkpoints("extends").put(put("second", 5_000));
    expect(await extend("3")).toEqual(isFull);
  });

  it("has what came compressed", async () => {
    await begin("inflates", 100);
    const metadataJson = JSON.stringify({ a: "a".repeat(30_000) });
    const body = { threadId: "x", checkpointId: "1", checkpointJson: "{}", metadataJson };
    const answer = await fetch(`${server.url}/checkpointd.v1.CheckpointService/Put`, {
      method: "POST",
      headers: {
        authorization: `Bearer ${auth.keys.inflates}`,
        "content-type": "application/json",
        "content-encoding": "gzip",
      },
      body: gzipSync(JSON.stringify(body)),
    });
    expect(await answer.text()).toContain("stores as much as it may");
  });

  it("has nothing of what is refused", async () => {
    await begin("refused", 100);
    for (let i = 0; i < 5; i++) {
      const under = { ...put("x", 8_000), leaseToken: "nobody's" };
      expect(await refusal(checkpoints("refused").put(under))).toEqual(
        expect.arrayContaining(["LEASE_LOST"]),
      );
    }
    await checkpoints("refused").put(put("x", 8_000));
  });
});

describe("a credential that is taken away", () => {
  it("ends the sessions and streams of its principal, and no other's", async () => {
    const long = checkpoints("leaves").list({ threadId: "long" })[Symbol.asyncIterator]();
    await long.next();
    const watch = createClient(Health, transport("leaves")).watch({})[Symbol.asyncIterator]();
    await watch.next();
    const session = sessionOf("leaves");
    await session.getTuple({ threadId: "t" });
    const sql = new pg.Client({ connectionString: database.url });
    await sql.connect();
    // A put of this row waits for the end of this transaction.
    await sql.query(
      "begin; insert into checkpoints (thread_id, checkpoint_id, checkpoint) values ('held', '1', '{}')",
    );
    const running = refusal(session.put(put("held")));

    const saver = ConnectSaver.fromUrl(server.url, {
      headers: { authorization: `Bearer ${auth.keys.stays}` },
    });
    const others: Promise<unknown>[] = [];
    const get = () => saver.getTuple({ configurable: { thread_id: "nobody" } });
    const load = setInterval(() => others.push(get()), 20);

    const { leaves: _, ...left } = principals;
    auth.write(left);
    expect(await running).toEqual(
      expect.arrayContaining(["Unauthenticated", "CREDENTIAL_CHANGED"]),
    );
    await expect(watch.next()).rejects.toMatchObject({ code: Code.Unauthenticated });
    await expect(
      (async () => {
        while (!(await long.next()).done);
      })(),
    ).rejects.toMatchObject({ code: Code.Unauthenticated });
    expect(await refusal(checkpoints("leaves").getTuple({ threadId: "t" }))).toEqual(
      expect.arrayContaining(["Unauthenticated", "CREDENTIAL_INVALID"]),
    );
    clearInterval(load);
    await sql.query("rollback");
    await sql.end();
    expect(await Promise.allSettled(others)).toEqual(
      others.map(() => expect.objectContaining({ status: "fulfilled" })),
    );
    auth.write(principals);
  });

  it("by its expiry ends them too", async () => {
    const expires = new Date(Date.now() + 4_000).toISOString();
    auth.write({ ...principals, short: { grants: everything, expires } });
    const client = checkpoints("short");
    await expect
      .poll(() => refusal(client.getTuple({ threadId: "t" })), { timeout: 20_000 })
      .toBe(undefined);
    const watch = createClient(Health, transport("short")).watch({})[Symbol.asyncIterator]();
    await watch.next();
    await expect(watch.next()).rejects.toMatchObject({ code: Code.Unauthenticated });
    expect(await refusal(client.getTuple({ threadId: "t" }))).toEqual(
      expect.arrayContaining(["Unauthenticated", "CREDENTIAL_EXPIRED"]),
    );
    expect(await refusal(sessionOf("short").getTuple({ threadId: "t" }))).toEqual(
      expect.arrayContaining(["Unauthenticated"]),
    );
    auth.write(principals);
  });
});
