/** LangGraph's direct PostgresSaver and ConnectSaver on the same tables, reading each other's threads. */
import {
  Annotation,
  Command,
  END,
  interrupt,
  MemorySaver,
  Send,
  START,
  StateGraph,
} from "@langchain/langgraph";
import {
  type BaseCheckpointSaver,
  type CheckpointTuple,
  emptyCheckpoint,
  TASKS,
  uuid6,
} from "@langchain/langgraph-checkpoint";
import { PostgresSaver } from "@langchain/langgraph-checkpoint-postgres";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { Server } from "../server/server.js";
import { createDatabase, type TestDatabase } from "../testing/postgres.js";
import { startTestServer } from "../testing/test_server.js";
import { ConnectSaver } from "./saver.js";

type Saver = BaseCheckpointSaver<number>;
type Who = "direct" | "ours";

const append = {
  reducer: (left: string[], right: string[]) => [...left, ...right],
  default: () => [] as string[],
};
const State = Annotation.Root({
  log: Annotation<string[]>(append),
  scores: Annotation<Map<string, number>>(),
  tags: Annotation<Set<string>>(),
  bytes: Annotation<Uint8Array>(),
  details: Annotation<Record<string, unknown>>(),
});
type Update = Partial<typeof State.State>;

/** Fails the first time a thread reaches `publish`; the retry goes through. */
function createGraph(saver: Saver, failed: Set<string>) {
  const review = new StateGraph(State)
    .addNode("draft", (): Update => ({ log: ["draft"], tags: new Set(["a", "b"]) }))
    .addNode("ask", (): Update => ({ log: [`reviewed ${interrupt({ ask: new Set([1]) })}`] }))
    .addEdge(START, "draft")
    .addEdge("draft", "ask")
    .addEdge("ask", END)
    .compile();
  return new StateGraph(State)
    .addNode(
      "plan",
      (): Update => ({
        log: ["plan"],
        scores: new Map([["a", 1.5]]),
        bytes: new Uint8Array([0, 1, 255]),
        details: { none: null, nothing: undefined, deep: { list: [1, "two", { big: 2 ** 53 }] } },
      }),
    )
    .addNode("approve", (): Update => ({ log: [`approved ${interrupt("approve?")}`] }))
    .addNode("scene", (state: { n: number }): Update => ({ log: [`scene ${state.n}`] }))
    .addNode("review", review)
    .addNode("publish", (_state, config): Update => {
      const thread = config.configurable?.thread_id as string;
      if (failed.has(thread)) return { log: ["published"], details: {} };
      failed.add(thread);
      throw new Error("the printer is on fire");
    })
    .addEdge(START, "plan")
    .addEdge("plan", "approve")
    .addConditionalEdges("approve", () => [1, 2, 3].map((n) => new Send("scene", { n })), ["scene"])
    .addEdge("scene", "review")
    .addEdge("review", "publish")
    .addEdge("publish", END)
    .compile({ checkpointer: saver });
}

/** The four legs of a thread: up to the approval, the question, the failure and the end. */
const legs = [{ log: ["in"] }, new Command({ resume: "yes" }), new Command({ resume: 7 }), null];

async function runLeg(saver: Saver, failed: Set<string>, thread: string, leg: number) {
  const config = { configurable: { thread_id: thread } };
  const run = createGraph(saver, failed).invoke(legs[leg] as Update, config);
  if (leg === 2) await expect(run).rejects.toThrow("the printer is on fire");
  else await run;
}

const finalLog = ["in", "plan", "approved yes", "scene 1", "scene 2", "scene 3"];

async function collect(tuples: AsyncIterable<CheckpointTuple>): Promise<CheckpointTuple[]> {
  const all: CheckpointTuple[] = [];
  for await (const tuple of tuples) all.push(tuple);
  return all;
}

/**
 * What both savers have alike. A Uint8Array comes out of the direct one as pg's Buffer, and it gives
 * writes back by task id and idx, whatever their paths, of which a task may have several (1.0.5;
 * task_path.test.ts has the right order).
 */
