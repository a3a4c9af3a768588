import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import {
  link,
  readdir,
  readFile,
  readlink,
  realpath,
  rename,
  rm,
  writeFile,
} from "node:fs/promises";
import path from "node:path";
import { setTimeout as sleep } from "node:timers/promises";

/**
 * Who holds a data folder. The start time tells a process from a later one with the same
 * number: in a container every start gets the same few pids.
 */
interface Owner {
  pid: number;
  started: string;
}

/**
 * Takes `<dataDir>/owner.lock` for this process and returns the function that gives it back.
 * A lock whose owner is no longer alive is taken over. Throws an error that names the folder
 * and the pid when another live process holds it. Processes that cannot see each other's pids
 * (two containers on one volume) are kept apart only by Postgres' own check.
 */
export async function takeOwnerLock(dataDir: string): Promise<() => Promise<void>> {
  const lock = path.join(dataDir, "owner.lock");
  const mine = JSON.stringify({ pid: process.pid, started: startOf(process.pid) } as Owner);
  const draft = `${lock}.${process.pid}`;
  await writeFile(draft, mine, { mode: 0o644 });
  try {
    for (;;) {
      try {
        // link() fails when the name exists and never shows a half-written file.
        await link(draft, lock);
        break;
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code !== "EEXIST") throw error;
      }
      const seen = await readFile(lock, "utf8").catch((error: NodeJS.ErrnoException) => {
        // Given back a moment ago. One that cannot be read will not be readable the next time.
        if (error.code !== "ENOENT") throw error;
        return undefined;
      });
      if (seen === undefined) continue;
      const owner = toOwner(seen);
      if (owner !== undefined && startOf(owner.pid) === owner.started) {
        throw new Error(
          `the data folder ${dataDir} is in use by process ${owner.pid}: stop that process, or choose another folder with --data-dir`,
        );
      }
      await removeStale(lock, seen);
    }
  } finally {
    await rm(draft, { force: true });
  }
  return async () => {
    if ((await readFile(lock, "utf8").catch(() => undefined)) === mine) {
      await rm(lock, { force: true });
    }
  };
}

/**
 * Ends a Postgres that a killed owner left behind in `clusterDir` and returns when it is gone.
 * Call it only while holding the owner lock. The wait ends when `signal` aborts. A pid file left by a process that is no longer
 * that cluster's postmaster is not acted upon, except that it is removed when it would keep
 * Postgres from starting and no process works in the folder.
 */
export async function stopOrphan(
  clusterDir: string,
  onProgress: (line: string) => void,
  signal?: AbortSignal,
): Promise<void> {
  const pidFile = path.join(clusterDir, "postmaster.pid");
  const text = await readFile(pidFile, "utf8").catch(() => undefined);
  if (text === undefined) return;
  const pid = Number.parseInt(text, 10);
  const isPid = Number.isInteger(pid) && pid > 0;
  // Postgres itself removes the file of a process that is gone, and refuses one without a number.
  if (isPid && startOf(pid) === undefined) return;
  const started = startOf(pid);
  if (!isPid || !(await isPostmasterOf(pid, clusterDir))) {
    if (process.platform === "linux" && !(await anyProcessIn(clusterDir))) {
      await rm(pidFile, { force: true });
    }
    return;
  }
  onProgress(`stopping Postgres (process ${pid}) left behind by an owner that was killed`);
  // Fast shutdown, and after 20 s the immediate one (recovered from the log at the next start).
  for (const [name, seconds] of [
    ["SIGINT", 20],
    ["SIGQUIT", 10],
  ] as const) {
    try {
      process.kill(pid, name);
    } catch {
      return;
    }
    for (let waited = 0; waited < seconds * 20; waited += 1) {
      signal?.throwIfAborted();
      if (startOf(pid) !== started) return;
      await sleep(50);
    }
  }
  throw new Error(
    `Postgres process ${pid} still runs in ${clusterDir} and does not stop: end it by hand`,
  );
}

async function removeStale(lock: string, seen: string): Promise<void> {
  // Another process may replace the stale lock between our look and our removal, so it is moved
  // aside first and put back if it is not the one we saw.
  const aside = `${lock}.${process.pid}.stale`;
  try {
    await rename(lock, aside);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return;
    throw error;
  }
  if ((await readFile(aside, "utf8")) !== seen) await link(aside, lock).catch(() => {});
  await rm(aside, { force: true });
}

function toOwner(text: string): Owner | undefined {
  try {
    const owner = JSON.parse(text) as Owner;
    return Number.isInteger(owner.pid) && owner.pid > 0 ? owner : undefined;
  } catch {
    return undefined;
  }
}

/** When the process started (an opaque text that includes the boot), undefined if it is gone. */
function startOf(pid: number): string | undefined {
  try {
    if (process.platform !== "linux") {
      return execFileSync("ps", ["-o", "lstart=", "-p", `${pid}`], { stdio: "pipe" })
        .toString()
        .trim();
    }
    const stat = readFileSync(`/proc/${pid}/stat`, "utf8");
    // The program's name (field 2) is in parentheses and may itself hold spaces and parentheses.
    const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
    if (fields[0] === "Z") return undefined;
    return `${readFileSync("/proc/sys/kernel/random/boot_id", "utf8").trim()} ${fields[19]}`;
  } catch {
    return undefined;
  }
}

async function anyProcessIn(clusterDir: string): Promise<boolean> {
  const folder = await realpath(clusterDir);
  for (const name of await readdir("/proc")) {
    if (/^\d+$/.test(name) && (await readlink(`/proc/${name}/cwd`).catch(() => "")) === folder) {
      return true;
    }
  }
  return false;
}

async function isPostmasterOf(pid: number, clusterDir: string): Promise<boolean> {
  if (process.platform === "linux") {
    // Postgres changes into its cluster at start; readable for the same user and for root.
    return (await readlink(`/proc/${pid}/cwd`).catch(() => "")) === (await realpath(clusterDir));
  }
  try {
    const line = execFileSync("ps", ["-o", "command=", "-p", `${pid}`], { stdio: "pipe" });
    return line.toString().includes(clusterDir);
  } catch {
    return false;
  }
}
