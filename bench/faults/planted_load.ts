/** A load in which whatever the service gets wrong shows: everything twice, together, and late. */
import { createHash, randomUUID } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import { uuid6 } from "@langchain/langgraph-checkpoint";
import type { ConnectSaver } from "../../src/index.js";
import type { Answer, Blob, Call, Event } from "./call_history.js";

type Client = typeof import("../../src/index.js");

const now = () => Number(process.hrtime.bigint()) / 1e6;
/** Of a value as it is stored: bytes as they are, all else as JSON. */
const sumOf = (value: unknown) =>
  createHash("md5")
    .update(value instanceof Uint8Array ? value : JSON.stringify(value))
    .digest("hex");
const pick = <T>(from: readonly T[]): T => from[Math.floor(Math.random() * from.length)] as T;
const chance = (share: number) => Math.random() < share;
const pause = (mostMs: number) => sleep(Math.random() * mostMs);
const bytes = (length: number) =>
  new Uint8Array(Buffer.from(randomUUID().repeat(Math.ceil(length / 36))));

/** Where LangGraph puts the writes to its special channels. */
const special = { __error__: -1, __scheduled__: -2, __interrupt__: -3, __resume__: -4 } as const;
const specialChannels = Object.keys(special) as (keyof typeof special)[];
const idxOf = (channel: string) =>
  special[channel as keyof typeof special] ?? Number(channel.slice(1));

const leaseMs = 1_000;
const allStatuses = ["completed", "pending", "interrupted", "failed"] as const;

/** An agent: a saver, and the history of what was called on it. */
export class Agent {
  readonly events: Event[] = [];
  readonly #saver: ConnectSaver;
  readonly #client: Client;
  readonly #name: string;
  readonly #timeoutMs: number;
  #ops = 0;
  #lateMs = 0;
  #timer: NodeJS.Timeout;

