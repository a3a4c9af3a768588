/** Servers of this version and of the next one, on one database and under load. */
import { setTimeout as sleep } from "node:timers/promises";
import pg from "pg";
import { afterEach, expect, it } from "vitest";
import { ConnectSaver, type ConnectSaverUrlOptions } from "../index.js";
import { type InstalledVersion, installVersion } from "../testing/installed_version.js";
import { createDatabase } from "../testing/postgres.js";
import { type Relay, startRelay } from "../testing/relay.js";
import { SaverLoad } from "../testing/saver_load.js";
import { runCommand, type ServeProcess, startServe } from "../testing/serve_process.js";
import { version } from "../version.js";

const cleanups: (() => Promise<unknown> | unknown)[] = [];
afterEach(async () => {
  for (const cleanup of cleanups.splice(0).reverse()) await cleanup();
});

const own = version().replace(/-.*/, "");
const next = own.replace(/^(\d+)\.(\d+)\.\d+/, (_, a, b) => `${a}.${Number(b) + 1}.0`);

const lock = "ACCESS EXCLUSIVE on checkpoints for an instant\nSET LOCAL lock_timeout = '5s';\n";
const expand = `-- safe: ${lock}ALTER TABLE checkpoints ADD COLUMN note text DEFAULT '';\n`;
const contract = (before: string) =>
  `-- breaking before ${before}: ${lock}ALTER TABLE checkpoints DROP COLUMN note;\n`;

interface Replica {
  server: ServeProcess;
  version: InstalledVersion | undefined;
  /** Whether the balancer leads to it. */
  isIn: boolean;
}

/** Replicas of this version behind a balancer of connections, and what replaces one. */
async function startReplicas(count: number) {
  const { url, drop } = await createDatabase();
  const start = (version?: InstalledVersion) =>
    startServe(
      ["--no-migrate", "--drain-timeout", "10s"],
      { DATABASE_URL: url },
      undefined,
      version?.program,
    );
  const replicas: Replica[] = [];
  for (let i = 0; i < count; i++) {
    replicas.push({ server: await start(), version: undefined, isIn: true });
  }
  let turn = 0;
  const balancer: Relay = await startRelay(() => {
    const among = replicas.filter(({ isIn }) => isIn);
    const { server } = among[turn++ % among.length] ?? replicas[0]!;
    return Number(new URL(server.url).port);
  });
  cleanups.push(
    drop,
    () => Promise.all(replicas.map(({ server }) => server.stop("SIGKILL"))),
    () => balancer.close(),
  );
  const untilReady = async ({ server }: Replica, wanted = true) => {
    while (((await fetch(`${server.url}/readyz`)).status === 200) !== wanted) await sleep(50);
  };
  for (const replica of replicas) await untilReady(replica);
  return {
    databaseUrl: url,
    replicas,
    balancer,
    untilReady,
    /** As an orchestrator does: SIGTERM, the end, another one. */
    async replace(replica: Replica, version?: InstalledVersion) {
      replica.isIn = false;
      const { code } = await replica.server.stop("SIGTERM");
      expect(code).toBe(0);
      Object.assign(replica, { server: await start(version), version });
      await untilReady(replica);
      replica.isIn = true;
    },
    async migrate(version?: InstalledVersion) {
      const { code, stderr, stdout } = await runCommand(
        ["migrate"],
        { DATABASE_URL: url },
        undefined,
        version?.program,
      );
      expect(code, stderr).toBe(0);
      return stdout;
    },
  };
}

function openSavers(url: string, ways: readonly ConnectSaverUrlOptions[]): ConnectSaver[] {
  const savers = ways.map((way) => ConnectSaver.fromUrl(url, { timeoutMs: 30_000, ...way }));
  cleanups.push(() => Promise.all(savers.map((saver) => saver.end())));
  return savers;
}

const ways: ConnectSaverUrlOptions[] = [{}, {}, { session: false }, { protocol: "grpc" }];

it("safe: replicas are replaced one by one and back, and no call fails", {
  timeout: 180_000,
}, async () => {
  const newer = await installVersion(next, { "0901_expand": expand });
  cleanups.push(newer.remove);
  const service = await startReplicas(2);
  const load = new SaverLoad(openSavers(service.balancer.url, ways));
  await load.pass(100);
  expect(await service.migrate(newer)).toContain("Applied 0901_expand");
  await load.pass(100);
  for (const replica of service.replicas) {
    await service.replace(replica, newer);
    await load.pass(100);
  }
  // This version again: it goes on beside a migration that is safe.
  for (const replica of service.replicas) {
    await service.replace(replica);
    await load.pass(100);
  }
  expect(await service.migrate()).toContain("Nothing to do");
  await load.stop();
  for (const { server } of service.replicas) {
    const [saver] = openSavers(server.url, [{}]);
    await load.check(saver as ConnectSaver, load.acknowledged);
  }
});

it("breaking: this version goes on, or names the one that is needed", {
  timeout: 180_000,
}, async () => {
  // Two versions on: what the next one no longer needs is gone.
  const beside = await installVersion(next, {
    "0901_expand": expand,
    "0902_contract": contract(own),
  });
  const without = await installVersion(next, {
    "0901_expand": expand,
    "0902_contract": contract(own),
    "0903_expand": expand,
    "0904_contract": contract(next),
  });
  cleanups.push(beside.remove, without.remove);
  const service = await startReplicas(2);
  const [first, second] = service.replicas as [Replica, Replica];
  const load = new SaverLoad(openSavers(service.balancer.url, ways));
  await load.pass(100);
  await service.migrate(beside);
  await service.replace(second, beside);
  await load.pass(300);
  await service.untilReady(first);

  await service.migrate(without);
  // A balancer that looks at connections only: who has one to the first has to be told to go.
  await service.untilReady(first, false);
  first.isIn = false;
  await load.pass(300);
  const { stderr } = first.server.output();
  expect(stderr).toContain(`(0904_contract): start version ${next} or a later one, this is ${own}`);
  for (const replica of [first, second]) {
    await service.replace(replica, without);
    await load.pass(100);
  }
  await load.stop();
  const [saver] = openSavers(first.server.url, [{}]);
  await load.check(saver as ConnectSaver, load.acknowledged);
  const client = new pg.Client({ connectionString: service.databaseUrl });
  await client.connect();
  const { rows } = await client.query(
    "select name, safe, min_server from checkpointd_migrations where name > '09' order by id",
  );
  await client.end();
  expect(rows.map((row) => Object.values(row))).toEqual([
    ["0901_expand", true, null],
    ["0902_contract", false, own],
    ["0903_expand", true, null],
    ["0904_contract", false, next],
  ]);
});
