import { mkdtemp, readdir, readFile, rm } from "node:fs/promises";
import { connect, createServer } from "node:net";
import { tmpdir } from "node:os";
import path from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { Code, ConnectError, createClient } from "@connectrpc/connect";
import { createConnectTransport } from "@connectrpc/connect-node";
import pg from "pg";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { CheckpointService } from "../../gen/checkpointd/v1/checkpoint_service_pb.js";
import { Health, HealthCheckResponse_ServingStatus } from "../../gen/health/v1/health_pb.js";
import { createDatabase, type TestDatabase } from "../testing/postgres.js";
import { runCommand, startServe } from "../testing/serve_process.js";

const transport = (url: string) => createConnectTransport({ baseUrl: url, httpVersion: "2" });
const checkpoints = (url: string) => createClient(CheckpointService, transport(url));
const put = { threadId: "t", checkpointId: "1", checkpointJson: '{"v": 4}' };

describe("serve without a database", () => {
  let folder: string;
  beforeAll(async () => {
    folder = await mkdtemp(path.join(tmpdir(), "checkpointd-serve-"));
  });
  afterAll(() => rm(folder, { recursive: true, force: true }));

  it("starts an embedded one in .checkpointd, says so, and keeps its data", async () => {
    const first = await startServe([], {}, folder);
    await first.printed("is ready");
    expect(first.output().stdout).toMatch(/initialising Postgres in \.checkpointd .*\n/);
    // The line for psql: what stands in it opens the database.
    const { stdout } = first.output();
    const [, file = "", host = "", port] =
      /its database: PGPASSWORD=\$\(cat (\S+)\) psql -h (\S+) -p (\d+) -U postgres postgres\n/.exec(
        stdout,
      ) ?? [];
    const password = (await readFile(path.join(folder, file), "utf8")).trim();
    expect(stdout).not.toContain(password);
    const user = { host, port: Number(port), user: "postgres", database: "postgres", password };
    const client = new pg.Client(user);
    await client.connect();
    expect((await client.query("select from checkpoints")).rows).toEqual([]);
    await client.end();
    expect(stdout).toMatch(
      new RegExp(
        `next: ConnectSaver.fromUrl\\("${first.url}"\\) .* threads ls --url ${first.url}\n`,
      ),
    );
    await checkpoints(first.url).put(put);
    expect(await first.stop()).toMatchObject({ code: 0, signal: null });
    expect(await readdir(folder)).toEqual([".checkpointd"]);

    const second = await startServe([], {}, folder);
    await second.printed("is ready");
    expect(second.output().stdout).not.toContain("initialising");
    const { tuple } = await checkpoints(second.url).getTuple({ threadId: "t" });
    expect(tuple?.key?.checkpointId).toBe("1");

    // The folder is taken: the second process says by whom, and the first goes on.
    await expect(startServe([], {}, folder)).rejects.toThrow(
      `in use by process ${second.child.pid}`,
    );
    expect((await checkpoints(second.url).getTuple({ threadId: "t" })).tuple).toBeDefined();
    const end = await second.stop("SIGINT");
    expect(end).toMatchObject({ code: 0, signal: null });
    expect(end.stderr).not.toContain('"level":"error"');
  });

  it("exits 1 with a sentence when its password is lost", async () => {
    const dataDir = path.join(folder, "lost");
    const first = await startServe(["--data-dir", dataDir]);
    expect(await first.stop()).toMatchObject({ code: 0 });
    await rm(path.join(dataDir, "password"));
    const { code, stderr } = await runCommand(["serve", "--port", "0", "--data-dir", dataDir]);
    expect(code).toBe(1);
    expect(stderr).toMatch(/^checkpointd: the password of the database in .* is lost \(.*\n$/);
  });

  it("exits 1 with a sentence when the port is taken", async () => {
    const taken = createServer().listen(0, "127.0.0.1");
    await new Promise((resolve) => taken.once("listening", resolve));
    const { port } = taken.address() as { port: number };
    await expect(
      startServe(["--port", `${port}`, "--database-url", "postgres://127.0.0.1:1/x"]),
    ).rejects.toThrow(/ended \(1\)[\s\S]*cannot listen on 127/);
    taken.close();
  });
});

describe("serve with a database", () => {
  let database: TestDatabase;
  beforeAll(async () => {
    database = await createDatabase({ template: false });
  });
  afterAll(() => database.drop());

  it("stays up while the database is down and becomes ready by itself", async () => {
    // A port where nothing listens yet; later a relay to the real database does.
    const real = new URL(database.url);
    const relay = createServer((socket) => {
      const there = connect(Number(real.port), real.hostname);
      socket.pipe(there).pipe(socket);
      socket.on("error", () => there.destroy());
      there.on("error", () => socket.destroy());
    });
    relay.listen(0, "127.0.0.1");
    await new Promise((resolve) => relay.once("listening", resolve));
    const { port } = relay.address() as { port: number };
    await new Promise((resolve) => relay.close(resolve));
    const url = new URL(database.url);
    url.port = `${port}`;

    const server = await startServe(["--database-url", url.href]);
    const health = createClient(Health, transport(server.url));
    expect((await fetch(`${server.url}/healthz`)).status).toBe(200);
    expect((await fetch(`${server.url}/readyz`)).status).toBe(503);
    expect((await health.check({})).status).toBe(HealthCheckResponse_ServingStatus.NOT_SERVING);
    await expect(checkpoints(server.url).put(put)).rejects.toMatchObject({
      code: Code.Unavailable,
    });

    relay.listen(port, "127.0.0.1");
    await server.printed("is ready");
    expect((await fetch(`${server.url}/readyz`)).status).toBe(200);
    expect((await health.check({})).status).toBe(HealthCheckResponse_ServingStatus.SERVING);
    await checkpoints(server.url).put(put);
    expect(await server.stop()).toMatchObject({ code: 0 });
    relay.close();
  });

  it("drains on SIGTERM: health turns, running calls finish, new ones are refused, exit 0", async () => {
    const server = await startServe(["--database-url", database.url]);
    await server.printed("is ready");
    const watched: number[] = [];
    const watch = (async () => {
      for await (const { status } of createClient(Health, transport(server.url)).watch({})) {
        watched.push(status);
      }
    })();
    const locker = new pg.Client({ connectionString: database.url });
    await locker.connect();
    await locker.query("begin; lock table checkpoints in exclusive mode");
    let settled = false;
    const running = checkpoints(server.url)
      .put({ ...put, checkpointId: "2" })
      .finally(() => {
        settled = true;
      });
    await waitForLockWaiter(locker);
    const stopped = server.stop();
    await watch;
    expect(watched).toEqual([
      HealthCheckResponse_ServingStatus.SERVING,
      HealthCheckResponse_ServingStatus.NOT_SERVING,
    ]);
    await expect(fetch(`${server.url}/healthz`)).rejects.toThrow();
    expect(settled).toBe(false);
    await locker.query("commit");
    await running;
    expect(await stopped).toMatchObject({ code: 0, signal: null });
    await locker.end();
  });

  it("cuts calls that outlast the drain timeout and still exits 0", async () => {
    const server = await startServe(["--database-url", database.url, "--drain-timeout", "300ms"]);
    await server.printed("is ready");
    const locker = new pg.Client({ connectionString: database.url });
    await locker.connect();
    await locker.query("begin; lock table checkpoints in exclusive mode");
    const running = checkpoints(server.url).put({ ...put, checkpointId: "3" });
    const refused = expect(running).rejects.toBeInstanceOf(ConnectError);
    await waitForLockWaiter(locker);
    expect(await server.stop()).toMatchObject({ code: 0, signal: null });
    await refused;
    await locker.query("commit");
    const { rows } = await locker.query("select from checkpoints where checkpoint_id = '3'");
    expect(rows).toHaveLength(0);
    await locker.end();
  });

  it("exits at once with 1 at the second signal", async () => {
    const server = await startServe(["--database-url", database.url]);
    await server.printed("is ready");
    const locker = new pg.Client({ connectionString: database.url });
    await locker.connect();
    await locker.query("begin; lock table checkpoints in exclusive mode");
    const running = checkpoints(server.url).put({ ...put, checkpointId: "4" });
    const refused = expect(running).rejects.toBeInstanceOf(ConnectError);
    await waitForLockWaiter(locker);
    // One Ctrl-C under npm is two signals at once; the second that counts comes later.
    server.child.kill("SIGTERM");
    server.child.kill("SIGINT");
    while (!server.output().stderr.includes("draining")) await sleep(20);
    await sleep(600);
    expect(server.child.exitCode).toBeNull();
    expect(await server.stop()).toMatchObject({ code: 1 });
    await refused;
    await locker.end();
  });
});

async function waitForLockWaiter(client: pg.Client): Promise<void> {
  for (;;) {
    const { rows } = await client.query(
      "select from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'",
    );
    if (rows.length > 0) return;
    await sleep(20);
  }
}
