/** Migrations, one by one, over data that direct savers and servers are writing meanwhile. */
import { setTimeout as sleep } from "node:timers/promises";
import {
  type BaseCheckpointSaver,
  type SerializerProtocol,
  uuid6,
} from "@langchain/langgraph-checkpoint";
import { PostgresSaver } from "@langchain/langgraph-checkpoint-postgres";
import pg from "pg";
import { afterEach, describe, expect, it } from "vitest";
import { ConnectSaver } from "../client/saver.js";
import type { Server } from "../server/server.js";
import { block } from "../testing/blocking.js";
import { pythonSaverTables } from "../testing/langgraph_tables.js";
import { createMigrationsFolder, type MigrationsFolder } from "../testing/migrations_folder.js";
import { createDatabase } from "../testing/postgres.js";
import { startTestServer, startUnreadyServer } from "../testing/test_server.js";
import { version } from "../version.js";
import { migrate } from "./migrate.js";
import { type MigrationFile, readMigrationFile, readMigrationFiles } from "./migration_files.js";

const cleanups: (() => Promise<unknown> | unknown)[] = [];
afterEach(async () => {
  for (const cleanup of cleanups.splice(0).reverse()) await cleanup();
});

/** What was acknowledged of a checkpoint, and what a saver has to read of it. */
interface Told {
  id: string;
  values: Record<string, unknown>;
  step: number | undefined;
  writes: unknown[];
}

interface Load {
  /** The checkpoints of each thread that is whole, the latest first; none of one that was deleted. */
  readonly stored: ReadonlyMap<string, readonly Told[]>;
  /** Resolves when so many threads more were written, read and listed. */
  pass(count: number): Promise<void>;
  /** Ends it. Throws what a call of it failed with. */
  stop(): Promise<void>;
}

/** Writes threads, reads each back in every way, and deletes each fourth one later. */
function startLoad(saver: BaseCheckpointSaver, name: string): Load {
  const stored = new Map<string, Told[]>();
  let isOver = false;
  let passed = 0;
  const writeThread = async (thread: string) => {
    const told: Told[] = [];
    let versions: Record<string, number> = {};
    for (let step = 0; step < 3; step++) {
      const id = uuid6(step);
      const config = { configurable: { thread_id: thread, checkpoint_ns: "" } };
      versions = { text: step + 1, log: step + 1 };
      const values = { text: `${thread} ${step}`, log: Array.from({ length: step + 1 }, () => id) };
      const checkpoint = {
        v: 4,
        id,
        ts: new Date().toISOString(),
        channel_values: values,
        channel_versions: versions,
        versions_seen: {},
      };
      const parents = told[0] ? { checkpoint_id: told[0].id } : {};
      const at = await saver.put(
        { configurable: { ...config.configurable, ...parents } },
        checkpoint,
        { source: "loop", step, parents: {} },
        versions,
      );
      await saver.putWrites(at, [["text", `${thread} write ${step}`]], `task-${step}`);
      const writes = [[`task-${step}`, "text", `${thread} write ${step}`]];
      told.unshift({ id, values, step, writes });
      expect(await readTuple(saver, thread)).toEqual(told[0]);
    }
    expect(await readThread(saver, thread)).toEqual(told);
    stored.set(thread, told);
  };
  const run = async () => {
    for (let n = 0; !isOver; n++) {
      await writeThread(`${name}-${n}`);
      const doomed = `${name}-${n - 6}`;
      if (n % 4 === 2 && stored.delete(doomed)) {
        await saver.deleteThread(doomed);
        expect(await readThread(saver, doomed)).toEqual([]);
      }
      passed++;
      await sleep(5);
    }
  };
  const ended = run();
  ended.catch(() => {});
  return {
    stored,
    async pass(count) {
      const wanted = passed + count;
      while (passed < wanted) await Promise.race([sleep(5), ended]);
    },
    async stop() {
      isOver = true;
      await ended;
    },
  };
}

const toTold = ({ checkpoint, metadata, pendingWrites }: Tuple): Told => ({
  id: checkpoint.id,
  values: checkpoint.channel_values,
  step: metadata?.step,
  writes: pendingWrites ?? [],
});
type Tuple = NonNullable<Awaited<ReturnType<BaseCheckpointSaver["getTuple"]>>>;

async function readTuple(saver: BaseCheckpointSaver, thread: string): Promise<Told | undefined> {
  const tuple = await saver.getTuple({ configurable: { thread_id: thread, checkpoint_ns: "" } });
  return tuple && toTold(tuple);
}

async function readThread(saver: BaseCheckpointSaver, thread: string): Promise<Told[]> {
  const found: Told[] = [];
  for await (const tuple of saver.list({ configurable: { thread_id: thread } })) {
    found.push(toTold(tuple));
  }
  return found;
}

