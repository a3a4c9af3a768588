/** What the planted bugs run in: a Postgres, a server of the patched build, and trouble. */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { cp, mkdtemp, readFile, rm, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath, pathToFileURL } from "node:url";
import pg from "pg";
import { startPostgresRelay } from "../../src/testing/postgres_relay.js";
import { startRelay } from "../../src/testing/relay.js";
import type { Rows } from "./call_history.js";
import type { Bug, Fault, Patch } from "./planted_bugs.js";
import { readRows } from "./read_rows.js";

const root = fileURLToPath(new URL("../../../", import.meta.url));

/**
 * Copies what is compiled with the patches in it, and returns the folder. Throws if a patch does not
 * fit: the code has changed, and the bug is to be planted anew.
 */
export async function plant({ name, patches }: Bug): Promise<string> {
  const folder = await mkdtemp(path.join(tmpdir(), "checkpointd-planted-"));
  await cp(path.join(root, "dist"), path.join(folder, "dist"), { recursive: true });
  for (const each of ["node_modules", "migrations", "proto", "package.json"]) {
    await symlink(path.join(root, each), path.join(folder, each));
  }
  for (const each of patches) await apply(folder, name, each);
  return folder;
}

async function apply(folder: string, name: string, patch: Patch): Promise<void> {
  const place = path.join(folder, "dist/src", patch.file);
  await writeFile(place, patched(await readFile(place, "utf8"), name, patch));
}

/** The compiled file with the patch in it. Throws if its text does not stand there exactly once. */
export function patched(compiled: string, name: string, { file, text, instead }: Patch): string {
  const parts = compiled.split(text);
  if (parts.length === 2) return parts.join(instead);
  throw new Error(`"${name}" cannot be planted: ${file} has ${parts.length - 1} times: ${text}`);
}

/** What runs of one bug. */
export interface World {
  /** The service, through what is in its way. */
  url: string;
  client: typeof import("../../src/index.js");
  /** What is stored in threads whose names begin so, once all is quiet. */
  rows(prefix: string): Promise<Rows>;
  stop(): Promise<void>;
}

/** Starts a server of `folder` on a database of its own, and keeps troubling both. */
export async function startWorld(
  folder: string,
  postgresUrl: string,
  fault: Fault | undefined,
): Promise<World> {
  const database = `planted_${process.pid}_${Date.now()}`;
  await withClient(postgresUrl, (client) => client.query(`create database ${database}`));
  const databaseUrl = new URL(postgresUrl);
  databaseUrl.pathname = `/${database}`;
  const toPostgres = await startPostgresRelay(databaseUrl.href);
  const server = await startServer(folder, toPostgres.url);
  const sql = new pg.Client({ connectionString: databaseUrl.href });
  sql.on("error", () => {});
  await sql.connect();
  await sql.query(trouble);
  if (fault === "skipped statements") toPostgres.decide = createSkipper();
  const relay = await startRelay(() => server.port);
  let isOver = false;
  const troubled = (async () => {
    for (let n = 1; !isOver; n++) {
      await sleep(100 + Math.random() * 200);
      const dice = Math.random();
      if (fault === "frozen server" && n % 10 === 5) {
        server.child.kill("SIGSTOP");
        await sleep(3_500);
        server.child.kill("SIGCONT");
      } else if (dice < 0.35) relay.cutOne();
      else if (dice < 0.6) await sql.query(`select pg_terminate_backend(pid) ${aBackend}`);
      else if (dice < 0.7) await sql.query(`select pg_cancel_backend(pid) ${aBackend}`);
      else {
        await sql.query("begin; lock table checkpoints in exclusive mode");
        await sleep(400);
        await sql.query("commit");
      }
    }
  })();
  // It is waited for in the end.
  troubled.catch(() => {});
  return {
    url: relay.url,
    client: await import(pathToFileURL(path.join(folder, "dist/src/index.js")).href),
    async rows(prefix) {
      // What was given up ends by itself.
      await sleep(400);
      return readRows(databaseUrl.href, prefix);
    },
    async stop() {
      isOver = true;
      await troubled;
      server.child.kill("SIGKILL");
      relay.close();
      toPostgres.close();
      await sql.end();
      await withClient(postgresUrl, (client) =>
        client.query(`drop database ${database} with (force)`),
      );
      await rm(folder, { recursive: true, force: true });
    },
  };
}

const aBackend = `from (
  select pid from pg_stat_activity
  where datname = current_database() and application_name = 'checkpointd' order by random() limit 1
) as backend`;

/** Lost conflicts, and threads that nothing can be stored of. */
const trouble = `
create function trouble() returns trigger language plpgsql as $$
begin
  if new.thread_id like '%poison' then raise exception 'poison'; end if;
  if random() < 0.01 then raise exception 'conflict' using errcode = '40001'; end if;
  return new;
end $$;
create trigger trouble before insert on checkpoints for each row execute function trouble();
create trigger trouble before insert on checkpoint_writes for each row execute function trouble()`;

/** Now and then a statement is not passed on, only the question whether Postgres is ready. */
function createSkipper() {
  const skipped = new Set<number>();
  let last = "";
  return ({ from, type, connection }: { from: string; type: string; connection: number }) => {
    if (from !== "client") return "pass" as const;
    // Only what was prepared before, so that nothing waits for an answer about it.
    if (type === "B" && last !== "D" && last !== "P" && Math.random() < 0.1)
      skipped.add(connection);
    if (type === "S") skipped.delete(connection);
    last = type;
    return skipped.has(connection) ? ("skip" as const) : ("pass" as const);
  };
}

async function startServer(
  folder: string,
  databaseUrl: string,
): Promise<{ child: ChildProcess; port: number }> {
  const main = path.join(folder, "dist/src/cli/main.js");
  const args = [main, "serve", "--port", "0", "--pool-size", "4", "--log-level", "error"];
  const child = spawn(process.execPath, args, {
    env: { PATH: process.env.PATH ?? "", DATABASE_URL: databaseUrl },
    stdio: ["ignore", "pipe", "pipe"],
  });
  let said = "";
  const port = await new Promise<number>((resolve, reject) => {
    const hear = (chunk: string) => {
      said = (said + chunk).slice(-10_000);
      const found = /listens on \S+:(\d+)/.exec(said)?.[1];
      if (found) resolve(Number(found));
    };
    child.stdout.setEncoding("utf8").on("data", hear);
    child.stderr.setEncoding("utf8").on("data", hear);
    once(child, "exit").then(() => reject(new Error(`the server ended: ${said}`)));
  });
  for (let tries = 0; ; tries++) {
    const answer = await fetch(`http://127.0.0.1:${port}/readyz`).catch(() => undefined);
    if (answer?.status === 200) return { child, port };
    if (tries > 300) throw new Error(`the server is not ready: ${said}`);
    await sleep(100);
  }
}

async function withClient<T>(url: string, use: (client: pg.Client) => Promise<T>): Promise<T> {
  const client = new pg.Client({ connectionString: url });
  client.on("error", () => {});
  await client.connect();
  try {
    return await use(client);
  } finally {
    await client.end();
  }
}
