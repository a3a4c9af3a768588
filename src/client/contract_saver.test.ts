/**
 * docs/langgraph-contract.md, 2.8 and 2.10, as an agent meets them, and the five operations in any
 * order: what the direct saver would list, we list.
 */
import { Annotation, END, MemorySaver, START, StateGraph } from "@langchain/langgraph";
import {
  type BaseCheckpointSaver,
  type CheckpointMetadata,
  type CheckpointTuple,
  emptyCheckpoint,
  type PendingWrite,
  TASKS,
} from "@langchain/langgraph-checkpoint";
import { PostgresSaver } from "@langchain/langgraph-checkpoint-postgres";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { Server } from "../server/server.js";
import { createDatabase, type TestDatabase } from "../testing/postgres.js";
import { createRandom } from "../testing/random.js";
import { startTestServer } from "../testing/test_server.js";
import { ConnectSaver } from "./saver.js";

type Saver = BaseCheckpointSaver<number>;

let databases: TestDatabase[] = [];
let server: Server;
let ours: ConnectSaver;
/** The direct saver on our database, and another one on a database of its own. */
let direct: PostgresSaver;
let apart: PostgresSaver;

beforeAll(async () => {
  databases = await Promise.all([createDatabase(), createDatabase()]);
  const [shared, other] = databases.map(({ url }) => url);
  server = await startTestServer(shared!);
  ours = ConnectSaver.fromUrl(server.url);
  direct = PostgresSaver.fromConnString(shared!);
  apart = PostgresSaver.fromConnString(other!);
});
afterAll(async () => {
  await ours?.end();
  await server?.drain();
  await direct?.end();
  await apart?.end();
  await Promise.all(databases.map((database) => database.drop()));
});

async function collect(tuples: AsyncIterable<CheckpointTuple>): Promise<CheckpointTuple[]> {
  const all: CheckpointTuple[] = [];
  for await (const tuple of tuples) all.push(tuple);
  return all;
}

const inThread = (thread_id: string) => ({ configurable: { thread_id } });

describe("2.8 nothing poisons a thread", () => {
  const metadata = (note: unknown) =>
    ({ source: "loop", step: 1, parents: {}, note }) as unknown as CheckpointMetadata;

  it.each<[string, unknown, unknown]>([
    ["NUL", "a\0b", "ab"],
    ["a NUL in a key", { "k\0": [{ "\0": "\0\0" }] }, { k: [{ "": "" }] }],
    ["a lone surrogate", "x\ud800y", "x\ufffdy"],
    ["surrogates in the wrong order", ["\udc00\ud83d"], ["\ufffd\ufffd"]],
    ["a pair of surrogates", "\u{1f600}", "\u{1f600}"],
    ["text that only looks like an escape", "\\u0000 \\\\ud800", "\\u0000 \\\\ud800"],
  ])(
    "%s in metadata stays storable, readable and found by the same filter",
    async (name, note, stored) => {
      const config = await ours.put(
        inThread(`poison ${name}`),
        emptyCheckpoint(),
        metadata(note),
        {},
      );
      const tuple = await ours.getTuple(config);
      expect(tuple?.metadata).toEqual(metadata(stored));
      const filter = { note };
      expect(await collect(ours.list(inThread(`poison ${name}`), { filter }))).toEqual([tuple]);
      expect(await direct.getTuple(config)).toEqual(tuple);
    },
  );

  it("values and writes keep every character, metadata and names notwithstanding", async () => {
    const odd = { text: "a\0\ud800\\u0000", "\0": ["\udc00"] };
    const checkpoint = {
      ...emptyCheckpoint(),
      channel_values: { odd, "\u{1f600} é": odd },
      channel_versions: { odd: 1, "\u{1f600} é": 1 },
    };
    const config = await ours.put(
      inThread("odd values"),
      checkpoint,
      metadata("x"),
      checkpoint.channel_versions,
    );
    await ours.putWrites(config, [["odd", odd]], "task");
    const tuple = await ours.getTuple(config);
    expect(tuple?.checkpoint).toStrictEqual(checkpoint);
    expect(tuple?.pendingWrites).toStrictEqual([["task", "odd", odd]]);
    expect(await collect(ours.list(inThread("odd values")))).toStrictEqual([tuple]);
  });

  it("a graph fed such text runs to its end, forks and goes on", async () => {
    const graph = createGraph(ours);
    const text = "a\0\ud800\\u0000";
    const config = {
      configurable: { thread_id: "poisoned graph", user: text },
      metadata: { text },
    };
    await graph.invoke({ log: [text] }, config);
    await graph.updateState(config, { log: [text] }, "c");
    await graph.invoke({ log: [text] }, config);
    const { values } = await graph.getState(inThread("poisoned graph"));
    expect(values.log).toEqual([text, "a", "b", "c", text, text, "a", "b", "c"]);
    const tuples = await collect(ours.list(inThread("poisoned graph")));
    expect(await collect(direct.list(inThread("poisoned graph")))).toEqual(tuples);
  });

  it("versions that JSON and jsonb spell differently find their blobs", async () => {
    const versions = { a: 1e21, b: 1e-7, c: 0.1 + 0.2, d: 2 ** 53, e: "1e21", f: "007", g: -0 };
    const checkpoint = {
      ...emptyCheckpoint(),
      channel_values: { ...versions },
      channel_versions: versions,
    };
    const config = await ours.put(inThread("versions"), checkpoint, metadata("x"), versions);
    expect((await ours.getTuple(config))?.checkpoint.channel_values).toEqual({ ...versions, g: 0 });
  });
});

