/** CPU time and memory of processes, from Linux's /proc. */
import { readdirSync, readFileSync } from "node:fs";

/** A tick of /proc/PID/stat in microseconds: USER_HZ is 100 on every Linux that Node runs on. */
const tickMicros = 10_000;

interface Stat {
  parent: number;
  /** User and system time of the process, of all its threads. */
  own: number;
  /** The same of its children that ended and were waited for. */
  children: number;
}

function readStat(pid: number | string): Stat | undefined {
  let text: string;
  try {
    text = readFileSync(`/proc/${pid}/stat`, "utf8");
  } catch {
    return undefined; // It ended.
  }
  // The name before the last parenthesis may hold anything.
  const fields = text
    .slice(text.lastIndexOf(")") + 2)
    .split(" ")
    .map(Number);
  const ticks = (field: number) => fields[field - 3]! * tickMicros;
  return { parent: fields[1]!, own: ticks(14) + ticks(15), children: ticks(16) + ticks(17) };
}

/**
 * Microseconds of CPU a process has used, user and system, in all its threads. 0 when it is
 * gone. Exact where the kernel accounts for it (schedstat), else in steps of 10 ms.
 */
export function cpuOf(pid: number): number {
  try {
    let nanos = 0;
    for (const thread of readdirSync(`/proc/${pid}/task`)) {
      const [ran] = readFileSync(`/proc/${pid}/task/${thread}/schedstat`, "utf8").split(" ");
      nanos += Number(ran);
    }
    return nanos / 1000;
  } catch {
    return readStat(pid)?.own ?? 0;
  }
}

/**
 * Microseconds of CPU of a Postgres server: the postmaster, the backends and helpers that
 * live, and all that have ended. Nothing is lost when a connection closes.
 */
export function cpuOfPostgres(postmaster: number): number {
  for (;;) {
    const ended = readStat(postmaster)?.children ?? 0;
    let sum = cpuOf(postmaster) + ended;
    for (const entry of readdirSync("/proc")) {
      if (!/^\d+$/.test(entry) || readStat(entry)?.parent !== postmaster) continue;
      sum += cpuOf(Number(entry));
    }
    // One that ended meanwhile would count twice or not at all.
    if ((readStat(postmaster)?.children ?? 0) === ended) return sum;
  }
}

/** The parent of a process. */
export function parentOf(pid: number): number {
  const stat = readStat(pid);
  if (!stat) throw new Error(`/proc has no process ${pid}: the benchmark needs Linux`);
  return stat.parent;
}

/** The most resident memory a process has had, in MB of a million bytes. */
export function peakMemoryOf(pid: number): number {
  const status = readFileSync(`/proc/${pid}/status`, "utf8");
  return Math.round((Number(/^VmHWM:\s+(\d+) kB$/m.exec(status)?.[1]) * 1024) / 1e6);
}
