/**
 * `npm run bench:sizing`: what docs/sizing.md reckons with. What a step of an agent takes of the service,
 * of Postgres and of its disk, by how much the step stores, and what an agent takes that waits.
 */
import { spawn } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { uuid6 } from "@langchain/langgraph-checkpoint";
import pg from "pg";
import { ConnectSaver } from "../src/client/saver.js";
import { cpuOf, cpuOfPostgres, parentOf, peakMemoryOf } from "./cpu.js";

const seconds = Number(process.argv[2] ?? 15);
const idleAgents = Number(process.argv[3] ?? 1_000);
const folder = mkdtempSync(path.join(tmpdir(), "sizing-"));
const main = fileURLToPath(new URL("../src/cli/main.js", import.meta.url));
const server = spawn(
  process.execPath,
  [main, "serve", "--port", "0", "--data-dir", path.join(folder, "data"), "--log-level", "error"],
  { stdio: ["ignore", "pipe", "inherit"] },
);
const printed = await new Promise<string>((resolve) => {
  let text = "";
  server.stdout.on("data", (chunk) => {
    text += chunk;
    if (text.includes("is ready")) resolve(text);
  });
});
const url = /listens on (\S+)/.exec(printed)?.[1] as string;
const pid = server.pid as number;
const password = readFileSync(path.join(folder, "data/password"), "utf8").trim();
const port = /-p (\d+)/.exec(printed)?.[1];
const sql = new pg.Client({
  connectionString: `postgres://postgres:${password}@127.0.0.1:${port}/postgres`,
});
await sql.connect();
const number = async (text: string) => {
  const { rows } = await sql.query({ text, rowMode: "array" });
  return Number(rows[0]?.[0]);
};
const postmaster = parentOf(await number("select pg_backend_pid()"));

const memory = () =>
  Number(/^VmRSS:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, "utf8"))?.[1]) / 1_000;
// The first of them fill what the start left free in the heap.
const waiting: ConnectSaver[] = [];
const beginToWait = async (agents: number) => {
  for (let i = 0; i < agents; i++) {
    const saver = ConnectSaver.fromUrl(url);
    waiting.push(saver);
    await saver.getTuple({ configurable: { thread_id: `waits-${i}` } });
  }
  await sleep(5_000);
};
await beginToWait(idleAgents);
const before = memory();
await beginToWait(2 * idleAgents);
const each = ((memory() - before) / (2 * idleAgents)) * 1_000;
const cpu = cpuOf(pid);
await sleep(20_000);
const cpuEach = (cpuOf(pid) - cpu) / 20 / waiting.length;
const connections = await number(
  "select count(*) from pg_stat_activity where application_name = 'checkpointd'",
);
console.log(
  `${waiting.length} agents that wait, a session each: ${each.toFixed(0)} KB of memory and ` +
    `${cpuEach.toFixed(1)} us of CPU a second each, ${connections} connections to Postgres for all\n`,
);
for (const saver of waiting) await saver.end();

/** The values that a step of an agent changes, by channel. */
type Step = (step: number) => Record<string, unknown>;
/** Text that compresses as little as a model's answers do: to a half, about. */
const textOf = (bytes: number) => {
  let text = "";
  while (text.length < bytes) text += `${Math.random().toString(36).slice(2)} the of and to `;
  return text.slice(0, bytes);
};
const steps: Record<string, () => Step> = {
  "two values of 500 bytes": () => () => ({ a: textOf(500), b: textOf(500) }),
  "five values of 1 KB": () => () =>
    Object.fromEntries([..."abcde"].map((channel) => [channel, textOf(1_000)])),
  "one message of 2 KB more in a chat, up to 50 of them": () => {
    let messages: string[] = [];
    return (step) => {
      messages = step % 50 === 0 ? [textOf(2_000)] : [...messages, textOf(2_000)];
      return { messages };
    };
  },
  "one value of 100 KB": () => () => ({ document: textOf(100_000) }),
};

/** A put, and a putWrites of what comes next, as LangGraph makes them at each step. */
async function carryOut(saver: ConnectSaver, threadId: string, next: Step, step: number) {
  const values = next(step);
  const versions = Object.fromEntries(Object.keys(values).map((channel) => [channel, step + 1]));
  const config = await saver.put(
    { configurable: { thread_id: threadId, checkpoint_ns: "" } },
    {
      v: 4,
      id: uuid6(step),
      ts: new Date().toISOString(),
      channel_values: values,
      channel_versions: versions,
      versions_seen: {},
    },
    { source: "loop", step, parents: {} },
    versions,
  );
  await saver.putWrites(config, [["branch:to:next", null]], `task-${step}`);
}

const line = (cells: readonly unknown[]) => console.log(`| ${cells.join(" | ")} |`);
line([
  "a step stores",
  "steps a second, 32 agents at work",
  "p50, p99 of a step, ms",
  "CPU of the service, us",
  "CPU of Postgres, us",
  "disk, KB",
  "WAL, KB",
]);
line(Array.from({ length: 7 }, () => "---"));
for (const [name, begin] of Object.entries(steps)) {
  const savers = Array.from({ length: 8 }, () => ConnectSaver.fromUrl(url));
  const agents = Array.from({ length: 32 }, (_, i) => ({
    saver: savers[i % savers.length] as ConnectSaver,
    threadId: `${name}-${i}`,
    next: begin(),
    step: 0,
  }));
  const run = async (ms: number) => {
    const took: number[] = [];
    const end = performance.now() + ms;
    await Promise.all(
      agents.map(async (agent) => {
        while (performance.now() < end) {
          const began = performance.now();
          await carryOut(agent.saver, agent.threadId, agent.next, agent.step++);
          took.push(performance.now() - began);
        }
      }),
    );
    return took.sort((a, b) => a - b);
  };
  await run(3_000);
  await sql.query("checkpoint");
  const look = async () => ({
    service: cpuOf(pid),
    postgres: cpuOfPostgres(postmaster),
    wal: await number("select pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')"),
    disk: await number("select pg_database_size(current_database())"),
  });
  const before = await look();
  const began = performance.now();
  const took = await run(seconds * 1_000);
  const ms = performance.now() - began;
  const after = await look();
  const each = (key: keyof typeof before) => (after[key] - before[key]) / took.length;
  const at = (share: number) => (took[Math.floor(took.length * share)] as number).toFixed(1);
  line([
    name,
    Math.round((took.length / ms) * 1_000),
    `${at(0.5)}, ${at(0.99)}`,
    Math.round(each("service")),
    Math.round(each("postgres")),
    (each("disk") / 1_000).toFixed(1),
    (each("wal") / 1_000).toFixed(1),
  ]);
  for (const saver of savers) await saver.end();
}

console.log(`\nThe most memory that the service had: ${peakMemoryOf(pid)} MB`);
await sql.end();
server.kill("SIGTERM");
await new Promise((resolve) => server.once("exit", resolve));
rmSync(folder, { recursive: true, force: true });
