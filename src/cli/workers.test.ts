import { get } from "node:http";
import { createServer } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";
import { createClient } from "@connectrpc/connect";
import { createConnectTransport } from "@connectrpc/connect-node";
import { uuid6 } from "@langchain/langgraph-checkpoint";
import pg from "pg";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { CheckpointService } from "../../gen/checkpointd/v1/checkpoint_service_pb.js";
import { ConnectSaver } from "../index.js";
import { createDatabase, type TestDatabase } from "../testing/postgres.js";
import { runCommand, type ServeProcess, startServe } from "../testing/serve_process.js";

type Line = { msg: string; pid?: number; [field: string]: unknown };

let database: TestDatabase;
let client: pg.Client;
const savers: ConnectSaver[] = [];
const servers: ServeProcess[] = [];
beforeAll(async () => {
  database = await createDatabase();
  client = new pg.Client({ connectionString: database.url });
  await client.connect();
});
afterEach(async () => {
  // Of a test that failed; its workers go with it.
  for (const { child } of servers.splice(0)) child.kill("SIGKILL");
  await Promise.all(savers.splice(0).map((saver) => saver.end()));
});
afterAll(async () => {
  await client?.end();
  await database?.drop();
});

/** A service with two workers that is ready, on the file's database. */
async function serve(...args: string[]): Promise<ServeProcess> {
  const server = await startServe(["--database-url", database.url, "--workers", "2", ...args]);
  servers.push(server);
  await until(() => workersOf(server).length === 2);
  await server.printed("is ready");
  return server;
}

/** What the service logged so far, by all its processes. */
function logged(server: ServeProcess, msg: string): Line[] {
  const lines = server.output().stderr.split("\n").slice(0, -1);
  return lines.map((line) => JSON.parse(line) as Line).filter((line) => line.msg === msg);
}

/** The workers that listened so far, dead or alive, in the order of their start. */
const workersOf = (server: ServeProcess) =>
  logged(server, "a worker listens").map(({ pid }) => pid as number);

async function until(isTrue: () => boolean | Promise<boolean>): Promise<void> {
  while (!(await isTrue())) await sleep(20);
}

function isAlive(pid: number): boolean {
  try {
    return process.kill(pid, 0);
  } catch {
    return false;
  }
}

/** A saver with a connection of its own. */
function open(server: ServeProcess): ConnectSaver {
  const saver = ConnectSaver.fromUrl(server.url);
  savers.push(saver);
  return saver;
}

async function put(saver: ConnectSaver, threadId: string, step: number): Promise<string> {
  const id = uuid6(step);
  await saver.put(
    { configurable: { thread_id: threadId } },
    {
      v: 4,
      id,
      ts: new Date(0).toISOString(),
      channel_values: { n: step },
      channel_versions: { n: step + 1 },
      versions_seen: {},
    },
    { source: "loop", step, parents: {} },
    { n: step + 1 },
  );
  return id;
}

describe("the flag", () => {
  it.each([
    [["--workers", "0"], {}, "--workers must be a whole number from 1 to 64"],
    [["--workers", "two"], {}, "--workers must be a whole number from 1 to 64"],
    [["--workers", "9"], {}, "--workers (9) must not be greater than --pool-size (8)"],
    [
      ["--pool-size=2"],
      { CHECKPOINTD_WORKERS: "3" },
      "--workers (3) must not be greater than --pool-size (2)",
    ],
  ])("%j with %j is refused", async (args, env, sentence) => {
    const { code, stdout, stderr } = await runCommand(["serve", ...args], env as never);
    expect({ code, stdout }).toEqual({ code: 2, stdout: "" });
    expect(stderr).toContain(sentence);
  });

  it("says once that the port is taken", async () => {
    const taken = createServer().listen(0, "127.0.0.1");
    await new Promise((resolve) => taken.once("listening", resolve));
    const { port } = taken.address() as { port: number };
    const args = ["--workers", "2", "--port", `${port}`];
    const { code, stderr } = await runCommand(["serve", ...args], { DATABASE_URL: database.url });
    expect(code).toBe(1);
    expect(stderr).toMatch(/^checkpointd: cannot listen on .*\n$/);
    taken.close();
  });

  it("at 1 starts no other process", async () => {
    const server = await startServe(["--database-url", database.url, "--workers", "1"]);
    await server.printed("is ready");
    expect(workersOf(server)).toEqual([]);
    expect(server.output().stderr).not.toContain('"pid"');
    expect(await server.stop()).toMatchObject({ code: 0 });
  });
});