const State = Annotation.Root({
  log: Annotation<string[]>({
    reducer: (left, right) => [...left, ...right],
    default: () => [],
  }),
});

function createGraph(checkpointer: Saver) {
  return new StateGraph(State)
    .addNode("a", () => ({ log: ["a"] }))
    .addNode("b", () => ({ log: ["b"] }))
    .addNode("c", () => ({ log: ["c"] }))
    .addEdge(START, "a")
    .addEdge("a", "b")
    .addEdge("b", "c")
    .addEdge("c", END)
    .compile({ checkpointer });
}

describe("2.10 forks survive", () => {
  const begin = (saver: Saver, thread: string) =>
    createGraph(saver).invoke({ log: ["in"] }, inThread(thread));

  /** Updates the state at the first branch's checkpoint before `b` and runs on from there. */
  async function fork(saver: Saver, thread: string, word: string): Promise<string[]> {
    const graph = createGraph(saver);
    const history = await collect(saver.list(inThread(thread)));
    const before = history.find(
      ({ metadata }) => metadata?.step === 1 && metadata.source === "loop",
    );
    const forked = await graph.updateState(before!.config, { log: [word] });
    return (await graph.invoke(null, forked)).log;
  }

  const channels = (tuples: CheckpointTuple[]) =>
    new Map(tuples.map(({ checkpoint }) => [checkpoint.id, checkpoint.channel_values]));

  const trunk = ["in", "a", "b", "c"];
  const branch = (word: string) => ["in", "a", word, "b", "c"];

  it("the scenario has teeth: with versions 1, 2, 3 the second branch loses its value", async () => {
    await begin(apart, "teeth");
    expect(await fork(apart, "teeth", "FORK")).not.toEqual(branch("FORK"));
    const memory = new MemorySaver();
    await begin(memory, "teeth");
    expect(await fork(memory, "teeth", "FORK")).toEqual(branch("FORK"));
  });

  it.each<[string, () => Saver]>([
    ["our own", () => ours],
    ["the integer saver's", () => direct],
  ])("three forks of %s thread keep every branch", async (whose, beginner) => {
    const thread = `forks of ${whose} thread`;
    await begin(beginner(), thread);
    const first = channels(await collect(ours.list(inThread(thread))));
    expect([...first.values()][0]?.log).toEqual(trunk);
    for (const word of ["ONE", "TWO", "THREE"]) {
      expect(await fork(ours, thread, word)).toEqual(branch(word));
      const { values } = await createGraph(ours).getState(inThread(thread));
      expect(values.log).toEqual(branch(word));
    }
    // Every step of every branch is still what it was, for us and for the integer saver.
    for (const saver of [ours, direct]) {
      const tuples = await collect(saver.list(inThread(thread)));
      const logs = tuples.map(({ checkpoint }) => JSON.stringify(checkpoint.channel_values.log));
      for (const word of ["ONE", "TWO", "THREE"]) {
        for (const end of [3, 4, 5]) {
          expect(logs).toContain(JSON.stringify(branch(word).slice(0, end)));
        }
      }
      const now = channels(tuples);
      for (const [id, values] of first) expect(now.get(id)).toEqual(values);
    }
  });

  it("a thread of ours goes on with the integer saver, and back, without losing a branch", async () => {
    const thread = "back and forth";
    await begin(ours, thread);
    expect(await fork(ours, thread, "OURS")).toEqual(branch("OURS"));
    expect(await fork(direct, thread, "THEIRS")).toEqual(branch("THEIRS"));
    const longer = await createGraph(direct).invoke({ log: ["more"] }, inThread(thread));
    expect(longer.log).toEqual([...branch("THEIRS"), "more", "a", "b", "c"]);
    expect(await fork(ours, thread, "AGAIN")).toEqual(branch("AGAIN"));
    const tuples = await collect(ours.list(inThread(thread)));
    const logs = tuples.map(({ checkpoint }) => JSON.stringify(checkpoint.channel_values.log));
    for (const log of [trunk, branch("OURS"), branch("THEIRS"), longer.log, branch("AGAIN")]) {
      expect(logs).toContain(JSON.stringify(log));
    }
    expect(await collect(direct.list(inThread(thread)))).toEqual(tuples);
  });
});

