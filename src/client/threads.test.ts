import { Annotation, END, interrupt, START, StateGraph } from "@langchain/langgraph";
import { afterAll, afterEach, beforeAll, describe, expect, it, vi } from "vitest";
import type { Server } from "../server/server.js";
import { createDatabase, type TestDatabase } from "../testing/postgres.js";
import { startTestServer } from "../testing/test_server.js";
import { keyring } from "./encryption_keys.js";
import { LEASE_TOKEN } from "./names.js";
import { ConnectSaver } from "./saver.js";
import type { Pruned, Thread } from "./threads.js";

let database: TestDatabase;
let server: Server;
let saver: ConnectSaver;

beforeAll(async () => {
  database = await createDatabase();
  server = await startTestServer(database.url);
  saver = ConnectSaver.fromUrl(server.url);
});
afterAll(async () => {
  await saver?.end();
  await server?.drain();
  await database?.drop();
});

const State = Annotation.Root({
  steps: Annotation<string[]>({ reducer: (a, b) => a.concat(b), default: () => [] }),
  mode: Annotation<string>(),
});

/** Two steps, then what the mode says: end, throw, or ask. */
const graph = () =>
  new StateGraph(State)
    .addNode("first", () => ({ steps: ["first"] }))
    .addNode("second", ({ mode }) => {
      if (mode === "fail") throw new Error("as asked");
      const answer = mode === "ask" ? interrupt("well?") : "done";
      return { steps: [answer as string] };
    })
    .addEdge(START, "first")
    .addEdge("first", "second")
    .addEdge("second", END)
    .compile({ checkpointer: saver });

const config = (threadId: string, more = {}) => ({
  configurable: { thread_id: threadId, ...more },
});

async function run(threadId: string, mode: string): Promise<void> {
  await graph()
    .invoke({ mode, steps: [] }, config(threadId))
    .catch(() => {});
}

/** Leaves a thread with its first step done and the second not begun. */
async function abandon(threadId: string): Promise<void> {
  const paused = graph();
  paused.interruptBefore = ["second"];
  await paused.invoke({ mode: "end", steps: [] }, config(threadId));
}

const collect = async <T>(source: AsyncIterable<T>) => {
  const all: T[] = [];
  for await (const each of source) all.push(each);
  return all;
};

