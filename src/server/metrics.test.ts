/** What a real server tells Prometheus of what was done with it. */
import { createServer } from "node:net";
import { createClient } from "@connectrpc/connect";
import { afterAll, beforeAll, describe, expect, it, onTestFinished } from "vitest";
import { ThreadService } from "../../gen/checkpointd/v1/thread_service_pb.js";
import { catalogue, type Metric } from "../metrics/catalogue.js";
import { createAuthFile, everything } from "../testing/auth_file.js";
import { block, untilBlocked } from "../testing/blocking.js";
import { createClients, createTransport, failureOf, startEdge, ways } from "../testing/edge.js";
import { createDatabase, type TestDatabase } from "../testing/postgres.js";
import { type ScrapedPage, scrape } from "../testing/prometheus.js";
import { openUpgraded } from "../testing/raw_session.js";
import { startRelay } from "../testing/relay.js";
import { startTestServer, startUnreadyServer } from "../testing/test_server.js";
import type { Limits } from "./limits.js";
import type { Server, ServerOptions } from "./server.js";

const own = { metricsPort: 0 } satisfies Partial<ServerOptions>;
/** Each scrape is to tell what was done just before. */
const atOnce: Partial<Limits> = { metricsPageMs: 0 };

const put = (threadId: string, checkpointId = "1") => ({
  threadId,
  checkpointId,
  checkpointJson: '{"v": 4, "channel_versions": {"c": "1"}}',
  blobs: [{ channel: "c", version: "1", value: { type: "json", data: Buffer.from('"kept"') } }],
});

let database: TestDatabase;
beforeAll(async () => {
  database = await createDatabase();
});
afterAll(() => database?.drop());

async function start(options: Partial<ServerOptions> = {}, limits: Partial<Limits> = {}) {
  const server = await startTestServer(
    database.url,
    { ...own, ...options },
    { ...atOnce, ...limits },
  );
  onTestFinished(() => server.drain());
  return server;
}
const pageOf = ({ metricsUrl }: Server) => scrape(metricsUrl as string);

/** How much larger a counter is on the second page. */
const grown = (before: ScrapedPage, after: ScrapedPage, ...of: Parameters<ScrapedPage["sum"]>) =>
  after.sum(...of) - before.sum(...of);

describe("calls", () => {
  it.each(ways)("are counted by RPC, carrier and code: %s", async (way) => {
    const server = await start();
    const client = createClients(server.url)[way];
    for (let i = 0; i < 3; i++) await client.put(put(`calls-${way}`, `${i}`));
    await client.getTuple({ threadId: `calls-${way}` });
    await failureOf(client.getTuple({ threadId: "" }));
    // An answer is there before its call is over.
    await expect
      .poll(async () => (await pageOf(server)).sum("checkpointd_calls_total", { rpc: "getTuple" }))
      .toBe(2);
    const page = await pageOf(server);
    const carrier = way.replace("-json", "").replace("session-grpc", "session");
    const labels = { rpc: "put", carrier };
    expect(page.sum("checkpointd_calls_total", { ...labels, code: "Ok" })).toBe(3);
    expect(
      page.sum("checkpointd_calls_total", { rpc: "getTuple", carrier, code: "InvalidArgument" }),
    ).toBe(1);
    expect(page.sum("checkpointd_call_errors_total", { reason: "REQUIRED" })).toBe(1);
    expect(page.sum("checkpointd_call_errors_total")).toBe(1);
    expect(page.sum("checkpointd_call_duration_seconds_count", labels)).toBe(3);
    expect(page.sum("checkpointd_call_duration_seconds_sum", labels)).toBeGreaterThan(0);
    expect(page.sum("checkpointd_call_queue_seconds_count", { rpc: "put" })).toBe(3);
    expect(page.sum("checkpointd_call_batch_size_sum", { rpc: "put" })).toBe(3);
    expect(page.sum("checkpointd_request_bytes_total", labels)).toBeGreaterThan(200);
    expect(
      page.sum("checkpointd_answer_bytes_total", { rpc: "getTuple", carrier }),
    ).toBeGreaterThan(50);
  });

  it("that wait are in flight, in the queue's time and in the pool", async () => {
    const server = await start({ poolSize: 1 });
    const client = createClients(server.url).session;
    await client.put(put("locked"));
    const sql = await startEdge({ databaseUrl: database.url });
    onTestFinished(() => sql.stop());
    const lock = await block(
      database.url,
      "select from checkpoints where thread_id = 'locked' for update",
    );
    onTestFinished(() => lock.release());
    const waiting = [client.put(put("locked")), client.deleteThread({ threadId: "elsewhere" })];
    await untilBlocked(sql.sql, 1);
    await expect
      .poll(async () => (await pageOf(server)).get("checkpointd_pool_waiting_calls"))
      .toBeGreaterThan(0);
    const page = await pageOf(server);
    expect(page.get("checkpointd_calls_in_flight")).toBe(2);
    expect(page.get('checkpointd_pool_connections{state="in_use"}')).toBe(1);
    expect(page.get("checkpointd_pool_connections_limit")).toBe(1);
    await lock.release();
    await Promise.all(waiting);
    await expect
      .poll(async () => (await pageOf(server)).get("checkpointd_calls_in_flight"))
      .toBe(0);
    const after = await pageOf(server);
    const queued = { rpc: "deleteThread" };
    expect(after.sum("checkpointd_call_queue_seconds_sum", queued)).toBeGreaterThan(0);
  });

  it("are not measured, and nothing listens, unless that is asked for", async () => {
    const server = await start({ metricsPort: undefined });
    expect(server.metricsUrl).toBeUndefined();
    expect((await fetch(`${server.url}/metrics`)).status).toBe(404);
  });
});

