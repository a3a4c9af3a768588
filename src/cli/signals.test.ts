/** SIGTERM and SIGINT at every moment: an end within the bound, with nothing left behind. */
import { once } from "node:events";
import { mkdtemp, readdir, readFile, readlink, realpath, rm } from "node:fs/promises";
import { type AddressInfo, createServer, type Server as TcpServer } from "node:net";
import { tmpdir } from "node:os";
import path from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { createClient } from "@connectrpc/connect";
import { createConnectTransport } from "@connectrpc/connect-node";
import pg from "pg";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { CheckpointService } from "../../gen/checkpointd/v1/checkpoint_service_pb.js";
import { startEmbedded } from "../store/embedded.js";
import { block } from "../testing/blocking.js";
import { createDatabase } from "../testing/postgres.js";
import { runCommand, spawnCommand, startServe } from "../testing/serve_process.js";

/** What an end may take here, on a busy machine; the sweeps below take far less each. */
const boundMs = 15_000;

const cleanups: (() => Promise<unknown> | unknown)[] = [];
afterEach(async () => {
  for (const cleanup of cleanups.splice(0).reverse()) await cleanup();
});

let folder: string;
beforeEach(async () => {
  folder = await realpath(await mkdtemp(path.join(tmpdir(), "checkpointd-signals-")));
  cleanups.push(() => rm(folder, { recursive: true, force: true }));
});

/** The processes that work in the test's folder (Linux). */
async function processesIn(dir: string): Promise<string[]> {
  const found = [];
  for (const pid of await readdir("/proc")) {
    if (!/^\d+$/.test(pid)) continue;
    const cwd = await readlink(`/proc/${pid}/cwd`).catch(() => "");
    if (!cwd.startsWith(dir)) continue;
    found.push(await readFile(`/proc/${pid}/cmdline`, "utf8").catch(() => ""));
  }
  return found;
}

async function emptyDatabase(template = false): Promise<string> {
  const database = await createDatabase({ template });
  cleanups.push(() => database.drop());
  return database.url;
}

/** Runs a command, sends the signal when told to, and answers how it ended and how long it took. */
async function signalled(
  args: string[],
  when: (printed: () => string) => Promise<unknown>,
  signal: NodeJS.Signals = "SIGTERM",
) {
  const running = spawnCommand(args, {}, folder);
  cleanups.push(() => running.child.kill("SIGKILL"));
  await when(() => Object.values(running.output()).join(""));
  const sent = performance.now();
  const end = await running.stop(signal);
  return { ...end, ms: performance.now() - sent };
}

const until = (text: string) => async (printed: () => string) => {
  while (!printed().includes(text)) await sleep(10);
};

/** Before Node runs any of our code the signal ends the process, which has begun nothing. */
function expectClean({ code, signal, stderr, stdout, ms }: Awaited<ReturnType<typeof signalled>>) {
  expect(ms).toBeLessThan(boundMs);
  if (signal !== null) expect({ stdout, stderr }).toEqual({ stdout: "", stderr: "" });
  else
    expect({ code, stderr: stderr.replaceAll(/^\{.*\}\n/gm, "") }).toEqual({ code: 0, stderr: "" });
  expect(stderr).not.toContain('"level":"error"');
}

describe("a start that still loads its modules", () => {
  // Loads what `serve` is made of slowly, and says when it does.
  const hooks = `export async function load(url, context, next) {
    if (url.endsWith("/cli/serve.js")) {
      process.stdout.write("loading\\n");
      await new Promise((resolve) => setTimeout(resolve, 300));
    }
    return next(url, context);
  }`;
  const dataUrl = (code: string) => `data:text/javascript,${encodeURIComponent(code)}`;
  const register = `import { register } from "node:module"; register("${dataUrl(hooks)}");`;

  it.each(["SIGTERM", "SIGINT"] as const)("ends with 0 at %s", async (signal) => {
    const running = spawnCommand(
      ["serve", "--port", "0"],
      { NODE_OPTIONS: `--import=${dataUrl(register)}` },
      folder,
    );
    cleanups.push(() => running.child.kill("SIGKILL"));
    await running.printed("loading");
    expect(await running.stop(signal)).toEqual({
      code: 0,
      signal: null,
      stdout: "loading\n",
      stderr: "",
    });
    expect(await readdir(folder)).toEqual([]);
  });
});

describe("a start with the embedded Postgres", () => {
  it.each([
    ["1 worker", ["serve", "--port", "0"]],
    ["2 workers", ["serve", "--port", "0", "--workers", "2"]],
  ])(
    "can be ended at any moment, %s",
    async (_, args) => {
      // Each on the folder that the one before left.
      for (let at = 100; at <= 3_000; at += 250) {
        const name: NodeJS.Signals = at % 100 ? "SIGINT" : "SIGTERM";
        expectClean(await signalled(args, () => sleep(at), name));
        expect(await processesIn(folder)).toEqual([]);
        const left = await readdir(path.join(folder, ".checkpointd")).catch(() => []);
        expect(left.filter((file) => /lock|new/.test(file))).toEqual([]);
        // Half of them begin with initdb.
        if (at % 200) await rm(path.join(folder, ".checkpointd"), { recursive: true, force: true });
      }
      expectClean(await signalled(args, until("is ready")));
    },
    180_000,
  );

  it("is ended in the middle of initdb, and begun anew by the next", async () => {
    const args = ["serve", "--port", "0"];
    for (const pause of [0, 100, 200, 400]) {
      const end = await signalled(args, async (printed) => {
        await until("initialising")(printed);
        await sleep(pause);
      });
      expectClean(end);
      expect(await processesIn(folder)).toEqual([]);
    }
    expectClean(await signalled(args, until("is ready")));
  }, 60_000);
});

