/**
 * One agent process of a fault run: calls through ConnectSaver, and a history of what it called and
 * heard. Takes its plan as JSON; ends by itself, or when its standard input does.
 */
import { createHash } from "node:crypto";
import { openSync, writeSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { pathToFileURL } from "node:url";
import type { RunnableConfig } from "@langchain/core/runnables";
import { uuid6 } from "@langchain/langgraph-checkpoint";
import type { ConnectSaver, ConnectSaverUrlOptions } from "../../src/index.js";
import { createRandom } from "../../src/testing/random.js";
import type { Answer, Blob, Call } from "./call_history.js";

/** What an agent is started with. */
export interface AgentPlan {
  /** Its name in the history. */
  name: string;
  url: string;
  /** The folder of the compiled client. */
  dist: string;
  history: string;
  /** Begins the names of its threads. */
  prefix: string;
  inFlight: number;
  seconds: number;
  timeoutMs: number;
  seed: number;
  saver: ConnectSaverUrlOptions;
}

const plan = JSON.parse(process.argv[2] ?? "{}") as AgentPlan;
const client = (await import(
  pathToFileURL(`${plan.dist}/src/index.js`).href
)) as typeof import("../../src/index.js");
const saver: ConnectSaver = client.ConnectSaver.fromUrl(plan.url, {
  ...plan.saver,
  timeoutMs: plan.timeoutMs,
});
const below = createRandom(plan.seed);
const random = () => below(1_000_000) / 1_000_000;
const file = openSync(plan.history, "a");
/** At once: what waits in a stream dies with a process that is killed, after its call was made. */
const history = { write: (line: string) => writeSync(file, line) };
const now = () => Number(process.hrtime.bigint()) / 1e6;
let isOver = false;
let nextOp = 0;

// By how much this process was late, so that it is not taken for the service's fault.
let lateBy: { at: number; ms: number }[] = [];
let lastTick = performance.now();
setInterval(() => {
  const tick = performance.now();
  const ms = tick - lastTick - 50;
  lastTick = tick;
  if (ms > 100) lateBy.push({ at: now(), ms });
  lateBy = lateBy.filter(({ at }) => at > now() - 120_000);
}, 50).unref();

type Outcome<Result> = { ok: true; result: Result } | { ok: false; error: unknown };

/** Calls, and records it. Whether it was answered well, and with what. */
async function call<Result>(
  thread: string,
  what: Call,
  use: () => Promise<Result>,
  told: (result: Result) => Partial<Answer> = () => ({}),
): Promise<Outcome<Result>> {
  const op = nextOp++;
  const { name: agent, timeoutMs } = plan;
  const began = now();
  history.write(
    `${JSON.stringify({ e: "invoke", op, agent, at: began, thread, timeoutMs, ...what })}\n`,
  );
  const answer = (rest: Partial<Answer>) => {
    const lagMs = lateBy.reduce((sum, late) => sum + (late.at > began ? late.ms : 0), 0);
    history.write(`${JSON.stringify({ e: "answer", op, agent, at: now(), lagMs, ...rest })}\n`);
  };
  try {
    const result = await use();
    answer({ outcome: "ok", ...told(result) });
    return { ok: true, result };
  } catch (error) {
    const { code, rawMessage } = error as { code?: number; rawMessage?: string };
    const reason = client.errorDetail(error)?.reason;
    const word = code === undefined ? String(rawMessage ?? error) : String(client.Code[code]);
    const more = reason ? { reason } : { message: String((error as Error).message).slice(0, 200) };
    answer({ outcome: "failed", code: word, ...more });
    if (code === undefined) process.stderr.write(`${agent}: ${(error as Error).stack}\n`);
    return { ok: false, error };
  }
}

const bytesOf = (seed: string, length: number) =>
  new Uint8Array(Buffer.alloc(length, createHash("sha256").update(seed).digest()));
/** Of a value as it is stored: bytes as they are, all else as JSON. */
const sumOf = (value: unknown) =>
  createHash("md5")
    .update(value instanceof Uint8Array ? value : JSON.stringify(value))
    .digest("hex");

const configOf = (thread: string, id?: string, lease?: string): RunnableConfig => ({
  configurable: {
    thread_id: thread,
    checkpoint_ns: "",
    ...(id ? { checkpoint_id: id } : {}),
    ...(lease ? { [client.LEASE_TOKEN]: lease } : {}),
  },
});

async function put(thread: string, step: number, state: ThreadState): Promise<boolean> {
  const id = uuid6(step);
  const values: Record<string, unknown> = {};
  for (const channel of ["a", "b"]) values[channel] = bytesOf(`${thread}/${id}/${channel}`, 600);
  if (state.grows) {
    state.messages += `${step}:${id} `.padEnd(7_000, "lorem ipsum ");
    // What is stored of it lies at its beginning, or behind a head that is new.
    values.messages = step % 3 === 0 ? `${step}:${state.messages}` : state.messages;
  }
  const newVersions: Record<string, number> = {};
  const blobs: Record<string, Blob> = {};
  for (const [channel, value] of Object.entries(values)) {
    const version = saver.getNextVersion(state.versions[channel]);
    newVersions[channel] = version;
    blobs[channel] = { version, sum: sumOf(value) };
  }
  state.versions = { ...state.versions, ...newVersions };
  const checkpoint = {
    v: 4,
    id,
    ts: new Date().toISOString(),
    channel_values: values,
    channel_versions: state.versions,
    versions_seen: {},
  };
  const metadata = { source: "loop" as const, step, parents: {} };
  const { parent = null, lease = null } = state;
  const done = await call(thread, { kind: "put", checkpoint: id, parent, blobs, step, lease }, () =>
    saver.put(configOf(thread, state.parent, state.lease), checkpoint, metadata, newVersions),
  );
  state.parent = id;
  return done.ok;
}

async function putWrites(thread: string, state: ThreadState): Promise<boolean> {
  const checkpoint = state.parent!;
  const task = `task-${nextOp}`;
  const values = [0, 1, 2].map((idx) => bytesOf(`${task}/${checkpoint}/${idx}`, 300));
  const writes = values.map((value, idx) => ({ idx, channel: `c${idx}`, sum: sumOf(value) }));
  const { lease = null } = state;
  const done = await call(thread, { kind: "putWrites", checkpoint, task, writes, lease }, () =>
    saver.putWrites(
      configOf(thread, checkpoint, state.lease),
      values.map((value, idx) => [`c${idx}`, value]),
      task,
    ),
  );
  return done.ok;
}

type Tuple = Awaited<ReturnType<ConnectSaver["getTuple"]>>;

function describe(tuple: Tuple): Partial<Answer> {
  if (!tuple) return { checkpoint: null, blobs: {}, writes: [] };
  const { id, channel_values } = tuple.checkpoint;
  const blobs = Object.fromEntries(
    Object.entries(channel_values).map(([channel, value]) => [channel, sumOf(value)]),
  );
  // The channel's name ends with the idx.
  const writes = (tuple.pendingWrites ?? []).map(
    ([task, channel, value]) =>
      [task, Number(channel.slice(1)), sumOf(value)] as [string, number, string],
  );
  return { checkpoint: id, blobs, writes };
}

const getTuple = (thread: string, checkpoint?: string) =>
  call(
    thread,
    { kind: "getTuple", checkpoint: checkpoint ?? null },
    () => saver.getTuple(configOf(thread, checkpoint)),
    describe,
  );

const list = (thread: string) =>
  call(
    thread,
    { kind: "list" },
    async () => {
      const ids: string[] = [];
      for await (const { checkpoint } of saver.list(configOf(thread))) ids.push(checkpoint.id);
      return ids;
    },
    (checkpoints) => ({ checkpoints }),
  );

interface ThreadState {
  versions: Record<string, number>;
  grows: boolean;
  messages: string;
  parent?: string;
  lease?: string;
}

/** One thread from its first checkpoint on. Goes on after failures, as a graph that is resumed. */
async function runThread(thread: string, kind: number): Promise<void> {
  const state: ThreadState = { versions: {}, grows: kind % 4 === 1, messages: "" };
  for (let step = 0; step < 10 && !isOver; step++) {
    await put(thread, step, state);
    if (isOver) return;
    await putWrites(thread, state);
    if (random() < 0.4) await getTuple(thread);
    if (random() < 0.1) await getTuple(thread, state.parent);
  }
  if (random() < 0.5) await list(thread);
  if (kind % 5 === 2 && !isOver) {
    await call(thread, { kind: "deleteThread" }, () => saver.deleteThread(thread));
    await getTuple(thread);
    if (random() < 0.5) {
      // Its name is used again.
      await put(thread, 0, { versions: {}, grows: false, messages: "" });
      await getTuple(thread);
    }
  }
}

/** A thread that several agents want: who holds its lease writes. */
async function compete(thread: string): Promise<void> {
  const leaseMs = 1_500;
  const owner = `${plan.name}-${nextOp}`;
  // That the thread is there, which a claim asks for.
  const state: ThreadState = { versions: {}, grows: false, messages: "" };
  const first = await getTuple(thread);
  if (first.ok && !first.result) await put(thread, 0, state);
  const claimed = await call(
    thread,
    { kind: "claim", owner, leaseMs },
    () =>
      saver.threads.claim({ threadId: thread, owner, leaseMs, graceMs: 0, status: allStatuses }),
    (threads) => ({
      token: threads[0]?.token ?? null,
    }),
  );
  const [held] = claimed.ok ? claimed.result : [];
  if (!held) {
    await sleep(30 + random() * 100);
    return;
  }
  const token = held.token;
  state.lease = token;
  for (let step = 1; step < 4 && !isOver; step++) {
    if (!(await put(thread, step, state)) || !(await putWrites(thread, state))) break;
    if (random() < 0.3) {
      await call(thread, { kind: "renew", token, leaseMs }, () =>
        saver.threads.renew(thread, token, leaseMs),
      );
    }
    // Now and then it is late, and must not write any more.
    if (random() < 0.1) await sleep(leaseMs * 1.2);
  }
  if (random() < 0.8) {
    await call(thread, { kind: "release", token }, () => saver.threads.release(thread, token));
  }
}

const allStatuses = ["completed", "pending", "interrupted", "failed"] as const;

async function work(worker: number): Promise<void> {
  for (let n = 0; !isOver; n++) {
    if (worker === 0) await compete(`${plan.prefix}-shared-${n % 3}`);
    else if (worker === 1 && n % 2 === 1) await getTuple(`${plan.prefix}-${other()}-2-${n}`);
    else await runThread(`${plan.prefix}-${plan.name}-${worker}-${n}`, worker + n);
    // Not a tight loop when nothing can be reached.
    await sleep(random() * 5);
  }
}

/** Another agent of the run, by whose name threads may be read. */
const other = () => `a${Math.floor(random() * 3)}`;

process.stdin.on("data", () => {});
process.stdin.on("end", () => {
  isOver = true;
});
setTimeout(() => {
  isOver = true;
}, plan.seconds * 1000).unref();
await Promise.all(Array.from({ length: plan.inFlight }, (_, worker) => work(worker)));
history.write(`${JSON.stringify({ e: "end", agent: plan.name, at: now() })}\n`);
await Promise.race([saver.end(), sleep(3_000)]);
process.exit(0);