describe("threads with reasons", () => {
  const task = expect.stringMatching(/^[0-9a-f-]{36}$/);
  // The oldest LangGraph of the peer range tells a saver no paths of tasks, and so no nodes.
  let isPathTold = true;
  const named = (node: string) => (isPathTold ? node : undefined);
  beforeAll(async () => {
    const putWrites = vi.spyOn(saver, "putWrites");
    await run("why-paths", "ask");
    isPathTold = putWrites.mock.calls.some(([, , , taskPath]) => taskPath !== undefined);
    putWrites.mockRestore();
    await saver.deleteThread("why-paths");
  });
  afterEach(async () => {
    for await (const { threadId } of saver.threads.list({ prefix: "why-" })) {
      await saver.deleteThread(threadId);
    }
  });

  it("tell what their tasks ask and ended with, decoded, and only where it is asked for", async () => {
    await run("why-done", "end");
    await run("why-asks", "ask");
    await run("why-failed", "fail");
    const found = await collect(
      saver.threads.list({ prefix: "why-", order: "id", withReasons: true }),
    );
    expect(found.map(({ interrupts, errors }) => ({ interrupts, errors }))).toEqual([
      {
        errors: [],
        interrupts: [
          {
            id: expect.stringMatching(/^[0-9a-f]{32}$/),
            value: "well?",
            taskId: task,
            name: named("second"),
            unread: undefined,
          },
        ],
      },
      { errors: [], interrupts: [] },
      {
        errors: [
          {
            error: expect.objectContaining({ message: "as asked", name: "Error" }),
            taskId: task,
            name: named("second"),
            unread: undefined,
          },
        ],
        interrupts: [],
      },
    ]);
    const asks = await saver.threads.get("why-asks", { withReasons: true });
    expect(asks).toEqual(found[0]);
    // The id is what LangGraph takes an answer under.
    const [task0] = (await graph().getState(config("why-asks"))).tasks;
    expect(asks?.interrupts?.[0]?.id).toBe(task0?.interrupts[0]?.id);
    expect(asks?.interrupts?.[0]?.taskId).toBe(task0?.id);
    const examined = { status: "completed", examineLimit: 1 } as const;
    expect(await collect(saver.threads.list(examined))).toEqual([]);
    expect(await collect(saver.threads.list({ ...examined, examineLimit: 3 }))).toHaveLength(1);
    const wrong = { examineLimit: -1 };
    await expect(collect(saver.threads.list(wrong))).rejects.toThrow("examineLimit must be");
    expect(await saver.threads.get("why-asks")).toMatchObject({
      interrupts: undefined,
      errors: undefined,
    });
  });

  it("tell why a value is not there: too large, of another serializer, encrypted", async () => {
    const encryption = { keys: keyring("k", { k: new Uint8Array(32).fill(7) }) };
    const sealing = ConnectSaver.fromUrl(server.url, { encryption });
    try {
      await run("why-large", "ask");
      const { config: at } = (await saver.getTuple(config("why-large")))!;
      const large = [{ value: "x".repeat(70_000), id: "large" }];
      await saver.putWrites(at, [["__interrupt__", large]], "large");
      const direct = { loadsTyped: async () => Promise.reject(new Error("of another kind")) };
      await saver.putWrites(at, [["__error__", "odd"]], "odd");
      const [told, other] = await Promise.all([
        saver.threads.get("why-large", { withReasons: true }),
        ConnectSaver.fromUrl(server.url, {
          serde: { ...saver.serde, ...direct } as never,
        }).threads.get("why-large", { withReasons: true }),
      ]);
      const unreadOf = (thread: Thread | undefined) =>
        Object.fromEntries(
          [...(thread?.interrupts ?? []), ...(thread?.errors ?? [])].map(({ taskId, unread }) => [
            taskId.length > 9 ? "task" : taskId,
            unread,
          ]),
        );
      const tooLarge = "it is larger than 65536 bytes";
      expect(unreadOf(told)).toEqual({ task: undefined, large: tooLarge, odd: undefined });
      const odd = "of another kind";
      expect(unreadOf(other)).toEqual({ task: odd, large: tooLarge, odd });

      const secret = new StateGraph(State)
        .addNode("ask", () => ({ steps: [interrupt({ question: "secret?" }) as string] }))
        .addEdge(START, "ask")
        .compile({ checkpointer: sealing });
      await secret.invoke({ mode: "", steps: [] }, config("why-sealed"));
      const sealed = await sealing.threads.get("why-sealed", { withReasons: true });
      expect(sealed?.interrupts).toMatchObject([
        { value: { question: "secret?" }, name: named("ask") },
      ]);
      const [listed] = await collect(
        sealing.threads.list({ prefix: "why-sealed", withReasons: true }),
      );
      expect(listed).toEqual(sealed);
      const without = await saver.threads.get("why-sealed", { withReasons: true });
      expect(without?.interrupts).toMatchObject([
        { value: undefined, unread: expect.stringContaining("it is encrypted") },
      ]);
      // A saver that encrypts believes nothing else, and says so of each.
      const plain = await sealing.threads.get("why-large", { withReasons: true });
      const refused = expect.stringContaining("is not encrypted");
      expect(unreadOf(plain)).toEqual({ task: refused, large: tooLarge, odd: refused });
    } finally {
      await sealing.end();
    }
  });
});

