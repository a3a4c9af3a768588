/**
 * What a graph may have in its state, through a real graph that stops, is looked at and goes on: in a
 * channel, nested, in a write that waits, in an interrupt, in an answer and in metadata. What comes
 * back is what LangGraph's serializer makes of it; what it can make nothing of is refused.
 */
import { AIMessage, HumanMessage } from "@langchain/core/messages";
import {
  Annotation,
  Command,
  interrupt,
  MemorySaver,
  START,
  StateGraph,
} from "@langchain/langgraph";
import type { BaseCheckpointSaver } from "@langchain/langgraph-checkpoint";
import { emptyCheckpoint } from "@langchain/langgraph-checkpoint";
import { PostgresSaver } from "@langchain/langgraph-checkpoint-postgres";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { Server } from "../server/server.js";
import { createDatabase, type TestDatabase } from "../testing/postgres.js";
import { startTestServer } from "../testing/test_server.js";
import { keyring } from "./encryption_keys.js";
import { ConnectSaver } from "./saver.js";

let database: TestDatabase;
let server: Server;
let saver: ConnectSaver;
let encrypting: ConnectSaver;
let direct: PostgresSaver;
beforeAll(async () => {
  database = await createDatabase();
  server = await startTestServer(database.url);
  saver = ConnectSaver.fromUrl(server.url);
  const keys = keyring("k", { k: new Uint8Array(32) });
  encrypting = ConnectSaver.fromUrl(server.url, { encryption: { keys } });
  direct = PostgresSaver.fromConnString(database.url);
});
afterAll(async () => {
  await saver?.end();
  await encrypting?.end();
  await direct?.end();
  await server?.drain();
  await database?.drop();
});

const inThread = (thread_id: string) => ({ configurable: { thread_id } });
let threads = 0;

const State = Annotation.Root({
  value: Annotation<unknown>(),
  box: Annotation<unknown>(),
  waiting: Annotation<unknown>(),
  answer: Annotation<unknown>(),
  seen: Annotation<unknown>(),
});

/** A node that makes the value, then one that waits for an answer beside one whose write waits. */
const build = (checkpointer: BaseCheckpointSaver, make: () => unknown, ask = make) =>
  new StateGraph(State)
    .addNode("make", () => ({ value: make(), box: { of: [{ inner: make() }] } }))
    .addNode("side", () => ({ waiting: make() }))
    .addNode("ask", () => ({ answer: interrupt({ question: ask() }) }))
    .addNode("look", ({ value, waiting }) => ({ seen: [value, waiting] }))
    .addEdge(START, "make")
    .addEdge("make", "side")
    .addEdge("make", "ask")
    .addEdge(["side", "ask"], "look")
    .compile({ checkpointer });

/** All that can be seen of the graph's run, at the interrupt and after the answer. */
async function run(checkpointer: BaseCheckpointSaver, make: () => unknown) {
  // LangGraph itself throws at an interrupt with a circle, whatever the saver.
  const ask = make === circular ? () => "what?" : make;
  const config = {
    ...inThread(`value ${threads++}`),
    metadata: { note: make() },
    durability: "sync" as const,
  };
  const graph = build(checkpointer, make, ask);
  const history = async () => {
    const states = [];
    for await (const { values, next } of graph.getStateHistory(config))
      states.push({ values, next });
    return states;
  };
  await graph.invoke({}, config);
  const asked = await graph.getState(config);
  const at = { asked: await history(), interrupts: asked.tasks.map((task) => task.interrupts) };
  const { pendingWrites = [] } = (await checkpointer.getTuple(config)) ?? {};
  const waiting = pendingWrites.filter(([, channel]) => channel === "waiting").map(([, , v]) => v);
  await graph.invoke(new Command({ resume: { answer: make() } }), config);
  const { values, next } = await graph.getState(config);
  return {
    ...at,
    interrupts: at.interrupts.flat().map(({ value }) => value),
    waiting,
    values,
    next,
    answered: await history(),
  };
}

class OwnMessage extends HumanMessage {
  static override lc_name() {
    return "OwnMessage";
  }
}
class Point {
  x = 1;
  get y() {
    return 2;
  }
}
const circular = () => {
  const object: Record<string, unknown> = { n: 1 };
  object.self = object;
  return object;
};
const nested = (depth: number) => {
  let value: unknown = "deep";
  for (let i = 0; i < depth; i++) value = { of: value };
  return value;
};