  constructor(client: Client, url: string, name: string, timeoutMs: number) {
    this.#client = client;
    this.#name = name;
    this.#timeoutMs = timeoutMs;
    this.#saver = client.ConnectSaver.fromUrl(url, { timeoutMs });
    let last = performance.now();
    this.#timer = setInterval(() => {
      const late = performance.now() - last - 20;
      last += late + 20;
      if (late > 20) this.#lateMs += late;
    }, 20);
  }

  async end(): Promise<void> {
    clearInterval(this.#timer);
    await Promise.race([this.#saver.end(), sleep(1_000)]);
  }

  async #call<Result>(
    thread: string,
    what: Call,
    use: () => Promise<Result>,
    told: (result: Result) => Partial<Answer> = () => ({}),
  ): Promise<Result | undefined> {
    const op = this.#ops++;
    const agent = this.#name;
    const { events } = this;
    const lateMs = this.#lateMs;
    const answer = (outcome: Answer["outcome"], rest: Partial<Answer>) =>
      events.push({
        e: "answer",
        op,
        agent,
        at: now(),
        outcome,
        lagMs: this.#lateMs - lateMs,
        ...rest,
      });
    events.push({ e: "invoke", op, agent, at: now(), thread, timeoutMs: this.#timeoutMs, ...what });
    try {
      const result = await use();
      answer("ok", told(result));
      return result;
    } catch (error) {
      const { code } = error as { code?: number };
      const reason = this.#client.errorDetail(error)?.reason;
      answer("failed", {
        code: code === 3 ? "invalid_argument" : String(code),
        ...(reason ? { reason } : {}),
      });
      return undefined;
    }
  }

  #config(thread: string, checkpoint?: string | null, lease?: string) {
    return {
      configurable: {
        thread_id: thread,
        checkpoint_ns: "",
        ...(checkpoint ? { checkpoint_id: checkpoint } : {}),
        ...(lease ? { [this.#client.LEASE_TOKEN]: lease } : {}),
      },
    };
  }

  /** Puts these values as a new checkpoint; its id, also where it failed. */
  async put(
    thread: string,
    values: Record<string, unknown>,
    {
      parent = null,
      lease,
      version,
    }: { parent?: string | null; lease?: string; version?: number } = {},
  ): Promise<{ id: string; done: boolean }> {
    const id = uuid6(1);
    const versions: Record<string, number> = {};
    const blobs: Record<string, Blob> = {};
    for (const [channel, value] of Object.entries(values)) {
      versions[channel] = version ?? this.#saver.getNextVersion(undefined);
      blobs[channel] = { version: versions[channel], sum: sumOf(value) };
    }
    const checkpoint = {
      v: 4,
      id,
      ts: new Date().toISOString(),
      channel_values: values,
      channel_versions: versions,
      versions_seen: {},
    };
    const metadata = { source: "loop" as const, step: 1, parents: {} };
    const call: Call = { kind: "put", checkpoint: id, parent, blobs, lease: lease ?? null };
    const config = this.#config(thread, parent, lease);
    const done = await this.#call(thread, call, () =>
      this.#saver.put(config, checkpoint, metadata, versions),
    );
    return { id, done: done !== undefined };
  }

  /** Stores writes to these channels. */
  async putWrites(
    thread: string,
    checkpoint: string,
    task: string,
    channels: readonly string[],
    lease?: string,
  ) {
    const values = channels.map((channel) => [channel, bytes(100)] as [string, Uint8Array]);
    const writes = values.map(([channel, value]) => ({
      idx: idxOf(channel),
      channel,
      sum: sumOf(value),
    }));
    const call: Call = { kind: "putWrites", checkpoint, task, writes, lease: lease ?? null };
    await this.#call(thread, call, () =>
      this.#saver.putWrites(this.#config(thread, checkpoint, lease), values, task),
    );
  }

  getTuple(thread: string, checkpoint?: string) {
    return this.#call(
      thread,
      { kind: "getTuple", checkpoint: checkpoint ?? null },
      () => this.#saver.getTuple(this.#config(thread, checkpoint)),
      (tuple) => {
        if (!tuple) return { checkpoint: null };
        const values = Object.entries(tuple.checkpoint.channel_values);
        return {
          checkpoint: tuple.checkpoint.id,
          blobs: Object.fromEntries(values.map(([channel, value]) => [channel, sumOf(value)])),
          writes: (tuple.pendingWrites ?? []).map(([task, channel, value]) => [
            task,
            idxOf(channel),
            sumOf(value),
          ]),
        };
      },
    );
  }

  async list(thread: string): Promise<void> {
    const read = async () => {
      const checkpoints: string[] = [];
      for await (const { checkpoint } of this.#saver.list(this.#config(thread)))
        checkpoints.push(checkpoint.id);
      return checkpoints;
    };
    await this.#call(thread, { kind: "list" }, read, (checkpoints) => ({ checkpoints }));
  }

  async deleteThread(thread: string): Promise<void> {
    await this.#call(thread, { kind: "deleteThread" }, () => this.#saver.deleteThread(thread));
  }

  async claim(thread: string): Promise<string | undefined> {
    const owner = this.#name;
    const claimed = await this.#call(
      thread,
      { kind: "claim", owner, leaseMs },
      () =>
        this.#saver.threads.claim({
          threadId: thread,
          owner,
          leaseMs,
          graceMs: 0,
          status: allStatuses,
        }),
      (leases) => ({ token: leases[0]?.token ?? null }),
    );
    return claimed?.[0]?.token;
  }

  async renew(thread: string, token: string): Promise<void> {
    await this.#call(thread, { kind: "renew", token, leaseMs }, () =>
      this.#saver.threads.renew(thread, token, leaseMs),
    );
  }

  async release(thread: string, token: string): Promise<void> {
    await this.#call(thread, { kind: "release", token }, () =>
      this.#saver.threads.release(thread, token),
    );
  }
}

/** Runs the load for so long; the threads' names begin with `prefix`. */
export async function runLoad(
  agents: readonly Agent[],
  hasty: Agent,
  prefix: string,
  forMs: number,
): Promise<void> {
  const until = performance.now() + forMs;
  const isOver = () => performance.now() > until;
  let count = 0;
  const worker = async (use: (name: string) => Promise<void>) => {
    while (!isOver()) {
      await use(`${prefix}${count++}`);
      await pause(3);
    }
  };
  const shared = ["x", "y", "z"].map((name) => ({
    thread: `${prefix}shared-${name}`,
    ids: [] as string[],
  }));
  await Promise.all([
    ...Array.from({ length: 12 }, () =>
      worker((name) => live(chance(0.1) ? hasty : pick(agents), name, isOver)),
    ),
    ...Array.from({ length: 6 }, () => worker(() => share(pick(agents), pick(shared)))),
    ...Array.from({ length: 6 }, (_, i) =>
      worker(() => compete(pick(agents), `${prefix}lease-${i % 3}`, isOver)),
    ),
    worker((name) => beginAnew(agents[0]!, agents[1]!, name)),
  ]);
}