describe("the page", () => {
  it("has every metric of the catalogue, with its type, its help and its labels", async () => {
    const auth = createAuthFile(
      { red: { schema: "red", storedBytes: "10GiB" } },
      { red: { tenant: "red", grants: everything }, ops: { grants: everything } },
    );
    onTestFinished(auth.remove);
    const server = await start({
      authFile: auth.file,
      metricsThreads: 10,
      retention: [
        { text: "keep_last=9", keepLast: 9, metadata: undefined, olderThanMs: undefined },
      ],
    });
    const client = createClients(server.url, auth.keys.red).session;
    await client.put(put("red"));
    // The quota is counted after it was asked for.
    await client.put(put("red", "2"));
    await failureOf(createClients(server.url).connect.put(put("nobody")));
    const all: Metric[] = Object.values(catalogue);
    const missing = (page: ScrapedPage) =>
      all.map(({ name }) => name).filter((name) => !page.types.has(name));
    // Of a primary with a standby, of traces, and of workers, and tested with them.
    const ofOthers = [
      "checkpointd_database_standby_lag_bytes",
      "checkpointd_trace_spans_ended_total",
      "checkpointd_trace_spans_exported_total",
      "checkpointd_trace_limited_calls_total",
      "checkpointd_workers_silent",
      "checkpointd_workers_ended_total",
    ];
    await expect.poll(async () => missing(await pageOf(server))).toEqual(ofOthers);
    const page = await pageOf(server);
    for (const { name, type, help, labels } of all) {
      if (ofOthers.includes(name)) continue;
      expect(page.types.get(name), name).toBe(type);
      expect(page.helps.get(name), name).toBe(help);
      expect(page.labelsOf(name), name).toEqual(labels);
    }
  });

  it("is one path, for GET and HEAD, under the names of loopback", async () => {
    const server = await start();
    const url = server.metricsUrl as string;
    expect((await fetch(url, { method: "POST" })).status).toBe(405);
    expect((await fetch(url.replace("/metrics", "/"))).status).toBe(404);
    const head = await fetch(url, { method: "HEAD" });
    expect([head.status, await head.text()]).toEqual([200, ""]);
    // As a page whose name leads to 127.0.0.1 asks.
    const rebound = await fetch(url, { headers: { origin: "http://evil.example" } });
    expect(rebound.status).toBe(403);
  });

  it("is told again, and not made anew, to those who ask at once", async () => {
    const server = await start({}, { metricsPageMs: 60_000 });
    const text = async () => (await fetch(server.metricsUrl as string)).text();
    const first = await text();
    await createClients(server.url).connect.put(put("later"));
    expect(await text()).toBe(first);
  });

  it("goes on while the server drains, which it tells", async () => {
    const server = await start({ drainTimeoutMs: 20_000 });
    const client = createClients(server.url).session;
    const lock = await block(database.url, "lock table checkpoints in access exclusive mode");
    onTestFinished(() => lock.release());
    const call = client.put(put("drained"));
    await expect
      .poll(async () => (await pageOf(server)).get("checkpointd_calls_in_flight"))
      .toBe(1);
    const drained = server.drain();
    const page = await pageOf(server);
    expect(page.get("checkpointd_draining")).toBe(1);
    expect(page.get("checkpointd_ready")).toBe(0);
    await lock.release();
    await call;
    await drained;
    await expect(pageOf(server)).rejects.toThrow();
  });

  it("says whose address is taken, and leaves nothing behind", async () => {
    const taken = createServer().listen(0, "127.0.0.1");
    await new Promise((resolve) => taken.once("listening", resolve));
    const { port } = taken.address() as { port: number };
    const started = startUnreadyServer(database.url, { metricsPort: port });
    await expect(started).rejects.toThrow(`cannot listen on 127.0.0.1 port ${port}`);
    taken.close();
  });
});