describe("2.11 any sequence of the five operations lists what the direct saver lists", () => {
  const values = [
    undefined,
    null,
    0,
    "",
    "a\0\ud800",
    [1, [2], { three: undefined }],
    new Map([["k", new Set([1])]]),
    { "\u{1f600}": new Uint8Array([1, 2]) },
    2 ** 53,
    new Error("kept"),
  ];
  // None that is inherited by every object: "constructor" is too much for the direct saver.
  const channels = ["a", "b", "c", "\u{1f600} é", "__start__", "branch:to:a"];
  const special = ["__error__", "__interrupt__", "__resume__", "__scheduled__", TASKS];

  it.each([1, 2, 3, 4, 5, 6])("seed %i", async (seed) => {
    const random = createRandom(seed);
    const pick = <T>(from: readonly T[]): T => from[random(from.length)]!;
    const some = <T>(from: readonly T[]): T[] => from.filter(() => random(2) === 0);
    const threads = [`seed ${seed} x`, `seed ${seed} y`];
    const savers: Saver[] = [ours, apart];
    const both = async (run: (saver: Saver) => Promise<unknown>) => {
      const [mine, theirs] = await Promise.all(savers.map(run));
      expect(mine).toStrictEqual(theirs);
    };
    // An id belongs to one namespace: the direct saver takes pending sends by id alone.
    const place = (thread_id = pick(threads)) => {
      const checkpoint_ns = pick(["", "child:1"]);
      const id = () =>
        `${String(random(12)).padStart(2, "0")}${threads.indexOf(thread_id)}${checkpoint_ns}`;
      return { thread_id, checkpoint_ns, id };
    };
    const metadataOf = (n: number) =>
      ({ source: "loop", step: n, parents: {}, tags: [n % 2] }) as unknown as CheckpointMetadata;

    const operations = {
      async put() {
        const { thread_id, checkpoint_ns, id } = place();
        const channel_versions = Object.fromEntries(
          ["a", ...some(channels)].map((channel) => [channel, 1 + random(4)]),
        );
        const checkpoint = {
          ...emptyCheckpoint(),
          v: pick([1, 3, 4, 4]),
          id: id(),
          ts: "",
          channel_versions,
          channel_values: Object.fromEntries(some(channels).map((name) => [name, pick(values)])),
        };
        const newVersions = Object.fromEntries(some(Object.entries(channel_versions)));
        const configurable = {
          thread_id,
          checkpoint_ns,
          ...(random(3) ? { checkpoint_id: id() } : {}),
        };
        const metadata = metadataOf(random(4));
        await both((saver) => saver.put({ configurable }, checkpoint, metadata, newVersions));
      },
      async putWrites() {
        const { thread_id, checkpoint_ns, id } = place();
        const from = pick([special.slice(0, 4), channels, [...channels, ...special]]);
        const writes = Array.from(
          { length: 1 + random(4) },
          (): PendingWrite => [pick(from), pick(values)],
        );
        const configurable = { thread_id, checkpoint_ns, checkpoint_id: id() };
        const task = pick(["task a", "task b", "0c"]);
        await both((saver) => saver.putWrites({ configurable }, writes, task));
      },
      async getTuple() {
        const { thread_id, checkpoint_ns, id } = place();
        const configurable = {
          thread_id,
          checkpoint_ns,
          ...(random(2) ? { checkpoint_id: id() } : {}),
        };
        await both((saver) => saver.getTuple({ configurable }));
      },
      async list() {
        const { thread_id, checkpoint_ns, id } = place();
        const configurable = {
          thread_id,
          ...(random(2) ? { checkpoint_ns } : {}),
          ...(random(4) ? {} : { checkpoint_id: id() }),
        };
        const options = {
          ...(random(2) ? { limit: random(6) } : {}),
          ...(random(2) ? { before: { configurable: { checkpoint_id: id() } } } : {}),
          ...(random(2) ? { filter: pick([{}, { step: 1 }, { tags: [1] }]) } : {}),
        };
        await both((saver) => collect(saver.list({ configurable }, options)));
      },
      async deleteThread() {
        const thread = pick(threads);
        if (random(4) === 0) await both((saver) => saver.deleteThread(thread));
      },
    };
    for (let step = 0; step < 60; step++) {
      const { put, putWrites, getTuple, list, deleteThread } = operations;
      await pick([put, put, put, putWrites, putWrites, putWrites, getTuple, list, deleteThread])();
    }
    for (const thread of threads) await both((saver) => collect(saver.list(inThread(thread))));
  });
});