describe("threads", () => {
  it("tell how they stand, newest first and by id", async () => {
    await run("a-done", "end");
    await run("b-asks", "ask");
    await run("c-failed", "fail");
    await abandon("d-left");
    const newest = await collect(saver.threads.list());
    expect(newest.map(({ threadId, status, step }) => [threadId, status, step])).toEqual([
      ["d-left", "pending", 1],
      ["c-failed", "failed", 1],
      ["b-asks", "interrupted", 1],
      ["a-done", "completed", 2],
    ]);
    expect(newest.map(({ pendingNodes }) => pendingNodes)).toEqual([
      ["second"],
      ["second"],
      ["second"],
      [],
    ]);
    const byId = await collect(saver.threads.list({ order: "id" }));
    expect(byId).toEqual([...newest].reverse());
    expect(byId[0]).toMatchObject({ source: "loop", metadata: { step: 2 }, claim: undefined });
    expect(Math.abs((byId[0] as Thread).updatedAt.getTime() - Date.now())).toBeLessThan(60_000);
  });

  it("are filtered by status, prefix, metadata and time, limited and counted", async () => {
    const ids = async (options: Parameters<typeof saver.threads.list>[0]) =>
      (await collect(saver.threads.list(options))).map(({ threadId }) => threadId);
    for (const order of ["newest", "id"] as const) {
      const both = (list: string[]) => (order === "id" ? list : list.reverse());
      expect(await ids({ order, status: ["pending", "failed"] })).toEqual(
        both(["c-failed", "d-left"]),
      );
      expect(await ids({ order, prefix: "b" })).toEqual(["b-asks"]);
      expect(await ids({ order, metadata: { step: 1 }, limit: 2 })).toEqual(
        order === "id" ? ["b-asks", "c-failed"] : ["d-left", "c-failed"],
      );
      const [, second] = await collect(saver.threads.list({ order: "id" }));
      const updatedBefore = (second as Thread).updatedAt;
      expect(await ids({ order, updatedBefore })).toEqual(["a-done"]);
      expect(await ids({ order, updatedAfter: updatedBefore })).toEqual(
        both(["b-asks", "c-failed", "d-left"]),
      );
    }
    const counted = await saver.threads.get("a-done", { counts: true });
    expect(counted?.counts).toMatchObject({ checkpoints: 4 });
    expect(counted?.counts?.storedBytes).toBeGreaterThan(1_000);
    expect(await saver.threads.get("nobody")).toBeUndefined();
  });

  it("are claimed once, fenced when the lease is lost, and free when it is released", async () => {
    const claim = { owner: "worker", graceMs: 0, leaseMs: 60_000, limit: 10 };
    const claims = await Promise.all([1, 2, 3, 4].map(() => saver.threads.claim(claim)));
    const leases = claims.flat();
    expect(leases.map(({ thread }) => thread.threadId)).toEqual(["d-left"]);
    const [{ token } = { token: "" }] = leases;
    expect((await saver.threads.get("d-left"))?.claim?.owner).toBe("worker");
    await saver.threads.renew("d-left", token);
    await graph().updateState(config("d-left", { [LEASE_TOKEN]: token }), { mode: "end" });
    await saver.threads.release("d-left", token);
    const before = await saver.threads.get("d-left");
    await expect(
      graph().invoke(null, config("d-left", { [LEASE_TOKEN]: token })),
    ).rejects.toMatchObject({ rawMessage: expect.stringContaining("lease_token") });
    await expect(saver.threads.renew("d-left", token)).rejects.toMatchObject({ code: 9 });
    expect(await saver.threads.get("d-left")).toEqual(before);
    expect(await saver.threads.claim(claim)).toHaveLength(1);
  });

  it("are copied, pruned and cleared of runs", async () => {
    await saver.threads.copy("a-done", "copy");
    expect((await saver.threads.get("copy"))?.status).toBe("completed");
    await expect(saver.threads.copy("a-done", "copy")).rejects.toMatchObject({ code: 9 });
    const dry = await collect(
      saver.threads.prune({ threadIds: ["copy"], keepLast: 1, dryRun: true }),
    );
    const real = await collect(saver.threads.prune({ threadIds: ["copy"], keepLast: 1 }));
    expect(real).toEqual(dry);
    expect(real[0]).toMatchObject({ threadId: "copy", removed: { checkpoints: 3 } } as Pruned);
    expect((await graph().getState(config("copy"))).values).toEqual(
      (await graph().getState(config("a-done"))).values,
    );
    expect(await collect(saver.threads.prune({ prefix: "copy", delete: true }))).toHaveLength(1);
    expect(await saver.threads.get("copy")).toBeUndefined();
  });
});