describe("on the server's own port", () => {
  it("is open where everything is", async () => {
    const server = await start({ metricsPort: "main" });
    expect(server.metricsUrl).toBe(`${server.url}/metrics`);
    expect((await pageOf(server)).get("checkpointd_ready")).toBe(1);
  });

  it("is for principals with admin on all threads where the server asks who calls", async () => {
    const admin = { grants: [{ operations: ["admin"], threads: ["*"] }] };
    const auth = createAuthFile(
      { red: { schema: "red" } },
      {
        prometheus: admin,
        ofTenant: { tenant: "red", ...admin },
        narrow: { grants: [{ operations: ["admin"], threads: ["a/*"] }] },
        agent: { grants: [{ operations: ["read", "write"], threads: ["*"] }] },
      },
    );
    onTestFinished(auth.remove);
    const server = await start({ metricsPort: "main", authFile: auth.file });
    const as = (key?: string) =>
      fetch(server.metricsUrl as string, {
        headers: key === undefined ? {} : { authorization: `Bearer ${key}` },
      });
    const nobody = await as();
    expect(nobody.status).toBe(401);
    expect(nobody.headers.get("www-authenticate")).toBe("Bearer");
    expect((await as("ckpd_nonsense")).status).toBe(401);
    expect((await as(auth.keys.agent)).status).toBe(403);
    expect((await as(auth.keys.narrow)).status).toBe(403);
    // Who administers one tenant is not to learn of the others.
    expect((await as(auth.keys.ofTenant)).status).toBe(403);
    const authorization = `Bearer ${auth.keys.prometheus}`;
    const page = await scrape(server.metricsUrl as string, { authorization });
    expect(page.get('checkpointd_credentials_refused_total{why="missing"}')).toBe(1);
    expect(page.sum("checkpointd_credentials_refused_total")).toBe(2);
  });
});

describe("the database", () => {
  it("is unreachable, and ready again, with what was lost", async () => {
    const relay = await startRelay(() => Number(new URL(database.url).port));
    onTestFinished(() => relay.close());
    const server = await startTestServer(relay.through(database.url), own, atOnce);
    onTestFinished(() => server.drain());
    const before = await pageOf(server);
    const host = `127.0.0.1:${relay.port}`;
    expect(before.get(`checkpointd_database_host{host="${host}"}`)).toBe(1);
    expect(before.get("checkpointd_database_reachable")).toBe(1);
    expect(before.get("checkpointd_database_writable")).toBe(1);
    expect(before.get("checkpointd_database_probe_seconds")).toBeGreaterThan(0);
    relay.door = "refuses";
    relay.cut("reset");
    await expect.poll(async () => (await pageOf(server)).get("checkpointd_ready")).toBe(0);
    const during = await pageOf(server);
    expect(during.get("checkpointd_database_reachable")).toBe(0);
    expect(grown(before, during, "checkpointd_pool_connections_lost_total")).toBeGreaterThan(0);
    await expect
      .poll(async () =>
        grown(before, await pageOf(server), "checkpointd_pool_connect_failures_total"),
      )
      .toBeGreaterThan(0);
    relay.door = "open";
    await expect.poll(async () => (await pageOf(server)).get("checkpointd_ready")).toBe(1);
    const after = await pageOf(server);
    expect(grown(before, after, "checkpointd_pool_connections_opened_total")).toBeGreaterThan(0);
  });

  it("that takes no writes is reachable and not writable", async () => {
    const readOnly = new URL(database.url);
    readOnly.searchParams.set("options", "-c default_transaction_read_only=on");
    const server = await startUnreadyServer(readOnly.href, { ...own, migrate: false }, atOnce);
    onTestFinished(() => server.drain());
    await expect
      .poll(async () => (await pageOf(server)).get("checkpointd_database_reachable"))
      .toBe(1);
    const page = await pageOf(server);
    expect(page.get("checkpointd_database_writable")).toBe(0);
    expect(page.get("checkpointd_ready")).toBe(0);
  });
});

