/**
 * `npm run bench:timing`: whether the time of an answer tells a caller that a thread exists which it may
 * not read. Each question is asked of a thread that is there and of one that is not, in random order,
 * and the two samples are compared by ranks (Mann and Whitney), which no outlier moves.
 */
import { spawn } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import http from "node:http";
import { tmpdir } from "node:os";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { createKey, hashKey } from "../src/auth/api_keys.js";

const tries = Number(process.argv[2] ?? 10_000);
const folder = mkdtempSync(path.join(tmpdir(), "timing-"));
const names = ["owner", "stranger", "limited"] as const;
const keys = Object.fromEntries(names.map((name) => [name, createKey()])) as Record<
  (typeof names)[number],
  string
>;
const all = ["read", "write", "delete", "lease", "prune", "copy", "admin"];
const grants = { all: ["*"], limited: ["mine/*"] };
writeFileSync(
  path.join(folder, "auth.json"),
  JSON.stringify({
    tenants: { own: { schema: "own" }, other: { schema: "other" } },
    keys: names.map((name) => ({ id: name, sha256: hashKey(keys[name]) })),
    principals: names.map((name) => ({
      name,
      keys: [name],
      tenant: name === "stranger" ? "other" : "own",
      grants: [{ operations: all, threads: name === "limited" ? grants.limited : grants.all }],
    })),
  }),
  { mode: 0o600 },
);
const main = fileURLToPath(new URL("../src/cli/main.js", import.meta.url));
const flags = ["--port", "0", "--data-dir", path.join(folder, "data"), "--log-level", "error"];
const server = spawn(
  process.execPath,
  [main, "serve", ...flags, "--auth-file", path.join(folder, "auth.json")],
  { stdio: ["ignore", "pipe", "inherit"] },
);
const url = await new Promise<URL>((resolve) => {
  let text = "";
  server.stdout.on("data", (chunk) => {
    text += chunk;
    const [, at] = /listens on (\S+)/.exec(text) ?? [];
    if (at && text.includes("is ready")) resolve(new URL(at));
  });
});

const agents = Object.fromEntries(
  names.map((name) => [name, new http.Agent({ keepAlive: true, maxSockets: 1 })]),
);
/** Asks, and returns the milliseconds it took and the whole answer. */
function ask(name: (typeof names)[number], rpc: string, request: object) {
  const body = JSON.stringify(request);
  const began = performance.now();
  return new Promise<{ ms: number; answer: string }>((resolve, reject) => {
    http
      .request(
        new URL(`/checkpointd.v1.${rpc}`, url),
        {
          method: "POST",
          agent: agents[name] as http.Agent,
          headers: { "content-type": "application/json", authorization: `Bearer ${keys[name]}` },
        },
        (response) => {
          let text = "";
          response.on("data", (chunk) => {
            text += chunk;
          });
          response.on("end", () =>
            resolve({ ms: performance.now() - began, answer: `${response.statusCode} ${text}` }),
          );
        },
      )
      .on("error", reject)
      .end(body);
  });
}

for (let i = 0; i < 50; i++) {
  await ask("owner", "CheckpointService/Put", {
    threadId: "there",
    checkpointId: String(i).padStart(3, "0"),
    checkpointJson: '{"v": 4, "channel_versions": {"c": "1"}}',
    blobs: [{ channel: "c", version: "1", value: { type: "bytes", data: "x".repeat(4_000) } }],
  });
}

/** Of ranks: z of the rank sum of the first sample, in standard deviations, and both medians. */
function compare(there: readonly number[], none: readonly number[]) {
  const ranked = [
    ...there.map((ms) => ({ ms, first: true })),
    ...none.map((ms) => ({ ms, first: false })),
  ]
    .sort((a, b) => a.ms - b.ms)
    .map((each, i) => ({ ...each, rank: i + 1 }));
  const [n, m] = [there.length, none.length];
  const sum = ranked.filter(({ first }) => first).reduce((total, { rank }) => total + rank, 0);
  const u = sum - (n * (n + 1)) / 2;
  const z = (u - (n * m) / 2) / Math.sqrt((n * m * (n + m + 1)) / 12);
  const median = (sample: readonly number[]) =>
    [...sample].sort((a, b) => a - b)[sample.length >> 1] as number;
  return { z, there: median(there), none: median(none), chance: u / (n * m) };
}

const questions: [(typeof names)[number], string, (threadId: string) => object][] = [
  ["stranger", "CheckpointService/GetTuple", (threadId) => ({ threadId })],
  ["stranger", "ThreadService/GetThread", (threadId) => ({ threadId })],
  ["limited", "CheckpointService/GetTuple", (threadId) => ({ threadId })],
  ["limited", "CheckpointService/DeleteThread", (threadId) => ({ threadId })],
];
for (const [name, rpc, request] of questions) {
  const times: Record<string, number[]> = { there: [], none: [] };
  const answers = new Set<string>();
  for (let i = 0; i < 200; i++) await ask(name, rpc, request("none!"));
  for (let i = 0; i < tries; i++) {
    // Names of one length.
    const thread = Math.random() < 0.5 ? "there" : "none!";
    const { ms, answer } = await ask(name, rpc, request(thread));
    (times[thread === "there" ? "there" : "none"] as number[]).push(ms);
    answers.add(answer.replaceAll(thread, ""));
  }
  const { z, there, none, chance } = compare(times.there ?? [], times.none ?? []);
  console.log(
    `${name} ${rpc}: ${answers.size} answer; median ${(there * 1000).toFixed(0)} us where the thread is there, ` +
      `${(none * 1000).toFixed(0)} us where it is not; z ${z.toFixed(2)}, a guess from one time is right with ${(100 * Math.max(chance, 1 - chance)).toFixed(1)} %`,
  );
}
server.kill("SIGTERM");
await new Promise((resolve) => server.once("exit", resolve));
for (const agent of Object.values(agents)) agent.destroy();
rmSync(folder, { recursive: true });
