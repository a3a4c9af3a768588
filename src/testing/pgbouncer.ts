/** A real PgBouncer before a test's database: the system's, which `.ci/run` installs. */
import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { closeSync, openSync, readFileSync } from "node:fs";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { answers, findFreePort } from "./port.js";

const found = findProgram();

/** Whether this machine has one. */
export const hasPgBouncer = found !== undefined;

/** A PgBouncer that runs. */
export interface PgBouncer {
  /** The URL of the database through it. */
  readonly url: string;
  /** Ends it as a crash would; connections through it break. */
  kill(): Promise<void>;
  /** Starts it again, on the same port. */
  start(): Promise<void>;
  /** Ends it and removes its files. */
  close(): Promise<void>;
}

/**
 * Starts one before the database a URL names; `settings` go into its section `[pgbouncer]`.
 * `onCrash` is called with the end of its log when it ends by itself. Throws where there is none on
 * the PATH or in /usr/sbin.
 */
export async function startPgBouncer(
  databaseUrl: string,
  settings: Record<string, string | number>,
  onCrash: (log: string) => void = () => {},
): Promise<PgBouncer> {
  if (found === undefined)
    throw new Error("there is no pgbouncer: install the package of that name");
  const program = found;
  const target = new URL(databaseUrl);
  const url = new URL(databaseUrl);
  url.port = `${await findFreePort()}`;
  const folder = await mkdtemp(path.join(tmpdir(), "checkpointd-pgbouncer-"));
  const file = path.join(folder, "pgbouncer.ini");
  const all = {
    listen_addr: "127.0.0.1",
    listen_port: url.port,
    unix_socket_dir: "",
    auth_type: "any",
    server_login_retry: 1,
    ...settings,
  };
  const name = target.pathname.slice(1);
  const to = `host=${target.hostname} port=${target.port} dbname=${name} user=${target.username} password=${target.password}`;
  const lines = Object.entries(all).map(([key, value]) => `${key} = ${value}`);
  await writeFile(file, `[databases]\n${name} = ${to}\n[pgbouncer]\n${lines.join("\n")}\n`);
  // It refuses to run as root; the others may then read the file.
  const isRoot = process.getuid?.() === 0;
  if (isRoot) execFileSync("chmod", ["-R", "a+rX", folder]);
  const log = path.join(folder, "pgbouncer.log");
  let child: ChildProcess | undefined;
  let isKilled = false;
  const kill = async () => {
    isKilled = true;
    if (!child || child.exitCode !== null || child.signalCode !== null) return;
    child.kill("SIGKILL");
    await once(child, "exit");
  };
  const start = async () => {
    isKilled = false;
    const out = openSync(log, "w");
    child = spawn(program, [file], {
      stdio: ["ignore", out, out],
      ...(isRoot ? { uid: 65534, gid: 65534 } : {}),
    });
    closeSync(out);
    child.once("exit", () => {
      if (!isKilled) onCrash(readFileSync(log, "utf8").slice(-2_000));
    });
    while (!(await answers(Number(url.port)))) {
      if (child.exitCode !== null) throw new Error(`pgbouncer ended with ${child.exitCode}`);
      await sleep(20);
    }
  };
  await start();
  return {
    url: url.href,
    kill,
    start,
    async close() {
      await kill();
      await rm(folder, { recursive: true, force: true });
    },
  };
}

function findProgram(): string | undefined {
  for (const name of ["/usr/sbin/pgbouncer", "pgbouncer"]) {
    try {
      execFileSync(name, ["--version"], { stdio: "ignore" });
      return name;
    } catch {
      // Not there.
    }
  }
  return undefined;
}
