/** Runs that never happened, of a store in memory: right ones, and ones with one kind of error. */
import { createRandom } from "../../src/testing/random.js";
import type { Call, Event, Invoke, Rows } from "./call_history.js";

/** What a store can get wrong. */
export const errors = [
  "an acknowledged write that was not carried out",
  "a checkpoint without one of its blobs",
  "a putWrites without its last write",
  "a write kept where it is to be replaced",
  "a write replaced where it is to be kept",
  "a write that is stored twice",
  "a delete that leaves writes",
  "a delete that leaves checkpoints",
  "a write that is carried out again after its answer",
  "a stale read",
  "a read of an older checkpoint",
  "a read of another value",
  "a list that leaves one out",
  "a list that repeats one",
  "a list in another order",
  "a claim of a thread that is held",
  "a write under a lease that is lost",
  "a refused write that is carried out",
] as const;
export type StoreError = (typeof errors)[number];

interface State {
  checkpoints: Map<string, { parent: string | null; versions: Record<string, string> }>;
  blobs: Map<string, string>;
  writes: Map<string, { checkpoint: string; task: string; idx: number; sum: string }>;
  lease: { token: string; expires: number } | undefined;
}

type Result = Record<string, unknown> & { refused?: boolean };

/** An operation on its way: the moments at which the store has it, and when it is answered. */
interface Running {
  invoke: Invoke;
  tries: number[];
  answered: number | undefined;
  failed: boolean;
}

