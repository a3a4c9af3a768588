/** `config.signal`, and that of saver.threads: reads are given up by it, writes of a run are not. */
import { create, type DescMessage } from "@bufbuild/protobuf";
import { Annotation, START, StateGraph } from "@langchain/langgraph";
import { emptyCheckpoint } from "@langchain/langgraph-checkpoint";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { type CallName, operations, streams } from "../protocol/operations.js";
import type { Server } from "../server/server.js";
import { type EchoServer, startEchoServer } from "../testing/echo_server.js";
import { createDatabase, type TestDatabase } from "../testing/postgres.js";
import { startTestServer } from "../testing/test_server.js";
import { ConnectSaver } from "./saver.js";

const all: Record<CallName, { output: DescMessage }> = { ...operations, ...streams };
const enough = new Error("enough");

let echo: EchoServer;
let asked: CallName[] = [];
/** What the service waits for before it answers. */
let held: Promise<void> | undefined;
let release = () => {};
const hold = () => {
  held = new Promise((resolve) => {
    release = resolve;
  });
};
beforeAll(async () => {
  echo = await startEchoServer((name) => {
    asked.push(name);
    const done = { done: true, value: undefined };
    return name in streams
      ? { [Symbol.asyncIterator]: () => ({ next: async () => held?.then(() => done) ?? done }) }
      : (held ?? Promise.resolve()).then(() => create(all[name].output));
  });
});
afterAll(() => echo.stop());
beforeEach(() => {
  asked = [];
  held = undefined;
});
afterEach(() => release());

const thread = { thread_id: "t", checkpoint_id: "1" };
const metadata = { source: "loop" as const, step: 1, parents: {} };

async function drain(messages: AsyncIterable<unknown>): Promise<void> {
  for await (const _ of messages);
}

type Use = (saver: ConnectSaver, signal: AbortSignal) => Promise<unknown>;
const reads: Record<string, Use> = {
  getTuple: (saver, signal) => saver.getTuple({ configurable: thread, signal }),
  get: (saver, signal) => saver.get({ configurable: thread, signal }),
  list: (saver, signal) => drain(saver.list({ configurable: thread, signal })),
  getDeltaChannelHistory: (saver, signal) =>
    saver.getDeltaChannelHistory({ config: { configurable: thread, signal }, channels: ["c"] }),
  "threads.list": ({ threads }, signal) => drain(threads.list({ signal })),
  "threads.get": ({ threads }, signal) => threads.get("t", { signal }),
  "threads.claim": ({ threads }, signal) => threads.claim({ owner: "o", signal }),
  "threads.renew": ({ threads }, signal) => threads.renew("t", "l", undefined, { signal }),
  "threads.release": ({ threads }, signal) => threads.release("t", "l", { signal }),
  "threads.copy": ({ threads }, signal) => threads.copy("t", "u", { signal }),
  "threads.deleteRuns": ({ threads }, signal) => threads.deleteRuns(["r"], { signal }),
  "threads.prune": ({ threads }, signal) => drain(threads.prune({ keepLast: 1, signal })),
};
const writes: Record<string, Use> = {
  put: (saver, signal) =>
    saver.put({ configurable: thread, signal }, emptyCheckpoint(), metadata, {}),
  putWrites: (saver, signal) =>
    saver.putWrites({ configurable: thread, signal }, [["c", 1]], "task"),
};

describe.each([
  ["sessions", true],
  ["RPCs", false],
])("on %s", (_, session) => {
  let saver: ConnectSaver;
  beforeAll(() => {
    saver = ConnectSaver.fromUrl(echo.url, { session });
  });
  afterAll(() => saver.end());

  it.each(Object.entries(reads))("%s is not begun under an aborted signal", async (_, use) => {
    await expect(use(saver, AbortSignal.abort(enough))).rejects.toBe(enough);
    expect(asked).toEqual([]);
  });

  it.each(Object.entries(reads))("%s is given up when its signal aborts", async (_, use) => {
    hold();
    const controller = new AbortController();
    const call = use(saver, controller.signal);
    call.catch(() => {});
    await expect.poll(() => asked.length).toBe(1);
    controller.abort(enough);
    await expect(call).rejects.toBe(enough);
  });

  it.each(Object.entries(reads))("%s tries no more when its signal aborts", async (_, use) => {
    const retry = { initialDelayMs: 60_000, maxDelayMs: 60_000 };
    const nowhere = ConnectSaver.fromUrl("http://127.0.0.1:1", {
      session,
      retry,
      timeoutMs: 2 ** 31 - 1,
    });
    const controller = new AbortController();
    const call = use(nowhere, controller.signal);
    call.catch(() => {});
    setTimeout(() => controller.abort(enough), 30);
    // A claim is tried once.
    await expect(call).rejects.toThrow(/^enough$|nothing listens/);
    await nowhere.end();
  });

  it.each(Object.entries(writes))(
    "%s is carried out under an aborted signal",
    async (name, use) => {
      await use(saver, AbortSignal.abort(enough));
      expect(asked).toEqual([name]);
    },
  );

  it("fifty calls under one signal are no leak of listeners", async () => {
    const warnings: Error[] = [];
    const onWarning = (warning: Error) => warnings.push(warning);
    process.on("warning", onWarning);
    const { signal } = new AbortController();
    const calls = Array.from({ length: 50 }, () => reads.getTuple?.(saver, signal));
    await Promise.all(calls);
    await new Promise((resolve) => setImmediate(resolve));
    process.off("warning", onWarning);
    expect(warnings).toEqual([]);
  });

  it("a reason that is no Error comes in one", async () => {
    const call = reads.getTuple?.(saver, AbortSignal.abort("enough"));
    await expect(call).rejects.toThrow("the call was aborted: enough");
  });
});