describe("workers", () => {
  it("share the port; what happens once happens once", async () => {
    const empty = await createDatabase({ template: false });
    const server = await startServe(
      ["--database-url", empty.url, "--workers", "3", "--log-level", "debug"],
      { CHECKPOINTD_RETENTION: "keep_last=1000" },
    );
    await server.printed("is ready");
    expect(server.output().stdout.match(/listens on/g)).toHaveLength(1);
    expect(server.output().stdout.match(/is ready/g)).toHaveLength(1);
    await until(() => workersOf(server).length === 3);
    const pids = workersOf(server);
    expect(new Set(pids).size).toBe(3);
    expect(pids).not.toContain(server.child.pid);

    await Promise.all(Array.from({ length: 9 }, (_, n) => put(open(server), `t${n}`, n)));
    await until(() => logged(server, "call").length >= 9);
    expect(new Set(logged(server, "call").map(({ pid }) => pid))).toEqual(new Set(pids));
    await until(() => logged(server, "retention").length > 0);
    const { stderr, code } = await server.stop();
    expect(code).toBe(0);
    expect(stderr.match(/migrating: 0001/g)).toHaveLength(1);
    expect(stderr).not.toContain("waiting for another process");
    expect(stderr.match(/"msg":"retention"/g)).toHaveLength(1);
    expect(stderr).not.toContain("another replica runs it");
    expect(stderr.match(/"msg":"drained"/g)).toHaveLength(3);
    await empty.drop();
  });

  it("listen while the database is down", async () => {
    const server = await startServe([
      "--workers",
      "2",
      "--database-url",
      "postgres://127.0.0.1:1/none",
    ]);
    expect((await fetch(`${server.url}/healthz`)).status).toBe(200);
    expect((await fetch(`${server.url}/readyz`)).status).toBe(503);
    const { code, stderr } = await server.stop();
    expect(code).toBe(0);
    expect(stderr.match(/not ready/g)).toHaveLength(1);
  });

  it("die under load, are replaced, and nothing is lost; the pool is never exceeded", async () => {
    const server = await serve("--pool-size", "5", "--log-level", "debug");
    let most = 0;
    let over = false;
    const watch = (async () => {
      while (!over) {
        const { rows } = await client.query(
          `select count(*)::int as n from pg_stat_activity
           where datname = current_database() and application_name = 'checkpointd'`,
        );
        most = Math.max(most, rows[0].n);
        await sleep(5);
      }
    })();
    const stored: string[] = [];
    const agents = Array.from({ length: 12 }, async (_, agent) => {
      const saver = open(server);
      for (let step = 0; !over; step++) stored.push(await put(saver, `agent-${agent}`, step));
    });
    // Each knocks with a connection of its own, and is answered or cut: one that hangs is one
    // that was handed to a dead worker and forgotten.
    let answered = 0;
    const knockers = Array.from({ length: 8 }, async () => {
      while (!over) {
        const request = get(`${server.url}/healthz`, { agent: false });
        await new Promise((resolve) => {
          request.on("response", (response) => {
            answered++;
            response.resume().on("close", resolve);
          });
          request.on("error", resolve);
        });
      }
    });
    const all = Promise.all([watch, ...agents, ...knockers]);
    for (let kill = 0; kill < 4; kill++) {
      const before = stored.length;
      await Promise.race([until(() => stored.length > before + 100), all]);
      const living = workersOf(server).filter(isAlive);
      expect(living).toHaveLength(2);
      process.kill(living[kill % 2] as number, "SIGKILL");
      await Promise.race([until(() => workersOf(server).length === 3 + kill), all]);
    }
    over = true;
    await all;

    const { rows } = await client.query(
      "select checkpoint_id from checkpoints where thread_id like 'agent-%'",
    );
    const found = new Set(rows.map((row) => row.checkpoint_id));
    expect(stored.filter((id) => !found.has(id))).toEqual([]);
    expect(answered).toBeGreaterThan(100);
    expect(most).toBeGreaterThan(1);
    expect(most).toBeLessThanOrEqual(4);

    // The new ones serve.
    const living = workersOf(server).filter(isAlive);
    await Promise.all(Array.from({ length: 8 }, (_, n) => put(open(server), `after-${n}`, n)));
    const pids = () => new Set(logged(server, "call").map(({ pid }) => pid));
    await until(() => living.every((pid) => pids().has(pid)));
    expect(await server.stop()).toMatchObject({ code: 0 });
    const ends = logged(server, "a worker ended: starting another");
    expect(ends.map(({ signal }) => signal)).toEqual(Array(4).fill("SIGKILL"));
  }, 60_000);

  it("drain at a signal, and not at one of a terminal that reaches them first", async () => {
    const server = await serve();
    const locker = await lockCheckpoints();
    const calls: Promise<unknown>[] = [];
    for (let n = 0; n < 4; n++) {
      const transport = createConnectTransport({ baseUrl: server.url, httpVersion: "2" });
      const { put } = createClient(CheckpointService, transport);
      calls.push(put({ threadId: "drain", checkpointId: `${n}`, checkpointJson: '{"v": 4}' }));
      // One after the other: those that wait for the same connection become one statement.
      await waitForLockWaiters(n + 1);
    }
    for (const pid of workersOf(server)) process.kill(pid, "SIGINT");
    expect((await fetch(`${server.url}/healthz`)).status).toBe(200);
    const stopped = server.stop("SIGINT");
    await until(() => logged(server, "draining").length === 2);
    await expect(fetch(`${server.url}/healthz`)).rejects.toThrow();
    await locker.query("commit");
    await locker.end();
    await Promise.all(calls);
    expect(await stopped).toMatchObject({ code: 0, signal: null });
    expect(logged(server, "a worker ended: starting another")).toEqual([]);
    expect(workersOf(server).filter(isAlive)).toEqual([]);
  });

  it("end at once at the second signal", async () => {
    const server = await serve();
    const locker = await lockCheckpoints();
    const call = expect(put(open(server), "second", 0)).rejects.toThrow();
    await waitForLockWaiters(1);
    server.child.kill("SIGTERM");
    await until(() => logged(server, "draining").length === 2);
    await sleep(600);
    // Resolves when nobody holds the pipes any more: the workers, too, have ended.
    expect(await server.stop()).toMatchObject({ code: 1 });
    await Promise.all(savers.splice(0).map((saver) => saver.end()));
    await call;
    await locker.query("rollback");
    await locker.end();
  });

  it("end by themselves when the primary is killed", async () => {
    const server = await serve();
    await put(open(server), "orphans", 0);
    // As above. Their pids tell less: who has no parent stays a zombie until somebody looks.
    expect(await server.stop("SIGKILL")).toMatchObject({ signal: "SIGKILL" });
  });

  it("told to end by SIGTERM, one drains and is replaced", async () => {
    const server = await serve();
    const [first = 0] = workersOf(server);
    process.kill(first, "SIGTERM");
    await until(() => workersOf(server).length === 3);
    expect(logged(server, "drained")).toMatchObject([{ pid: first }]);
    expect(logged(server, "a worker ended: starting another")).toMatchObject([
      { pid: first, code: 0, signal: null },
    ]);
    expect(await server.stop()).toMatchObject({ code: 0 });
  });

  it("that end soon after each start end the service", async () => {
    const server = await serve();
    const ends = () => logged(server, "a worker ended: starting another").length;
    const [, other] = workersOf(server);
    for (let kill = 0; kill < 5; kill++) {
      await until(() => ends() === kill && workersOf(server).length === 2 + kill);
      const victim = workersOf(server).find((pid) => pid !== other && isAlive(pid));
      process.kill(victim as number, "SIGKILL");
    }
    const { code, stderr } = await server.finished;
    expect(code).toBe(1);
    expect(stderr).toContain("a worker ended soon after each start: giving up");
    expect(isAlive(other as number)).toBe(false);
  }, 60_000);
});

async function lockCheckpoints(): Promise<pg.Client> {
  const locker = new pg.Client({ connectionString: database.url });
  await locker.connect();
  await locker.query("begin; lock table checkpoints in exclusive mode");
  return locker;
}

async function waitForLockWaiters(count: number): Promise<void> {
  await until(async () => {
    const { rows } = await client.query(
      "select from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'",
    );
    return rows.length >= count;
  });
}