const givenUp = "[unable to serialize, circular reference is too complex to analyze]";

/** The value, and what comes back of it at the top of a channel. */
const returning: [name: string, make: () => unknown, back: unknown][] = [
  ["undefined", () => undefined, undefined],
  ["null", () => null, null],
  ["a function", () => () => 1, undefined],
  ["a function with properties", () => Object.assign(() => 1, { a: 1 }), undefined],
  ["a class", () => Point, undefined],
  ["a symbol", () => Symbol("s"), undefined],
  ["an object whose toJSON gives a function", () => ({ toJSON: () => () => 1 }), undefined],
  ["an object whose toJSON gives undefined", () => ({ toJSON: () => undefined }), undefined],
  [
    "functions in an object and a list",
    () => ({ f() {}, l: [() => 1, Symbol("s")] }),
    { l: [null, null] },
  ],
  ["NaN", () => Number.NaN, null],
  ["infinity", () => Number.NEGATIVE_INFINITY, null],
  ["-0", () => -0, 0],
  ["a large number", () => 2 ** 60, 2 ** 60],
  ["an empty text", () => "", ""],
  ["NUL and half a pair", () => "a\0\ud800", "a\0\ud800"],
  ["the text of what cannot be serialized", () => givenUp, givenUp],
  ["a date", () => new Date(0), "1970-01-01T00:00:00.000Z"],
  ["a date that is none", () => new Date(Number.NaN), null],
  [
    "a map",
    () => new Map([["k", new Map([[1, undefined]])]]),
    new Map([["k", new Map([[1, undefined]])]]),
  ],
  ["a set", () => new Set([1, "a", undefined]), new Set([1, "a", undefined])],
  ["a set with a function", () => new Set([() => 1]), new Set([null])],
  ["a regular expression", () => /a+/gi, /a+/gi],
  ["an error", () => new TypeError("no"), new Error("no")],
  ["a typed array", () => new Float32Array([1, 2]), { 0: 1, 1: 2 }],
  ["an ArrayBuffer", () => new ArrayBuffer(2), {}],
  ["a URL", () => new URL("http://a/"), "http://a/"],
  ["a circular object", circular, { n: 1, self: "[Circular]" }],
  ["an instance of a class", () => new Point(), { x: 1 }],
  ["an object without a prototype", () => Object.assign(Object.create(null), { a: 1 }), { a: 1 }],
  ["a promise", () => Promise.resolve(1), {}],
  ["a WeakMap", () => new WeakMap(), {}],
  ["a list with holes", () => Object.assign([], { 0: 1, 2: 3 }), [1, undefined, 3]],
  [
    "a text that looks like such an object",
    () => '"lc":1,"type":"constructor","id":["a"]',
    '"lc":1,"type":"constructor","id":["a"]',
  ],
  ["a thousand levels", () => nested(1_000), nested(1_000)],
];

/** What MemorySaver cannot do: it reads all that waits as JSON, and of functions there is none. */
const memoryFails = /function|class|symbol/;

describe("comes back", () => {
  it.each(returning)("%s", async (name, make, back) => {
    const ours = await run(saver, make);
    expect(ours.values.value).toStrictEqual(back);
    expect(ours.waiting).toStrictEqual([back]);
    expect(ours.values.waiting).toStrictEqual(back);
    expect(ours.next).toEqual([]);
    // What the node after the answer saw: both had been stored, and read, by then.
    expect(ours.values.seen).toEqual([back, back]);
    expect(await run(encrypting, make)).toStrictEqual(ours);
    if (!memoryFails.test(name)) expect(ours).toEqual(await run(new MemorySaver(), make));
    else if (back === undefined) expect(ours).toEqual(await run(saver, () => undefined));
  });

  it.each([
    ["a Uint8Array", () => new Uint8Array([0, 255])],
    ["a Buffer", () => Buffer.from([0, 255])],
  ])("%s, which MemorySaver forgets where it waits", async (_, make) => {
    for (const each of [saver, encrypting]) {
      const { values, waiting } = await run(each, make);
      for (const back of [values.value, values.waiting, waiting[0]]) {
        expect(back).toBeInstanceOf(Uint8Array);
        expect(back).not.toBeInstanceOf(Buffer);
        expect([...(back as Uint8Array)]).toEqual([0, 255]);
      }
    }
  });

  it("a message", async () => {
    const make = () =>
      new AIMessage({ content: "hi", tool_calls: [{ name: "t", args: {}, id: "1" }] });
    const { values, interrupts } = await run(saver, make);
    for (const back of [
      values.value,
      values.waiting,
      (interrupts[0] as { question: unknown }).question,
    ]) {
      expect(back).toBeInstanceOf(AIMessage);
      expect((back as AIMessage).tool_calls?.[0]?.name).toBe("t");
    }
  });
});

