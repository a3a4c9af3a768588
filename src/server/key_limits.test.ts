/**
 * How long the names of a key may be together: as long as Postgres indexes them, and no name has a
 * limit of its own below that.
 */
import { createClient } from "@connectrpc/connect";
import { Annotation, END, START, StateGraph } from "@langchain/langgraph";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { ThreadService } from "../../gen/checkpointd/v1/thread_service_pb.js";
import { errorDetail } from "../client/retry.js";
import { ConnectSaver } from "../client/saver.js";
import { mostKeyBytes } from "../store/keys.js";
import {
  type Call,
  createTransport,
  expectHarmless,
  failureOf,
  make,
  startEdge,
} from "../testing/edge.js";
import { createRandom, randomText } from "../testing/random.js";

let edge: Awaited<ReturnType<typeof startEdge>>;
let saver: ConnectSaver;
beforeAll(async () => {
  edge = await startEdge();
  saver = ConnectSaver.fromUrl(edge.server.url);
});
afterAll(async () => {
  await saver?.end();
  await edge?.stop();
});

const value = { type: "bytes", data: new Uint8Array(1) };
/** The keys, by the names they are made of, and a call that stores one row with it. */
const keys: { most: number; fields: string[]; toCall: (texts: string[]) => Call }[] = [
  {
    most: 2678,
    fields: ["thread_id", "checkpoint_ns", "checkpoint_id"],
    toCall: ([threadId = "", checkpointNs = "", checkpointId = ""]) => ({
      rpc: "put",
      request: { threadId, checkpointNs, checkpointId, checkpointJson: "{}" },
    }),
  },
  {
    most: 2671,
    fields: ["thread_id", "checkpoint_ns", "blobs[0].channel", "blobs[0].version"],
    toCall: ([threadId = "", checkpointNs = "", channel = "", version = ""]) => ({
      rpc: "put",
      request: {
        threadId,
        checkpointNs,
        checkpointId: "1",
        checkpointJson: "{}",
        blobs: [{ channel, version, value }],
      },
    }),
  },
  {
    most: 2664,
    fields: ["thread_id", "checkpoint_ns", "checkpoint_id", "task_id"],
    toCall: ([threadId = "", checkpointNs = "", checkpointId = "", taskId = ""]) => ({
      rpc: "putWrites",
      request: {
        threadId,
        checkpointNs,
        checkpointId,
        taskId,
        taskPath: randomText(10_000),
        writes: [{ idx: 0, channel: randomText(10_000), value }],
      },
    }),
  },
];

/** Lengths of so many texts with that sum, each at least 1: now even, now one that takes almost all. */
function split(random: (below: number) => number, parts: number, sum: number): number[] {
  const weights = Array.from({ length: parts }, () => [1, 1, 20, 500][random(4)]! + random(100));
  const total = weights.reduce((a, b) => a + b, 0);
  const lengths = weights.map((weight) => Math.max(1, Math.floor((weight / total) * sum)));
  const largest = lengths.indexOf(Math.max(...lengths));
  lengths[largest]! += sum - lengths.reduce((a, b) => a + b, 0);
  return lengths;
}

describe.each(keys)("the key of $fields", ({ most, fields, toCall }) => {
  it("is what the service tells", () => {
    expect(mostKeyBytes(fields.length, fields.includes("task_id") ? 1 : 0)).toBe(most);
  });

  it("is stored with names that Postgres cannot compress, however they share it", async () => {
    const random = createRandom(most);
    for (let i = 0; i < 60; i++) {
      const lengths = split(random, fields.length, most);
      await make(edge.clients.connect, toCall(lengths.map(randomText))).catch((error) => {
        throw new Error(`${lengths}: ${error}`);
      });
    }
    // The worst: three bytes are lost before each text but the first.
    const lengths = fields.map((_, i) => (i < fields.length - 1 ? 641 : most - 641 * i));
    await make(edge.clients.connect, toCall(lengths.map(randomText)));
    const [first = 0, ...others] = lengths;
    const refused = toCall([first, ...others.slice(0, -1), others.at(-1)! + 8].map(randomText));
    expect((await failureOf(make(edge.clients.connect, refused))).rawMessage).toContain("too long");
  });

  it.each(fields)("is refused by the name of the longest, %s", async (field) => {
    const before = await edge.rowCounts();
    const texts = fields.map((each) => randomText(each === field ? 3_000 : 40));
    for (const way of ["connect", "session"] as const) {
      const error = await failureOf(make(edge.clients[way], toCall(texts)));
      const detail = errorDetail(error);
      expect(detail).toMatchObject({ reason: "TOO_LONG", field });
      expect(keys.map((key) => key.most)).toContain(Number(detail?.limit));
      expect(error.rawMessage).toMatch(/: is too long for a key of Postgres, .* 3000/);
      expect(error.rawMessage).toMatch(/ always fit, more only of what can be compressed; use /);
      expectHarmless(error.rawMessage);
    }
    expect(await edge.rowCounts()).toBe(before);
  });

  it("is stored where names are longer and repeat themselves, and found again", async () => {
    const texts = fields.map((_, i) => (i === 1 ? `${"level|".repeat(700)}${randomText(8)}` : "t"));
    await make(edge.clients.connect, toCall(texts));
    const { tuple } = await edge.clients.connect.getTuple({
      threadId: "t",
      checkpointNs: texts[1] ?? "",
    });
    if (!fields.includes("task_id")) expect(tuple?.key?.checkpointNs).toBe(texts[1]);
  });
});