it("a signal that is none is refused", async () => {
  const saver = ConnectSaver.fromUrl("http://127.0.0.1:1");
  const signal = "soon" as unknown as AbortSignal;
  await expect(saver.getTuple({ configurable: thread, signal })).rejects.toThrow(
    'config.signal must be an AbortSignal, not the text "soon"',
  );
  await expect(saver.threads.get("t", { signal })).rejects.toThrow("signal must be an AbortSignal");
  await saver.end();
});

describe("a run of LangGraph that is aborted", () => {
  let database: TestDatabase;
  let server: Server;
  beforeAll(async () => {
    database = await createDatabase();
    server = await startTestServer(database.url);
  });
  afterAll(async () => {
    await server.drain();
    await database.drop();
  });

  const State = Annotation.Root({
    paid: Annotation<string[]>({ reducer: (a, b) => a.concat(b), default: () => [] }),
  });

  /** Two nodes at once: one pays, the other never ends until the run is aborted. */
  function createGraph(saver: ConnectSaver, paid: string[], hangs: boolean) {
    return new StateGraph(State)
      .addNode("pay", () => {
        paid.push("once");
        return { paid: ["pay"] };
      })
      .addNode("think", async (_, { signal }) => {
        if (hangs) await new Promise((_, reject) => signal?.addEventListener("abort", reject));
        return { paid: ["think"] };
      })
      .addEdge(START, "pay")
      .addEdge(START, "think")
      .compile({ checkpointer: saver });
  }

  it.each([
    ["sessions", "async", true],
    ["sessions", "sync", true],
    ["sessions", "exit", true],
    ["RPCs", "async", false],
    ["RPCs", "exit", false],
  ] as const)("keeps what was done, on %s, durability %s", async (_, durability, session) => {
    const saver = ConnectSaver.fromUrl(server.url, { session });
    const thread_id = `${durability}-${session}`;
    const paid: string[] = [];
    const controller = new AbortController();
    const { signal } = controller;
    const config = { configurable: { thread_id }, signal, durability };
    const run = async () => {
      const steps = await createGraph(saver, paid, true).stream(
        { paid: [] },
        { ...config, streamMode: "updates" },
      );
      // LangGraph tells of a node when it has what it wrote.
      for await (const step of steps) if ("pay" in step) controller.abort(enough);
    };
    await expect(run()).rejects.toThrow();
    // LangGraph does not wait for what it stores last. With "exit" that is everything.
    const writes = async () => {
      const tuple = await saver.getTuple({ configurable: { thread_id } });
      // The step before has the input's write to the channel.
      if (tuple?.metadata?.step !== 0) return false;
      return tuple.pendingWrites?.some(([, channel]) => channel === "paid") ?? false;
    };
    await expect.poll(writes).toBe(true);
    const resumed = await createGraph(saver, paid, false).invoke(null, {
      configurable: { thread_id },
    });
    expect(resumed.paid).toEqual(["pay", "think"]);
    expect(paid).toEqual(["once"]);
    await saver.end();
  });

  it.each([true, false])("is not begun under an aborted signal, sessions: %s", async (session) => {
    const saver = ConnectSaver.fromUrl(server.url, { session });
    const paid: string[] = [];
    const run = createGraph(saver, paid, false).invoke(
      { paid: [] },
      { configurable: { thread_id: "never" }, signal: AbortSignal.abort(enough) },
    );
    await expect(run).rejects.toThrow();
    expect(paid).toEqual([]);
    expect(await saver.getTuple({ configurable: { thread_id: "never" } })).toBeUndefined();
    await saver.end();
  });
});