const refused: [string, () => unknown][] = [
  ["a BigInt", () => 1n],
  ["a BigInt in an object", () => ({ a: [1n] })],
  ["an array of BigInts", () => new BigInt64Array(1)],
  ["a map with a BigInt", () => new Map([[1n, 1]])],
  [
    "an object whose toJSON throws",
    () => ({
      toJSON() {
        throw new Error("no");
      },
    }),
  ],
  [
    "an object with a getter that throws",
    () => ({
      get a() {
        throw new Error("no");
      },
    }),
  ],
  ["a frozen circular object", () => Object.freeze(circular())],
  ["a hundred thousand levels", () => nested(100_000)],
  ["a message of a class of one's own", () => [new HumanMessage("ok"), new OwnMessage("mine")]],
  [
    "an object that looks like LangChain's",
    () => ({ lc: 1, type: "constructor", id: ["a", "B"], kwargs: {} }),
  ],
];
describe("is refused by name, with nothing stored", () => {
  it.each(refused)("%s", async (name, make) => {
    const sentence =
      /cannot be stored: LangGraph's serializer has no way for it \(.+\); convert it before/;
    const config = inThread(`refused ${name}`);
    const checkpoint = { ...emptyCheckpoint(), channel_values: { good: 1, bad: make() } };
    const metadata = { source: "loop", step: 1, parents: {} } as const;
    const versions = { good: 1, bad: 1 };
    const put = saver.put(config, checkpoint, metadata, versions);
    await expect(put).rejects.toThrow(/^the value of channel "bad" cannot be stored/);
    await expect(put).rejects.toThrow(sentence);
    const at = { configurable: { ...config.configurable, checkpoint_id: checkpoint.id } };
    const write = saver.putWrites(
      at,
      [
        ["good", 1],
        ["bad", make()],
      ],
      "task",
    );
    await expect(write).rejects.toThrow(/^the write to channel "bad" cannot be stored/);
    const noted = { ...metadata, note: make() };
    await expect(saver.put(config, emptyCheckpoint(), noted, {})).rejects.toThrow(
      /^metadata cannot be stored/,
    );
    expect(await saver.getTuple(config)).toBeUndefined();

    const graph = new StateGraph(State)
      .addNode("make", () => ({ value: make() }))
      .addEdge(START, "make")
      .compile({ checkpointer: saver });
    const run = graph.invoke({}, { ...inThread(`graph ${name}`), durability: "exit" });
    await expect(run).rejects.toThrow(/channel "value" cannot be stored/);
  });
});

it("heals threads that a direct saver broke with functions", async () => {
  const config = inThread("broken");
  const make = () => () => 1;
  const theirs = build(direct, make);
  await theirs.invoke({}, config);
  // The direct saver cannot read what it stored.
  await expect(theirs.getState(config)).rejects.toThrow();
  const ours = build(saver, make);
  const asked = await ours.getState(config);
  expect(asked.values).toEqual({ value: undefined, box: { of: [{}] } });
  expect(asked.tasks.map(({ name }) => name).sort()).toEqual(["ask", "side"]);
  for await (const { values } of ours.getStateHistory(config)) expect(values.value).toBeUndefined();
  await ours.invoke(new Command({ resume: "yes" }), config);
  const { values, next } = await ours.getState(config);
  expect({ answer: values.answer, next }).toEqual({ answer: "yes", next: [] });
  // And what is stored from then on the direct saver reads.
  await ours.updateState(config, { value: make(), waiting: make() }, "look");
  expect((await theirs.getState(config)).values).toMatchObject({ answer: "yes" });
});

it("stores a message of the user as LangGraph does", async () => {
  const { values } = await run(saver, () => [new HumanMessage("hello")]);
  expect((values.value as HumanMessage[])[0]).toBeInstanceOf(HumanMessage);
});