it("a call that is refused takes none of those down that travel with it", async () => {
  const good = Array.from({ length: 40 }, (_, i) => keys[1]!.toCall([`good ${i}`, "", "c", "1"]));
  const bad = Array.from({ length: 5 }, () => keys[1]!.toCall(["bad", "", randomText(3_000), "1"]));
  const calls = [...good.slice(0, 20), ...bad, ...good.slice(20)];
  const settled = await Promise.allSettled(calls.map((call) => make(edge.clients.session, call)));
  expect(settled.filter(({ status }) => status === "rejected")).toHaveLength(5);
  expect(await edge.checkpoints("good %")).toBe(40);
  expect(await edge.checkpoints("bad")).toBe(0);
});

it("tells of a run id, a copy's name and a lease's thread that are too long for an index", async () => {
  const metadataJson = JSON.stringify({ run_id: randomText(3_000) });
  const run = await failureOf(
    edge.clients.connect.put({ ...wholeOf("run"), metadataJson }) as Promise<unknown>,
  );
  expect(errorDetail(run)).toMatchObject({ reason: "TOO_LONG", field: "metadata_json" });
  expect(run.rawMessage).toContain("use a shorter run id");

  const threads = createClient(ThreadService, createTransport("connect", edge.server.url));
  await edge.clients.connect.put(wholeOf("source"));
  const targetThreadId = randomText(3_000);
  const copy = await failureOf(threads.copyThread({ sourceThreadId: "source", targetThreadId }));
  expect(errorDetail(copy)).toMatchObject({
    reason: "TOO_LONG",
    field: "target_thread_id",
    limit: 6n,
  });
  const claim = await failureOf(threads.claimThreads({ owner: "o", threadId: targetThreadId }));
  expect(errorDetail(claim)).toMatchObject({ reason: "TOO_LONG", field: "thread_id" });
  expect(claim.rawMessage).toContain("use a shorter thread id");
});

const wholeOf = (threadId: string) => ({ threadId, checkpointId: "1", checkpointJson: "{}" });

const State = Annotation.Root({
  log: Annotation<string[]>({ reducer: (a, b) => a.concat(b), default: () => [] }),
});
const config = (threadId: string) => ({
  configurable: { thread_id: threadId },
  recursionLimit: 200,
});

describe("ordinary graphs", () => {
  it.each([
    [22, 25],
    [60, 40],
    [100, 40],
  ])("a join of %i nodes with names of %i letters", async (count, letters) => {
    const names = Array.from(
      { length: count },
      (_, i) =>
        `${"research_topic_worker_number_abcdefghijkl".slice(0, letters - 3)}${String(i).padStart(3, "0")}`,
    );
    const graph = new StateGraph(State) as unknown as StateGraph<
      typeof State,
      typeof State.State,
      typeof State.Update,
      string
    >;
    graph.addNode("join", () => ({ log: ["join"] }));
    for (const name of names) {
      graph.addNode(name, () => ({ log: [name] }));
      graph.addEdge(START, name as never);
    }
    graph.addEdge(names as never, "join" as never).addEdge("join" as never, END);
    const app = graph.compile({ checkpointer: saver });
    const thread = config(`join of ${count} nodes of ${letters}`);
    await app.invoke({ log: [] }, thread);
    const { values, next } = await app.getState(thread);
    expect([...values.log].sort()).toEqual(["join", ...names].sort());
    expect(next).toEqual([]);
    expect((await saver.threads.get(thread.configurable.thread_id))?.status).toBe("completed");
  });

  it.each([
    [12, 60],
    [25, 25],
  ])("subgraphs %i levels deep with names of %i letters", async (depth, letters) => {
    let app = new StateGraph(State)
      .addNode("leaf", () => ({ log: ["leaf"] }))
      .addEdge(START, "leaf")
      .compile();
    for (let level = 0; level < depth; level++) {
      const name = `sub${level}_`.padEnd(letters, "x");
      const outer = new StateGraph(State).addNode(name, app).addEdge(START, name);
      app = outer.compile(level === depth - 1 ? { checkpointer: saver } : {}) as never;
    }
    const thread = config(`${depth} levels of ${letters}`);
    expect(await app.invoke({ log: [] }, thread)).toEqual({ log: ["leaf"] });
    const { rows } = await edge.sql.query(
      "select max(length(checkpoint_ns)) as longest from checkpoints where thread_id = $1",
      [thread.configurable.thread_id],
    );
    expect(rows[0].longest).toBeGreaterThan(1_024);
  });

  it.each([513, 600, 1_500, 3_000])("a thread id of %i letters", async (letters) => {
    const app = new StateGraph(State)
      .addNode("a", () => ({ log: ["a"] }))
      .addEdge(START, "a")
      .compile({ checkpointer: saver });
    const thread = config("long thread ".padEnd(letters, "x"));
    await app.invoke({ log: [] }, thread);
    expect((await app.getState(thread)).values).toEqual({ log: ["a"] });
    expect((await saver.threads.get(thread.configurable.thread_id))?.status).toBe("completed");
  });

  it("10,001 channels", { timeout: 120_000 }, async () => {
    const fields = Object.fromEntries(
      Array.from({ length: 10_001 }, (_, i) => [`c${i}`, Annotation<number>()]),
    );
    const app = new StateGraph(Annotation.Root(fields))
      .addNode("a", () => Object.fromEntries(Object.keys(fields).map((name, i) => [name, i])))
      .addEdge(START, "a")
      .compile({ checkpointer: saver });
    await app.invoke({ c0: 0 }, config("many channels"));
    const { values } = await app.getState(config("many channels"));
    expect(Object.keys(values)).toHaveLength(10_001);
    expect(values.c10000).toBe(10_000);
  });
});