function alike(tuple: CheckpointTuple | undefined): CheckpointTuple | undefined {
  if (!tuple) return undefined;
  const plain = (value: unknown) => (Buffer.isBuffer(value) ? new Uint8Array(value) : value);
  const values = Object.entries(tuple.checkpoint.channel_values).map(([k, v]) => [k, plain(v)]);
  return {
    ...tuple,
    checkpoint: { ...tuple.checkpoint, channel_values: Object.fromEntries(values) },
    pendingWrites: (tuple.pendingWrites ?? [])
      .map(([id, channel, v]): [string, string, unknown] => [id, channel, plain(v)])
      .sort(([a, x], [b, y]) => (`${a} ${x}` < `${b} ${y}` ? -1 : a === b && x === y ? 0 : 1)),
  };
}

let database: TestDatabase;
beforeAll(async () => {
  database = await createDatabase({ template: false });
});
afterAll(() => database?.drop());

describe.each(["public", "agents of Team-1"])("in schema %s", (schema) => {
  let server: Server;
  let savers: { direct: PostgresSaver; ours: ConnectSaver };
  beforeAll(async () => {
    const direct = PostgresSaver.fromConnString(database.url, { schema });
    // The tables are made by the direct saver in one schema and by us in the other.
    if (schema === "public") await direct.setup();
    server = await startTestServer(database.url, { schema });
    await direct.setup();
    savers = { direct, ours: ConnectSaver.fromUrl(server.url) };
  });
  afterAll(async () => {
    await savers?.ours.end();
    await savers?.direct.end();
    await server?.drain();
  });

  /** Reads everything of a thread with both savers and returns it, having found it equal. */
  async function readByBoth(thread: string): Promise<CheckpointTuple[]> {
    const config = { configurable: { thread_id: thread } };
    const { direct, ours } = savers;
    const theirs = (await collect(direct.list(config))).map(alike);
    const tuples = await collect(ours.list(config));
    expect(tuples.map(alike)).toStrictEqual(theirs);
    for (const tuple of tuples) {
      expect(await ours.getTuple(tuple.config)).toStrictEqual(tuple);
      expect(alike(await direct.getTuple(tuple.config))).toStrictEqual(alike(tuple));
    }
    const namespaces = new Set(tuples.map((tuple) => tuple.config.configurable?.checkpoint_ns));
    for (const checkpoint_ns of namespaces) {
      const latest = { configurable: { thread_id: thread, checkpoint_ns } };
      const tuple = await ours.getTuple(latest);
      expect(tuple).toStrictEqual(
        tuples.find((t) => t.config.configurable?.checkpoint_ns === checkpoint_ns),
      );
      expect(alike(tuple)).toStrictEqual(alike(await direct.getTuple(latest)));
    }
    return tuples;
  }

  const orders: Record<string, Who[]> = {
    "by the direct saver alone": ["direct", "direct", "direct", "direct"],
    "by us alone": ["ours", "ours", "ours", "ours"],
    "in turn, the direct saver first": ["direct", "ours", "direct", "ours"],
    "in turn, us first": ["ours", "direct", "ours", "direct"],
  };
  it.each(Object.entries(orders))("a thread run %s is the same to both", async (order, whos) => {
    const thread = `${schema} ${order}`;
    const failed = new Set<string>();
    const memory = new MemorySaver();
    const reference = new Set<string>();
    const channels = new Set<string>();
    for (const [leg, who] of whos.entries()) {
      await runLeg(savers[who], failed, thread, leg);
      await runLeg(memory, reference, thread, leg);
      const tuples = await readByBoth(thread);
      for (const { pendingWrites } of tuples) {
        for (const [, channel] of pendingWrites ?? []) channels.add(channel);
      }
      // What the graph sees of the thread is what it would see without a database.
      const config = { configurable: { thread_id: thread } };
      const expected = await createGraph(memory, reference).getState(config);
      for (const saver of [savers.direct, savers.ours]) {
        const state = await createGraph(saver, failed).getState(config);
        expect(state.next).toEqual(expected.next);
        expect(
          state.tasks.map(({ name, interrupts, error }) => [
            name,
            interrupts.map((i) => i.value),
            error,
          ]),
        ).toEqual(
          expected.tasks.map(({ name, interrupts, error }) => [
            name,
            interrupts.map((i) => i.value),
            error,
          ]),
        );
        expect({ ...state.values, bytes: [...(state.values.bytes ?? [])] }).toStrictEqual({
          ...expected.values,
          bytes: [...(expected.values.bytes ?? [])],
        });
      }
    }
    // The comparison is worth what it has seen.
    const tuples = await readByBoth(thread);
    expect(tuples[0]?.checkpoint.channel_values).toMatchObject({
      scores: new Map([["a", 1.5]]),
      tags: new Set(["a", "b"]),
      bytes: new Uint8Array([0, 1, 255]),
      log: [...finalLog, ...finalLog, "draft", "reviewed 7", "published"],
    });
    const namespaces = new Set(tuples.map((tuple) => tuple.config.configurable?.checkpoint_ns));
    expect(namespaces.size).toBe(2);
    expect([...channels]).toEqual(
      expect.arrayContaining(["__interrupt__", "__resume__", "__error__", TASKS]),
    );
  });

  it.each<[Who, Who]>([
    ["direct", "ours"],
    ["ours", "direct"],
  ])("a thread of %s forked by %s keeps both branches for both", async (beginner, forker) => {
    const thread = `${schema} begun by ${beginner}, forked by ${forker}`;
    const config = { configurable: { thread_id: thread } };
    const failed = new Set([thread]);
    for (const leg of [0, 1, 2])
      await createGraph(savers[beginner], failed).invoke(legs[leg] as Update, config);
    const branch = [...finalLog, ...finalLog, "draft", "reviewed 7", "published"];
    const trunk = await readByBoth(thread);
    expect(trunk[0]?.checkpoint.channel_values.log).toEqual(branch);

    const graph = createGraph(savers[forker], failed);
    const before = trunk.find(({ checkpoint }) => "branch:to:review" in checkpoint.channel_values);
    const forked = await graph.updateState(before!.config, { log: ["FORK"] });
    await graph.invoke(null, forked);
    await graph.invoke(new Command({ resume: "again" }), config);
    const tuples = await readByBoth(thread);
    const fork = tuples[0]?.checkpoint.channel_values.log as string[];
    expect(fork).toContain("FORK");
    expect(fork).toContain("reviewed again");
    // Every checkpoint of the first branch reads as it did before the fork.
    expect(
      tuples
        .filter(({ checkpoint }) => trunk.some((t) => t.checkpoint.id === checkpoint.id))
        .map(({ checkpoint }) => checkpoint),
    ).toStrictEqual(trunk.map(({ checkpoint }) => checkpoint));
  });

  it.each<Who>(["direct", "ours"])(
    "sends of checkpoints before format 4 put by %s",
    async (who) => {
      const saver = savers[who];
      for (const checkpoint_ns of ["", "child:1"]) {
        const root = { configurable: { thread_id: `${schema} sends ${who}`, checkpoint_ns } };
        let config = root as Parameters<Saver["put"]>[0];
        for (const [step, v] of [1, 3, 2, 4].entries()) {
          const checkpoint = {
            ...emptyCheckpoint(),
            v,
            id: uuid6(step),
            channel_values: { a: step },
            channel_versions: { a: step + 1 },
          };
          config = await saver.put(
            config,
            checkpoint,
            { source: "loop", step, parents: {} },
            { a: step + 1 },
          );
          await saver.putWrites(
            config,
            [
              [TASKS, `${step} b0`],
              ["a", 1],
              [TASKS, `${step} b2`],
            ],
            "task b",
          );
          await saver.putWrites(config, [[TASKS, `${step} a0`]], "task a");
        }
      }
      const tuples = await readByBoth(`${schema} sends ${who}`);
      const sends = tuples.map(({ checkpoint }) => [
        checkpoint.v,
        checkpoint.channel_values[TASKS],
      ]);
      const sent = (step: number) => [`${step} a0`, `${step} b0`, `${step} b2`];
      const wanted = [
        [4, undefined],
        [2, sent(1)],
        [3, sent(0)],
        [1, undefined],
      ];
      expect(sends).toEqual([...wanted, ...wanted]);
    },
  );

  it.each<[Who, Who]>([
    ["direct", "ours"],
    ["ours", "direct"],
  ])("a thread of %s deleted by %s is gone for both", async (beginner, deleter) => {
    const thread = `${schema} begun by ${beginner}, deleted by ${deleter}`;
    await runLeg(savers[beginner], new Set(), thread, 0);
    expect(await readByBoth(thread)).not.toEqual([]);
    await savers[deleter].deleteThread(thread);
    expect(await readByBoth(thread)).toEqual([]);
  });
});