/** Every tuple that the loads were told of is there, as it was, for this saver. */
async function expectAllStored(saver: BaseCheckpointSaver, loads: readonly Load[]): Promise<void> {
  for (const { stored } of loads) {
    for (const [thread, told] of [...stored]) {
      const found = await readThread(saver, thread);
      if (stored.has(thread)) expect(found).toEqual(told);
    }
  }
}

/** A direct saver in whose sessions whoever waits long for a lock fails. */
function openDirectSaver(url: string): PostgresSaver {
  const pool = new pg.Pool({ connectionString: url, max: 3, options: "-c lock_timeout=20s" });
  pool.on("error", () => {});
  cleanups.push(() => pool.end());
  return new PostgresSaver(pool, undefined as unknown as SerializerProtocol);
}

type Row = Record<string, unknown>;
type Query = (text: string, values?: unknown[]) => Promise<Row[]>;

/** A session of its own. */
async function openSession(url: string): Promise<Query> {
  const client = new pg.Client({ connectionString: url });
  client.on("error", () => {});
  await client.connect();
  cleanups.push(() => client.end());
  return async (text, values = []) => (await client.query(text, values)).rows;
}

/** The locks that the first line states: "SHARE UPDATE EXCLUSIVE on checkpoints". */
function statedLocks({ text }: MigrationFile): Set<string> {
  const [first = ""] = text.split("\n");
  const found = [...first.matchAll(/((?:[A-Z]+ )+)on (\w+)/g)];
  return new Set(found.map(([, mode = "", table]) => `${mode.trim()} on ${table}`));
}

/** The tables, each with the file that its rows are in and how often this session has read it whole. */
const tablesOf = (query: Query) =>
  query(`select oid::int, relname as name, pg_relation_filenode(oid)::int as file,
      pg_stat_get_xact_numscans(oid)::int as scans
    from pg_class where relnamespace = 'public'::regnamespace and relkind = 'r' order by relname`);

/** Locks on these tables of a session, of those that keep somebody else waiting. */
async function locksOf(query: Query, tables: Row[], pid: unknown): Promise<string[]> {
  const rows = await query(
    `select mode, relation::int as oid from pg_locks
     where pid = $1 and granted and mode <> 'AccessShareLock' and relation = any($2)`,
    [pid, tables.map(({ oid }) => oid)],
  );
  return rows.map(({ mode, oid }) => {
    const words = String(mode)
      .replace(/Lock$/, "")
      .replace(/\B[A-Z]/g, " $&");
    return `${words.toUpperCase()} on ${tables.find((table) => table.oid === oid)?.name}`;
  });
}

/**
 * Carries a migration out and undoes it: it has the locks that it states and no others on what was
 * there, rewrites nothing, and reads nothing of what an agent stores.
 */
async function expectStatedInTransaction(query: Query, file: MigrationFile): Promise<void> {
  const [me] = await query("select pg_backend_pid() as pid");
  let tables: Row[];
  for (let tries = 1; ; tries++) {
    await query("begin");
    tables = await tablesOf(query);
    try {
      await query(file.text);
      break;
    } catch (error) {
      await query("rollback");
      // It waits no longer than it says, so that nobody waits longer behind it.
      if ((error as { code?: string }).code !== "55P03" || tries === 10) throw error;
    }
  }
  try {
    const stated = [...statedLocks(file)];
    for (const lock of await locksOf(query, tables, me?.pid)) {
      expect(stated, `${file.name} has ${lock}`).toContain(lock);
    }
    const now = await tablesOf(query);
    const after = now.filter(({ oid }) => tables.some((table) => table.oid === oid));
    expect(after, file.name).toEqual(tables);
  } finally {
    await query("rollback");
  }
}

/**
 * Carries out a migration that builds indexes, behind a transaction that keeps it waiting: meanwhile
 * it has the lock that it states, and writers of the table wait for nothing.
 */
async function migrateWhileItWaits(
  url: string,
  query: Query,
  file: MigrationFile,
  run: () => Promise<{ applied: string[] }>,
): Promise<{ applied: string[] }> {
  const tables = await tablesOf(query);
  const holder = await block(
    url,
    `insert into checkpoints (thread_id, checkpoint_id, checkpoint, metadata)
     values ('held', '1', '{}', '{}')`,
  );
  const running = run();
  running.catch(() => {});
  for (;;) {
    const [waiting] = await query(
      `select pid from pg_stat_activity where datname = current_database()
         and wait_event_type = 'Lock' and query like 'CREATE INDEX CONCURRENTLY%'`,
    );
    if (waiting) {
      const stated = statedLocks(file);
      const held = await locksOf(query, tables, waiting.pid);
      expect(held.length).toBeGreaterThan(0);
      for (const lock of held) expect([...stated], `${file.name} has ${lock}`).toContain(lock);
      break;
    }
    await Promise.race([sleep(10), running]);
  }
  await query("begin");
  await query("set local lock_timeout = '1ms'");
  await query(`insert into checkpoints (thread_id, checkpoint_id, checkpoint, metadata)
    values ('beside', '1', '{}', '{}')`);
  await query("update checkpoints set metadata = metadata where thread_id = 'beside'");
  await query("delete from checkpoints where thread_id = 'beside'");
  await query("commit");
  await holder.query("delete from checkpoints where thread_id = 'held'");
  await holder.release();
  return running;
}