/** One thread, a few agents, and what they and SQL saw. */
export function simulate(seed: number, error?: StoreError): { events: Event[]; rows: Rows } {
  const random = createRandom(seed);
  const chance = (percent: number) => random(100) < percent;
  const errs = (which: StoreError) => error === which && chance(40);
  const deletes = chance(60);
  const state: State = {
    checkpoints: new Map(),
    blobs: new Map(),
    writes: new Map(),
    lease: undefined,
  };
  let earlier = copy(state);
  const events: Event[] = [];
  const ids: string[] = [];
  let count = 0;
  let token: string | undefined;

  const nextCall = (agent: string): Call => {
    const n = count++;
    const id = ids.length > 0 ? ids[Math.max(0, ids.length - 1 - random(3))] : undefined;
    const dice = random(100);
    const lease = chance(30) ? token : undefined;
    if (dice < 30 || id === undefined) {
      // Sometimes the same once more, as an agent does that was not answered.
      const checkpoint = id !== undefined && chance(10) ? id : `c${String(n).padStart(4, "0")}`;
      if (checkpoint !== id) ids.push(checkpoint);
      const channels = ["a", "b", "c"].slice(0, 1 + random(3));
      const blobs = Object.fromEntries(
        channels.map((channel) => [
          channel,
          { version: checkpoint, sum: `${checkpoint}${channel}` },
        ]),
      );
      return { kind: "put", checkpoint, parent: null, blobs, ...(lease ? { lease } : {}) };
    }
    if (dice < 50) {
      const special = chance(40);
      const writes = Array.from({ length: 1 + random(3) }, (_, i) => ({
        idx: special ? -1 - i : i,
        channel: "a",
        sum: `w${n}.${i}`,
      }));
      const task = `t${random(3)}`;
      return { kind: "putWrites", checkpoint: id, task, writes, ...(lease ? { lease } : {}) };
    }
    if (dice < 66) return { kind: "getTuple" };
    if (dice < 76) return { kind: "getTuple", checkpoint: id };
    if (dice < 86) return { kind: "list" };
    if (dice < 90 && deletes) return { kind: "deleteThread" };
    if (dice < 95 || token === undefined) return { kind: "claim", owner: agent, leaseMs: 40 };
    return chance(50) ? { kind: "renew", token } : { kind: "release", token };
  };

  const run = (call: Call, now: number): Result => {
    if (call.kind === "put" || call.kind === "putWrites") {
      const held = !call.lease || (state.lease?.token === call.lease && state.lease.expires > now);
      if (!held && errs("a refused write that is carried out")) {
        write(state, call, errs);
        return { refused: true };
      }
      if (!held && !errs("a write under a lease that is lost")) return { refused: true };
      write(state, call, errs);
      return {};
    }
    if (call.kind === "deleteThread") {
      const [first] = state.checkpoints;
      state.checkpoints.clear();
      if (first && errs("a delete that leaves checkpoints")) state.checkpoints.set(...first);
      else state.blobs.clear();
      if (!errs("a delete that leaves writes")) state.writes.clear();
      state.lease = undefined;
      return {};
    }
    if (call.kind === "claim") {
      const free = !state.lease || state.lease.expires <= now;
      if (!free && !errs("a claim of a thread that is held")) return { token: null };
      state.lease = { token: `l${count++}`, expires: now + call.leaseMs };
      return { token: state.lease.token };
    }
    if (call.kind === "renew" || call.kind === "release") {
      if (state.lease?.token !== call.token) return call.kind === "renew" ? { refused: true } : {};
      if (call.kind === "release") state.lease = undefined;
      else if (state.lease.expires <= now) return { refused: true };
      else state.lease.expires = now + 40;
      return {};
    }
    if (call.kind === "getTuple") return read(errs("a stale read") ? earlier : state, call, errs);
    return {};
  };

  const agents = Array.from({ length: 1 + random(4) }, (_, i) => ({
    name: `a${i}`,
    op: 0,
    free: random(20),
  }));
  const waiting: { at: number; order: number; act: (now: number) => void }[] = [];
  let order = 0;
  const at = (time: number, act: (now: number) => void) => {
    waiting.push({ at: time, order: order++, act });
  };
  let left = 10 + random(40);
  // Deletes and late writes of an error happen while all goes on.
  const begin = (agent: (typeof agents)[number]) => (now: number) => {
    if (left-- <= 0) return;
    const call = nextCall(agent.name);
    const invoke = {
      e: "invoke",
      op: agent.op++,
      agent: agent.name,
      at: now,
      thread: "t",
      timeoutMs: 1000,
      ...call,
    } as Invoke;
    events.push(invoke);
    const tookMs = 1 + random(20);
    const unknown = chance(call.kind === "deleteThread" ? 5 : 15);
    const tries = Array.from(
      { length: unknown ? random(3) : 1 + Math.max(0, random(6) - 4) },
      () => now + 0.1 + (random(1000) / 1000) * (unknown && chance(50) ? 150 : tookMs - 0.2),
    ).sort((a, b) => a - b);
    const running: Running = {
      invoke,
      tries,
      answered: unknown ? undefined : now + tookMs,
      failed: unknown,
    };
    schedule(running);
    at(now + tookMs + 0.5 + random(10), begin(agent));
  };

  const schedule = ({ invoke, tries, answered, failed }: Running) => {
    let result: Result = {};
    const listed: string[] = [];
    const skips = answered !== undefined && errs("an acknowledged write that was not carried out");
    for (const time of tries) {
      if (invoke.kind === "list") {
        // Page by page, of which each is a look of its own; a later try goes on from there.
        for (const part of [0, 0.3, 0.6]) {
          at(time + part * ((answered ?? time + 1) - time), () => {
            const page = [...state.checkpoints.keys()].sort().reverse();
            const last = listed.at(-1);
            const rest = page.filter((id) => last === undefined || id < last);
            listed.push(...(part === 0.6 ? rest : rest.slice(0, 2)));
          });
        }
        break;
      }
      if (skips && (invoke.kind === "put" || invoke.kind === "putWrites")) continue;
      at(time, (now) => {
        result = run(invoke, now);
      });
    }
    if (answered !== undefined && errs("a write that is carried out again after its answer")) {
      if (invoke.kind === "put" || invoke.kind === "putWrites")
        at(answered + 60, () => write(state, invoke, () => false));
    }
    if (answered === undefined) {
      if (failed && chance(50)) {
        const { op, agent } = invoke;
        at(invoke.at + 5, (now) => {
          events.push({ e: "answer", op, agent, at: now, outcome: "failed", code: "unavailable" });
        });
      }
      return;
    }
    at(answered, (now) => {
      const { op, agent } = invoke;
      if (result.refused) {
        events.push({
          e: "answer",
          op,
          agent,
          at: now,
          outcome: "failed",
          code: "failed_precondition",
          reason: "LEASE_LOST",
        });
        return;
      }
      if (invoke.kind === "list") result = { checkpoints: spoil(listed, errs) };
      if (typeof result.token === "string") token = result.token;
      events.push({ e: "answer", op, agent, at: now, outcome: "ok", ...result });
    });
  };

  for (const agent of agents) at(agent.free, begin(agent));
  let snapshotAt = 0;
  while (waiting.length > 0) {
    let first = 0;
    for (let i = 1; i < waiting.length; i++) {
      const [a, b] = [waiting[i]!, waiting[first]!];
      if (a.at < b.at || (a.at === b.at && a.order < b.order)) first = i;
    }
    const [next] = waiting.splice(first, 1);
    if (next!.at > snapshotAt + 60) {
      earlier = copy(state);
      snapshotAt = next!.at;
    }
    next!.act(next!.at);
  }
  return { events, rows: toRows(state) };
}