describe("clients", () => {
  it("have connections by what they speak, and sessions by age", async () => {
    const server = await start({ sessionAgeMs: 200 });
    const raw = openUpgraded(server.url);
    onTestFinished(() => raw.cut());
    const client = createClients(server.url).connect;
    await client.put(put("clients"));
    const page = await pageOf(server);
    expect(page.get('checkpointd_connections{protocol="session"}')).toBe(1);
    expect(page.get('checkpointd_connections{protocol="http2"}')).toBe(1);
    expect(page.get('checkpointd_sessions{age="new"}')).toBe(1);
    expect(page.get("checkpointd_sessions_opened_total")).toBe(1);
    raw.cut();
    await expect.poll(async () => (await pageOf(server)).sum("checkpointd_sessions")).toBe(0);
  });

  it("that read nothing are stalled, with what waits for them, and cut", {
    timeout: 60_000,
  }, async () => {
    const server = await start({}, { unreadMs: 8_000 });
    const { connect } = createClients(server.url);
    const value = { type: "json", data: Buffer.alloc(4_000_000, "1") };
    const blobs = [{ channel: "c", version: "1", value }];
    for (let i = 0; i < 8; i++) await connect.put({ ...put("large", `${i}`), blobs });
    const list = connect.list({ threadId: "large" })[Symbol.asyncIterator]();
    await list.next();
    await expect
      .poll(async () => (await pageOf(server)).get("checkpointd_answers_stalled"))
      .toBe(1);
    const page = await pageOf(server);
    expect(page.get("checkpointd_unread_bytes")).toBeGreaterThan(100_000);
    expect(page.get('checkpointd_streams{kind="answers"}')).toBe(1);
    expect(page.get("checkpointd_listed_bytes")).toBeGreaterThan(1_000_000);
    await expect
      .poll(async () =>
        (await pageOf(server)).get('checkpointd_connections_cut_total{limit="unread"}'),
      )
      .toBe(1);
    await expect.poll(async () => (await pageOf(server)).sum("checkpointd_streams")).toBe(0);
  });

  it("of a tenant that floods are told by its name alone, until it is gone", async () => {
    const principals = {
      loud: { tenant: "red", grants: everything, limits: { calls: 1 } },
      ops: { grants: everything },
    };
    const auth = createAuthFile({ red: { schema: "loud" } }, principals);
    onTestFinished(auth.remove);
    const server = await start({ authFile: auth.file });
    const client = createClients(server.url, auth.keys.loud).session;
    const calls = Array.from({ length: 20 }, (_, i) => client.put(put(`flood-${i}`)));
    const refused = (await Promise.allSettled(calls)).filter(({ status }) => status === "rejected");
    await createClients(server.url, auth.keys.ops).connect.getTuple({ threadId: "x" });
    const limited = { tenant: "red", reason: "LIMIT_REACHED" };
    await expect
      .poll(async () => (await pageOf(server)).sum("checkpointd_tenant_refused_total", limited))
      .toBe(refused.length);
    const page = await pageOf(server);
    expect(refused.length).toBeGreaterThan(10);
    expect(page.sum("checkpointd_tenant_calls_total", { tenant: "red" })).toBe(20);
    expect(page.sum("checkpointd_tenant_calls_total", { tenant: "(none)" })).toBe(1);
    expect([...page.values.keys()].join()).not.toMatch(/loud|ops|flood/);
  });
});

describe("threads", () => {
  it("are sampled, with the leases that are held", async () => {
    const server = await start({ metricsThreads: 100 });
    const threads = createClient(ThreadService, createTransport("connect", server.url));
    await createClients(server.url).connect.put(put("leased"));
    await threads.claimThreads({ threadId: "leased", owner: "w" });
    const page = await pageOf(server);
    expect(page.get("checkpointd_leases_taken_total")).toBe(1);
    const next = await start({ metricsThreads: 100 });
    await expect
      .poll(async () => (await pageOf(next)).sum("checkpointd_sampled_threads"))
      .toBeGreaterThan(0);
    const sampled = await pageOf(next);
    expect(sampled.get("checkpointd_leases_held")).toBe(1);
    expect(sampled.get("checkpointd_sample_timestamp_seconds")).toBeGreaterThan(1.7e9);
  });

  it("that retention removes are counted", async () => {
    const client = createClients((await start()).url).connect;
    for (let i = 0; i < 4; i++) await client.put(put("old", `${i}`));
    const rule = { text: "keep_last=1", keepLast: 1, metadata: undefined, olderThanMs: undefined };
    const server = await start({ retention: [rule] });
    await expect
      .poll(async () =>
        (await pageOf(server)).get('checkpointd_retention_runs_total{result="done"}'),
      )
      .toBe(1);
    const page = await pageOf(server);
    const rows = { table: "checkpoints" };
    expect(page.sum("checkpointd_retention_removed_rows_total", rows)).toBeGreaterThanOrEqual(3);
    expect(page.get("checkpointd_retention_removed_bytes_total")).toBeGreaterThan(0);
    expect(page.get("checkpointd_retention_done_timestamp_seconds")).toBeGreaterThan(1.7e9);
  });
});

describe("the event loop", () => {
  it("is told to have stood still, by the longest of each second", async () => {
    const server = await start();
    const until = performance.now() + 700;
    while (performance.now() < until);
    await expect
      .poll(async () => {
        const page = await pageOf(server);
        const name = "checkpointd_event_loop_standstill_seconds_bucket";
        return page.sum(name, { le: "+Inf" }) - page.sum(name, { le: "0.5" });
      })
      .toBeGreaterThan(0);
  });
});