const starts = {
  "an empty database": async () => {},
  "the tables of the direct JS saver": (url: string) => openDirectSaver(url).setup(),
  "the tables of the direct Python saver": async (url: string) => {
    const query = await openSession(url);
    for (const statement of pythonSaverTables) await query(statement);
  },
};

async function isReady({ url }: Server): Promise<boolean> {
  return (await fetch(`${url}/readyz`)).status === 200;
}

describe.each(Object.entries(starts))("from %s on", (_, setUp) => {
  it("loses, changes and delays nothing, at each step", { timeout: 240_000 }, async () => {
    const { url, drop } = await createDatabase({ template: false });
    cleanups.push(drop);
    await setUp(url);
    const query = await openSession(url);
    const direct = openDirectSaver(url);
    const loads: Load[] = [];
    if ((await tablesOf(query)).length > 0) loads.push(startLoad(direct, "direct"));

    // A server of this version that was started too early, and somebody who calls it.
    const server = await startUnreadyServer(url, { migrate: false });
    cleanups.push(() => server.drain());
    const saver = ConnectSaver.fromUrl(server.url, { timeoutMs: 200_000 });
    cleanups.push(() => saver.end());
    const early = readThread(saver, "nobody");
    early.catch(() => {});

    const files = await readMigrationFiles();
    const folder = await createMigrationsFolder(0);
    cleanups.push(folder.remove);
    const target = { databaseUrl: url, schema: "public", dir: folder.dir };
    for (const [index, file] of files.entries()) {
      await folder.add(file.name, file.text);
      if (file.inTransaction) await expectStatedInTransaction(query, file);
      const { applied } = file.inTransaction
        ? await migrate(target)
        : await migrateWhileItWaits(url, query, file, () => migrate(target));
      expect(applied).toEqual([file.name]);
      if (index === 0 && loads.length === 0) loads.push(startLoad(direct, "direct"));
      for (const load of loads) await load.pass(3);
      await expectAllStored(direct, loads);
      if (index < files.length - 1) expect(await isReady(server)).toBe(false);
    }
    await server.ready;
    expect(await early).toEqual([]);
    await expectAllStored(saver, loads);

    await expectNextVersions(url, folder, server, direct, saver, loads);
    for (const load of loads) await load.stop();
    const last = await startTestServer(url);
    cleanups.push(() => last.drain());
    const lastSaver = ConnectSaver.fromUrl(last.url);
    cleanups.push(() => lastSaver.end());
    await expectAllStored(lastSaver, loads);
    await expectAllStored(direct, loads);
  });
});

/** Expands and contracts, beside a server of this version and a direct saver, and undoes it. */
async function expectNextVersions(
  url: string,
  folder: MigrationsFolder,
  server: Server,
  direct: PostgresSaver,
  saver: ConnectSaver,
  loads: Load[],
): Promise<void> {
  const query = await openSession(url);
  const served = startLoad(saver, "served");
  loads.push(served);
  const step = async (name: string, text: string) => {
    await folder.add(name, `${text};\n`);
    await expectStatedInTransaction(query, await readMigrationFile(`${folder.dir}/${name}.sql`));
    const target = { databaseUrl: url, schema: "public", dir: folder.dir };
    expect((await migrate(target)).applied).toEqual([name]);
  };
  const own = version().replace(/-.*/, "");
  const lock = "ACCESS EXCLUSIVE on checkpoints for an instant\nSET LOCAL lock_timeout = '5s';\n";
  const steps = [
    ["0901_expand", `-- safe: ${lock}ALTER TABLE checkpoints ADD COLUMN note text DEFAULT ''`],
    ["0902_contract", `-- breaking before ${own}: ${lock}ALTER TABLE checkpoints DROP COLUMN note`],
  ] as const;
  for (const [name, text] of steps) {
    await step(name, text);
    for (const load of loads) await load.pass(3);
    await expectAllStored(direct, loads);
    await expectAllStored(saver, loads);
    expect(await isReady(server)).toBe(true);
  }
  // Now one that this version is too old for. Direct savers know of no versions.
  await served.stop();
  await step(
    "0903_break",
    `-- breaking before 99.0.0: ${lock}ALTER TABLE checkpoints ADD COLUMN note text`,
  );
  while (await isReady(server)) await sleep(50);
  for (const load of loads) if (load !== served) await load.pass(3);
  await expectAllStored(direct, loads);
  await query("alter table checkpoints drop column note");
  await query("delete from checkpointd_migrations where name = '0903_break'");
}