function write(state: State, call: Call, errs: (which: StoreError) => boolean): void {
  if (call.kind === "put") {
    const blobs = Object.entries(call.blobs);
    const versions = Object.fromEntries(
      blobs.map(([channel, { version }]) => [channel, String(version)]),
    );
    const parent = state.checkpoints.get(call.checkpoint)?.parent ?? call.parent;
    state.checkpoints.set(call.checkpoint, { parent, versions });
    if (errs("a checkpoint without one of its blobs")) blobs.pop();
    for (const [channel, { version, sum }] of blobs) {
      const key = `${channel} ${version}`;
      if (!state.blobs.has(key)) state.blobs.set(key, sum);
    }
  }
  if (call.kind !== "putWrites") return;
  let replace = call.writes.every(({ idx }) => idx < 0);
  if (
    replace
      ? errs("a write kept where it is to be replaced")
      : errs("a write replaced where it is to be kept")
  ) {
    replace = !replace;
  }
  const writes = [...call.writes];
  if (writes.length > 1 && errs("a putWrites without its last write")) writes.pop();
  if (errs("a write that is stored twice")) writes.push({ ...writes[0]!, idx: 17 });
  for (const { idx, sum } of writes) {
    const key = `${call.checkpoint} ${call.task} ${idx}`;
    if (replace || !state.writes.has(key)) {
      state.writes.set(key, { checkpoint: call.checkpoint, task: call.task, idx, sum });
    }
  }
}

function read(
  state: State,
  call: Call & { kind: "getTuple" },
  errs: (which: StoreError) => boolean,
): Result {
  const ids = [...state.checkpoints.keys()].sort();
  let id = call.checkpoint ?? ids.at(-1);
  if (!call.checkpoint && ids.length > 1 && errs("a read of an older checkpoint")) id = ids[0];
  const checkpoint = state.checkpoints.get(id ?? "");
  if (!checkpoint) return { checkpoint: null };
  const blobs: Record<string, string> = {};
  for (const [channel, version] of Object.entries(checkpoint.versions)) {
    const sum = state.blobs.get(`${channel} ${version}`);
    if (sum !== undefined) blobs[channel] = sum;
  }
  if (errs("a read of another value")) blobs.a = "other";
  const writes = [...state.writes.values()].filter((write) => write.checkpoint === id);
  return { checkpoint: id, blobs, writes: writes.map(({ task, idx, sum }) => [task, idx, sum]) };
}

function spoil(listed: string[], errs: (which: StoreError) => boolean): string[] {
  const [first] = listed;
  if (first === undefined) return listed;
  if (errs("a list that leaves one out")) return listed.slice(0, -1);
  if (errs("a list that repeats one")) return [first, ...listed];
  if (listed.length > 1 && errs("a list in another order")) return listed.toReversed();
  return listed;
}

function copy({ checkpoints, blobs, writes }: State): State {
  return {
    checkpoints: new Map(checkpoints),
    blobs: new Map(blobs),
    writes: new Map(writes),
    lease: undefined,
  };
}

function toRows({ checkpoints, blobs, writes }: State): Rows {
  const key = { thread: "t", ns: "" };
  return {
    checkpoints: [...checkpoints].map(([id, { parent, versions }]) => ({
      ...key,
      id,
      parent,
      channel_versions: versions,
    })),
    blobs: [...blobs].map(([name, sum]) => {
      const [channel = "", version = ""] = name.split(" ");
      return { ...key, channel, version, sum };
    }),
    writes: [...writes.values()].map((write) => ({ ...key, ...write })),
  };
}