describe("a start with a Postgres elsewhere", () => {
  it.each([
    ["1 worker", []],
    ["2 workers", ["--workers", "2"]],
  ])(
    "can be ended at any moment, %s",
    async (_, more) => {
      for (let at = 200; at <= 2_000; at += 300) {
        const url = await emptyDatabase();
        const args = ["serve", "--port", "0", "--database-url", url, ...more];
        expectClean(await signalled(args, () => sleep(at)));
      }
    },
    120_000,
  );

  it.each([1, 2])(
    "that never answers ends within the bound, %i worker(s)",
    async (workers) => {
      const hole = createServer((socket) => socket.on("error", () => {})).listen(0, "127.0.0.1");
      cleanups.push(() => hole.close());
      await once(hole, "listening");
      const url = `postgres://postgres:x@127.0.0.1:${portOf(hole)}/x`;
      const more = ["--database-url", url, "--workers", `${workers}`, "--drain-timeout", "1s"];
      for (const migrates of ["--migrate", "--no-migrate"]) {
        const end = await signalled(
          ["serve", "--port", "0", migrates, ...more],
          async (printed) => {
            await until("listens on")(printed);
            await sleep(500);
          },
        );
        expectClean(end);
      }
    },
    60_000,
  );

  it("waiting for the lock of migrations, or for one in a migration, ends", async () => {
    const url = await emptyDatabase();
    const holder = await block(
      url,
      "select pg_advisory_lock(hashtextextended('checkpointd migrate public', 0))",
    );
    cleanups.push(() => holder.release());
    const serve = ["serve", "--port", "0", "--database-url", url];
    const migrate = ["migrate", "--database-url", url];
    const waits = "waiting for another process";
    expectClean(await signalled(serve, until(waits)));
    expectClean(await signalled([...serve, "--workers", "2"], until(waits)));
    const end = await signalled(migrate, until(waits));
    expect(end).toMatchObject({ code: 1, stderr: expect.stringContaining("stopped by SIGTERM") });
    await holder.release();

    expect(await runCommand(migrate)).toMatchObject({ code: 0 });
    const again = await block(url, "lock table checkpoint_writes in access share mode");
    cleanups.push(() => again.release());
    await again.query("delete from checkpointd_migrations where name >= '0003'");
    await again.query("commit; begin; lock table checkpoint_writes in access share mode");
    expectClean(await signalled(serve, until("migrating: 0003")));
    const inMigration = await signalled(migrate, until("migrating: 0003"));
    expect(inMigration).toMatchObject({ code: 1 });
    // Nothing of either still waits in Postgres.
    const { rows } = await again.query(
      `select from pg_stat_activity where datname = current_database()
        and pid <> pg_backend_pid() and backend_type = 'client backend'`,
    );
    expect(rows).toEqual([]);
    await again.release();
    expect(await runCommand(migrate)).toMatchObject({ code: 0 });
  }, 90_000);
});

describe("a drain", () => {
  it.each([1, 2])(
    "beside a frozen Postgres ends within the bound, %i worker(s)",
    async (workers) => {
      const quick = { fsync: "off" };
      const embedded = await startEmbedded({
        dataDir: folder,
        onProgress: () => {},
        settings: quick,
      });
      const pids = await backendsOf(embedded.databaseUrl);
      cleanups.push(
        () => embedded.stop(),
        () => signalAll(pids, "SIGCONT"),
      );
      const args = ["--database-url", embedded.databaseUrl, "--drain-timeout", "1s"];
      const server = await startServe([...args, "--workers", `${workers}`]);
      cleanups.push(() => server.child.kill("SIGKILL"));
      await server.printed("is ready");
      const client = createClient(
        CheckpointService,
        createConnectTransport({ baseUrl: server.url, httpVersion: "2" }),
      );
      await client.getTuple({ threadId: "t" });
      pids.push(...(await backendsOf(embedded.databaseUrl)));
      signalAll(pids, "SIGSTOP");
      const call = expect(client.getTuple({ threadId: "t" })).rejects.toThrow();
      await sleep(300);
      const sent = performance.now();
      expect(await server.stop()).toMatchObject({ code: 0 });
      expect(performance.now() - sent).toBeLessThan(boundMs);
      await call;
    },
    60_000,
  );
});

/** The postmaster and all that serve clients. */
async function backendsOf(databaseUrl: string): Promise<number[]> {
  const client = new pg.Client({ connectionString: databaseUrl });
  await client.connect();
  const { rows } = await client.query<{ pid: number }>("select pid from pg_stat_activity");
  await client.end();
  const [postmaster] = (await readFile(path.join(folder, "postgres/postmaster.pid"), "utf8")).split(
    "\n",
  );
  return [Number(postmaster), ...rows.map(({ pid }) => pid)];
}

function signalAll(pids: number[], signal: NodeJS.Signals): void {
  for (const pid of pids) {
    try {
      process.kill(pid, signal);
    } catch {
      // It has ended.
    }
  }
}

const portOf = (server: TcpServer) => (server.address() as AddressInfo).port;