/** A thread of one agent, from its first checkpoint to its end. */
async function live(agent: Agent, thread: string, isOver: () => boolean): Promise<void> {
  const channels = chance(0.15) ? 12 : 2;
  const grows = chance(0.2);
  const steps = chance(0.1) ? 40 : 2 + Math.floor(Math.random() * 5);
  const ids: string[] = [];
  let messages = grows ? randomUUID().repeat(600) : "";
  let parent: string | null = null;
  for (let step = 0; step < steps && !isOver(); step++) {
    const values: Record<string, unknown> = Object.fromEntries(
      Array.from({ length: channels }, (_, i) => [`c${i}`, bytes(200)]),
    );
    if (grows) {
      messages += randomUUID().repeat(10);
      // What is stored of it lies at its beginning, or behind a head that is new.
      values.messages = chance(0.5) ? `${step}:${messages}` : messages;
    }
    const putting = agent.put(thread, values, { parent });
    // What Postgres refuses, at a time with others.
    if (chance(0.05)) void agent.put(`${thread}-poison`, { a: bytes(10) });
    const { id } = await putting;
    parent = id;
    ids.push(id);
    if (steps > 20) continue;
    await Promise.all(
      Array.from({ length: 1 + Math.floor(Math.random() * 3) }, (_, i) =>
        agent.putWrites(thread, id, `task-${i}`, ["c0", "c1", "c2"]),
      ),
    );
    if (chance(0.3)) await agent.putWrites(thread, id, "task-0", ["c0", "c1", "c2"]);
    if (chance(0.3)) {
      await agent.putWrites(thread, id, "special", specialChannels.slice(0, 3));
      await agent.putWrites(thread, id, "special", specialChannels.slice(1));
    }
    if (chance(0.5)) await agent.getTuple(thread);
    if (chance(0.3)) await agent.getTuple(thread, pick(ids));
  }
  if (steps > 20 || chance(0.4)) await agent.list(thread);
  if (!chance(0.5)) return;
  await agent.deleteThread(thread);
  await agent.getTuple(thread);
  await pause(500);
  await agent.getTuple(thread);
  await agent.list(thread);
  if (chance(0.3)) {
    await agent.put(thread, { c0: bytes(100) });
    await agent.getTuple(thread);
  }
}

/** One operation on a thread of all. */
async function share(
  agent: Agent,
  { thread, ids }: { thread: string; ids: string[] },
): Promise<void> {
  const id = ids.length > 0 ? pick(ids.slice(-4)) : undefined;
  const dice = Math.random();
  if (id === undefined || dice < 0.3) ids.push((await agent.put(thread, { c0: bytes(100) })).id);
  else if (dice < 0.4)
    await agent.putWrites(thread, id, `task-${Math.floor(Math.random() * 3)}`, ["c0", "c1"]);
  else if (dice < 0.6) await agent.getTuple(thread);
  else if (dice < 0.9) await agent.getTuple(thread, id);
  else if (dice < 0.97) await agent.list(thread);
  else await agent.deleteThread(thread);
}

/** A thread that several want: who has its lease writes, and sometimes once too often. */
async function compete(agent: Agent, thread: string, isOver: () => boolean): Promise<void> {
  if (!(await agent.getTuple(thread))) await agent.put(thread, { c0: bytes(100) });
  const lease = await agent.claim(thread);
  if (!lease) {
    await pause(150);
    return;
  }
  const isLate = chance(0.4);
  for (let step = 0; step < 3 && !isOver(); step++) {
    if (isLate && step === 1) await sleep(leaseMs * 1.3);
    const { id } = await agent.put(thread, { c0: bytes(100) }, { lease });
    await agent.putWrites(thread, id, "task", ["c0", "c1"], lease);
    if (chance(0.3)) await agent.renew(thread, lease);
  }
  // Also if it is lost.
  if (isLate) await agent.renew(thread, lease);
  await agent.release(thread, lease);
  if (chance(0.3)) await agent.put(thread, { c0: bytes(100) }, { lease });
}

/** A thread that is begun anew by another, with the versions it had. */
async function beginAnew(one: Agent, other: Agent, thread: string): Promise<void> {
  const begun = () => randomUUID().repeat(600);
  const messages = begun();
  const first = await one.put(thread, { messages }, { version: 1 });
  await other.deleteThread(thread);
  await other.put(thread, { messages: begun() }, { version: 1 });
  await one.put(thread, { messages: messages + randomUUID() }, { version: 2, parent: first.id });
  await one.getTuple(thread);
  await pause(100);
}
