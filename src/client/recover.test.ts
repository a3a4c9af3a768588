import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { setTimeout as delay } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import type { RunnableConfig } from "@langchain/core/runnables";
import {
  Annotation,
  END,
  interrupt,
  MessagesAnnotation,
  Send,
  START,
  StateGraph,
} from "@langchain/langgraph";
import * as checkpoint from "@langchain/langgraph-checkpoint";
import pg from "pg";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import type { Server } from "../server/server.js";
import { createDatabase, type TestDatabase } from "../testing/postgres.js";
import { startTestServer } from "../testing/test_server.js";
import { LEASE_TOKEN } from "./names.js";
import { type Recovered, recoverThreads } from "./recover.js";
import { ConnectSaver } from "./saver.js";
import type { Thread } from "./threads.js";

/** Compiled, because a worker is killed and started again many times; `npm test` builds first. */
const worker = fileURLToPath(new URL("../../dist/src/testing/recovery_worker.js", import.meta.url));

const none = { resumed: 0, failed: 0, stuck: 0, skipped: 0, lost: 0 };

let database: TestDatabase;
let pool: pg.Pool;
let server: Server;
let saver: ConnectSaver;

beforeAll(async () => {
  database = await createDatabase();
  pool = new pg.Pool({ connectionString: database.url, max: 2 });
  await pool.query(
    "create table journal (n serial primary key, thread text, node text, worker text, what text)",
  );
  server = await startTestServer(database.url);
  saver = ConnectSaver.fromUrl(server.url);
});
afterAll(async () => {
  await saver?.end();
  await server?.drain();
  await pool?.end();
  await database?.drop();
});

async function list(): Promise<Thread[]> {
  const all: Thread[] = [];
  for await (const thread of saver.threads.list()) all.push(thread);
  return all;
}

async function startWorker(mode: string, name: string, threads = 0): Promise<ChildProcess> {
  const child = spawn(
    process.execPath,
    [worker, mode, server.url, database.url, name, String(threads)],
    { stdio: ["ignore", "pipe", "inherit"] },
  );
  await once(child.stdout as NodeJS.ReadableStream, "data");
  return child;
}

async function kill(child: ChildProcess): Promise<void> {
  child.kill("SIGKILL");
  if (child.exitCode === null && child.signalCode === null) await once(child, "exit");
}

describe("recoverThreads", () => {
  it("finishes every thread once while 4 recoverers are killed at random", {
    timeout: 120_000,
  }, async () => {
    const killed = new Set<string>();
    // A worker that is killed in the middle of 40 threads.
    const first = await startWorker("begin", "w0", 40);
    for (;;) {
      const { rows } = await pool.query("select count(*)::int as n from journal");
      if (rows[0].n > 150) break;
      await delay(10);
    }
    await kill(first);
    killed.add("w0");
    const left = (await list()).filter(({ status }) => status === "pending");
    expect(left.length).toBeGreaterThan(10);

    let started = 0;
    const recoverers: { name: string; child: ChildProcess }[] = [];
    const start = async () => {
      const name = `w${++started}`;
      recoverers.push({ name, child: await startWorker("recover", name) });
    };
    await Promise.all([start(), start(), start(), start()]);
    for (let kills = 0; kills < 10; kills++) {
      await delay(50 + Math.random() * 400);
      const [victim] = recoverers.splice(Math.floor(Math.random() * recoverers.length), 1);
      if (!victim) break;
      await kill(victim.child);
      killed.add(victim.name);
      await start();
    }
    while ((await list()).some(({ status }) => status === "pending")) await delay(100);
    await Promise.all(recoverers.map(({ child }) => kill(child)));

    const threads = await list();
    expect(threads.map(({ status }) => status)).toEqual(threads.map(() => "completed"));
    const nodes = ["check", "fetch", "plan", "send", "write"];
    for (const { threadId } of threads) {
      const tuple = await saver.getTuple({ configurable: { thread_id: threadId } });
      // Its steps, each once: the result of a step that was run again is stored once.
      expect([...((tuple?.checkpoint.channel_values.done as string[]) ?? [])].sort()).toEqual(
        nodes,
      );
    }
    type Entry = { n: number; thread: string; node: string; worker: string; what: string };
    const journal = await pool.query<Entry>("select * from journal order by n");
    for (const { threadId } of threads) {
      const entries = journal.rows.filter(({ thread }) => thread === threadId);
      // Workers take turns: once another has begun, the one before says nothing any more.
      const turns = entries
        .map((each) => each.worker)
        .filter((each, i, all) => each !== all[i - 1]);
      expect(new Set(turns).size, `${threadId} was held by ${turns}`).toBe(turns.length);
      // All but the last were killed in their turn.
      expect([...killed]).toEqual(expect.arrayContaining(turns.slice(0, -1)));
      for (const node of nodes) {
        const runs = entries.filter((each) => each.node === node && each.what === "begin");
        // Run again only after a worker that was killed while it ran, or had just run, the node, or
        // that lost its lease then on a busy machine and took it again: nothing of the thread that comes
        // after it was begun until then.
        for (const [i, { worker, n }] of runs.slice(0, -1).entries()) {
          // LangGraph before checkpoint 1.2 begins the next node before the last one is stored, also
          // with durability "sync".
          if (!("compareWritesSortKeys" in checkpoint)) continue;
          const later = entries.filter(
            (each) =>
              each.n > n &&
              each.n < (runs[i + 1] as Entry).n &&
              isAfter(each.node, node) &&
              each.what === "begin",
          );
          expect(later, `${threadId}: ${node} was stored by ${worker} and run again`).toEqual([]);
        }
      }
    }
  });

  const isAfter = (node: string, other: string) => {
    const order = ["plan", "fetch write", "check", "send"];
    const place = (name: string) => order.findIndex((each) => each.split(" ").includes(name));
    return place(node) > place(other);
  };

  const State = Annotation.Root({ n: Annotation<number>() });
  const config = (threadId: string) => ({ configurable: { thread_id: threadId } });
  const compile = (node: () => Promise<{ n: number }> | { n: number }) =>
    new StateGraph(State)
      .addNode("before", () => ({ n: 1 }))
      .addNode("node", node)
      .addEdge(START, "before")
      .addEdge("before", "node")
      .addEdge("node", END)
      .compile({ checkpointer: saver });
  const leave = async (threadId: string) => {
    const graph = compile(() => ({ n: 2 }));
    graph.interruptBefore = ["node"];
    await graph.invoke({ n: 0 }, config(threadId));
  };

  it("leaves interrupted threads alone, and one that fails until its lease has run out", async () => {
    await compile(() => interrupt("?") as never).invoke({ n: 0 }, config("asks"));
    await leave("fails");
    const seen: Recovered[] = [];
    const failing = compile(() => {
      throw new Error("not today");
    });
    const options = { graceMs: 0, onRecovered: (each: Recovered) => seen.push(each) };
    expect(await recoverThreads(saver, failing, options)).toEqual({ ...none, failed: 1 });
    expect(seen).toMatchObject([{ outcome: "failed", thread: { threadId: "fails" } }]);
    expect((await saver.threads.get("asks"))?.status).toBe("interrupted");
    expect((await saver.threads.get("fails"))?.status).toBe("failed");
  });

  it("stores nothing any more when the lease was lost in the middle of a step", async () => {
    await leave("lost");
    const graph = compile(async () => {
      // Somebody else takes the thread while the step runs.
      await pool.query("update checkpointd_claims set token = 'else' where thread_id = 'lost'");
      return { n: 3 };
    });
    const before = await saver.getTuple(config("lost"));
    const summary = await recoverThreads(saver, graph, { graceMs: 0, leaseMs: 60_000 });
    expect(summary).toEqual({ ...none, lost: 1 });
    expect(await saver.getTuple(config("lost"))).toEqual(before);
    await pool.query("delete from checkpointd_claims");
  });

  it("renews while a long step runs, and says when the lease was lost meanwhile", async () => {
    await leave("long");
    const owners: unknown[] = [];
    const long = compile(async () => {
      await delay(2_500);
      owners.push((await saver.threads.get("long"))?.claim?.owner);
      return { n: 3 };
    });
    const options = { graceMs: 0, leaseMs: 2_000, owner: "me", prefix: "long" };
    expect(await recoverThreads(saver, long, options)).toEqual({ ...none, resumed: 1 });
    expect(owners).toEqual(["me"]);
    expect((await saver.threads.get("long"))?.claim).toBeUndefined();

    await leave("long-2");
    const robbed = compile(async () => {
      await pool.query("delete from checkpointd_claims where thread_id = 'long-2'");
      await delay(2_000);
      return { n: 3 };
    });
    const once = new AbortController();
    const summary = await recoverThreads(saver, robbed, {
      ...options,
      prefix: "long-2",
      signal: once.signal,
      onRecovered: () => once.abort(),
    });
    expect(summary).toMatchObject({ lost: 1 });
    expect((await saver.threads.get("long-2"))?.status).toBe("pending");
  });

  it("stops at its signal and frees what it held", async () => {
    await leave("stopped");
    const stop = new AbortController();
    const graph = compile(async () => {
      stop.abort();
      await delay(20);
      return { n: 3 };
    });
    const options = { graceMs: 0, pollMs: 10_000, signal: stop.signal, prefix: "stopped" };
    await recoverThreads(saver, graph, options);
    expect((await saver.threads.get("stopped"))?.claim).toBeUndefined();
  });

  it("fences a subgraph's writes, too, and keeps the token out of the metadata", async () => {
    const inner = new StateGraph(State)
      .addNode("deep", () => ({ n: 5 }))
      .addEdge(START, "deep")
      .compile();
    const outer = new StateGraph(State)
      .addNode("inner", inner)
      .addEdge(START, "inner")
      .compile({ checkpointer: saver });
    await leave("sub");
    const [lease] = await saver.threads.claim({ owner: "me", threadId: "sub" });
    const held = { configurable: { thread_id: "sub", [LEASE_TOKEN]: lease?.token } };
    await outer.invoke({ n: 0 }, held);
    const { rows } = await pool.query(
      `select count(*)::int as n, count(*) filter (where checkpoint_ns <> '')::int as inner,
         count(*) filter (where metadata::text || checkpoint::text like '%' || $1 || '%')::int as told
       from checkpoints where thread_id = 'sub'`,
      [lease?.token],
    );
    expect(rows[0].inner).toBeGreaterThan(0);
    expect(rows[0].told).toBe(0);
    await saver.threads.release("sub", lease?.token ?? "");
    // At the end, where LangGraph waits for it: a put that fails while a step runs is an unhandled
    // rejection of LangGraph's.
    await expect(outer.invoke({ n: 1 }, { ...held, durability: "exit" })).rejects.toMatchObject({
      code: 9,
    });
    expect((await pool.query("select from checkpoints where thread_id = 'sub'")).rowCount).toBe(
      rows[0].n,
    );
  });
});

describe("a database of two graphs", () => {
  let shared: TestDatabase;
  let service: Server;
  let savers: Record<"billing" | "chat" | "nameless", ConnectSaver>;
  let sql: pg.Pool;
  beforeAll(async () => {
    shared = await createDatabase();
    service = await startTestServer(shared.url);
    sql = new pg.Pool({ connectionString: shared.url, max: 2 });
    savers = {
      billing: ConnectSaver.fromUrl(service.url, { graph: "billing" }),
      chat: ConnectSaver.fromUrl(service.url, { graph: "chat" }),
      nameless: ConnectSaver.fromUrl(service.url),
    };
  });
  afterAll(async () => {
    for (const each of Object.values(savers)) await each.end();
    await service?.drain();
    await sql?.end();
    await shared?.drop();
  });
  afterEach(async () => {
    await sql.query(
      "truncate checkpoints, checkpoint_blobs, checkpoint_writes, checkpointd_claims",
    );
  });

  const Bill = Annotation.Root({ total: Annotation<number>() });
  const createBilling = (checkpointer: ConnectSaver) =>
    new StateGraph(Bill)
      .addNode("load", () => ({ total: 10 }))
      .addNode("charge", ({ total }) => ({ total: total * 2 }))
      .addEdge(START, "load")
      .addEdge("load", "charge")
      .compile({ checkpointer });
  const createChat = (checkpointer: ConnectSaver) =>
    new StateGraph(MessagesAnnotation)
      .addNode("agent", () => ({ messages: [{ role: "assistant", content: "Hello!" }] }))
      .addEdge(START, "agent")
      .compile({ checkpointer });
  const inThread = (thread_id: string) => ({ configurable: { thread_id } });

  /** A thread of billing whose worker was killed: with its input stored, or before `charge`. */
  async function crash(at: "input" | "charge", thread: string, by = savers.billing) {
    await createBilling(by).invoke({ total: 0 }, inThread(thread));
    const last = at === "input" ? -1 : 1;
    const { rowCount } = await sql.query(
      "delete from checkpoints where thread_id = $1 and (metadata ->> 'step')::int > $2",
      [thread, last],
    );
    expect(rowCount).toBeGreaterThan(0);
    await sql.query("delete from checkpoint_writes where thread_id = $1", [thread]);
    expect((await savers.nameless.threads.get(thread))?.status).toBe("pending");
  }

  const leases = async () =>
    (await sql.query("select thread_id from checkpointd_claims order by 1")).rows.map(
      ({ thread_id }) => thread_id,
    );
  const options = { graceMs: 0 };

  it.each(["input", "charge"] as const)(
    "leaves the other's thread alone, killed at %s",
    async (at) => {
      for (const by of ["billing", "nameless"] as const) {
        for (const saver of [savers.chat, savers.nameless]) {
          const thread = `invoice ${by} ${saver.graph}`;
          await crash(at, thread, savers[by]);
          const reasons: Error[] = [];
          const summary = await recoverThreads(saver, createChat(saver), {
            ...options,
            prefix: thread,
            onRecovered: () => expect.unreachable("it was run"),
            onSkipped: (_, reason) => reasons.push(reason),
          });
          // Without names it is looked at, and is not chat's by what it names.
          const isLookedAt = by === "nameless" && saver.graph === undefined;
          expect(summary).toEqual({ ...none, skipped: isLookedAt ? 1 : 0 });
          expect(await leases()).toEqual([]);
          if (isLookedAt) {
            const named = at === "input" ? 'channel "total"' : 'node "charge"';
            expect(String(reasons)).toContain(`the graph does not know ${named}`);
          }
          const own = await recoverThreads(savers[by], createBilling(savers[by]), {
            ...options,
            prefix: thread,
          });
          expect(own).toEqual({ ...none, resumed: 1 });
          const { values, next } = await createBilling(savers[by]).getState(inThread(thread));
          expect({ values, next }).toEqual({ values: { total: 20 }, next: [] });
        }
      }
    },
  );

  it("takes threads without a name when told to, and names them", async () => {
    await crash("charge", "old", savers.nameless);
    await crash("charge", "named");
    await crash("charge", "chats", savers.chat);
    const billing = createBilling(savers.billing);
    const summary = await recoverThreads(savers.billing, billing, { ...options, prefix: "old" });
    expect(summary).toEqual(none);
    const all = await recoverThreads(savers.billing, billing, { ...options, unnamed: true });
    expect(all).toEqual({ ...none, resumed: 2 });
    const graphs = async (thread: string) => (await savers.chat.threads.get(thread))?.graph;
    expect([await graphs("old"), await graphs("named"), await graphs("chats")]).toEqual([
      "billing",
      "billing",
      "chat",
    ]);
    expect((await savers.chat.threads.get("chats"))?.status).toBe("pending");
  });

  it("keeps the name with every checkpoint, subgraphs' too, and out of what a graph reads", async () => {
    const outer = new StateGraph(Bill)
      .addNode("inner", createBilling(true as never))
      .addEdge(START, "inner")
      .compile({ checkpointer: savers.billing });
    await outer.invoke({ total: 1 }, { ...inThread("stamped"), metadata: { mine: 1 } });
    await outer.updateState(inThread("stamped"), { total: 5 });
    const { rows } = await sql.query(
      "select checkpoint_ns <> '' as inner, metadata ->> 'checkpointd_graph' as graph from checkpoints",
    );
    expect(new Set(rows.map(({ inner }) => inner))).toEqual(new Set([true, false]));
    expect(new Set(rows.map(({ graph }) => graph))).toEqual(new Set(["billing"]));
    for await (const { metadata } of outer.getStateHistory(inThread("stamped"))) {
      expect(metadata).not.toHaveProperty("checkpointd_graph");
    }
    const found = [];
    const filter = { checkpointd_graph: "billing" };
    for await (const { metadata } of savers.chat.list({}, { filter })) {
      expect(metadata).not.toHaveProperty("checkpointd_graph");
      found.push(metadata);
    }
    expect(found).toHaveLength(rows.length);
    const ofGraph = async (graph: string | null) => {
      const threads = [];
      for await (const thread of savers.chat.threads.list({ graph })) threads.push(thread);
      return threads.map(({ threadId, metadata }) => [threadId, "checkpointd_graph" in metadata]);
    };
    expect(await ofGraph("billing")).toEqual([["stamped", false]]);
    expect(await ofGraph("chat")).toEqual([]);
    expect(await ofGraph(null)).toEqual([]);
  });

  it("skips a thread of its own whose nodes are another version's, and leaves it to that", async () => {
    await crash("charge", "renamed");
    const renamed = new StateGraph(Bill)
      .addNode("load", () => ({ total: 10 }))
      .addNode("charge_card", () => ({ total: 20 }))
      .addEdge(START, "load")
      .addEdge("load", "charge_card")
      .compile({ checkpointer: savers.billing });
    const stop = new AbortController();
    const skipped: [string, Error][] = [];
    const old = recoverThreads(savers.billing, renamed, {
      ...options,
      pollMs: 5,
      signal: stop.signal,
      onSkipped: ({ threadId }, reason) => skipped.push([threadId, reason]),
    });
    while (skipped.length === 0) await delay(10);
    await delay(300);
    // Only once, over many polls, and free for the others at once.
    expect(skipped.map(([threadId]) => threadId)).toEqual(["renamed"]);
    expect(String(skipped[0]?.[1])).toContain('the graph does not know node "charge"');
    const summary = await recoverThreads(savers.billing, createBilling(savers.billing), options);
    expect(summary).toEqual({ ...none, resumed: 1 });
    stop.abort();
    expect(await old).toEqual({ ...none, skipped: 1 });
  });

  it("skips what was sent to a node that is not there", async () => {
    const build = (worker: string, next: () => unknown) =>
      (new StateGraph(Bill) as unknown as StateGraph<typeof Bill, object, object, string>)
        .addNode("plan", () => ({ total: 1 }))
        .addNode(worker, next as never)
        .addEdge(START, "plan" as never)
        .addConditionalEdges("plan" as never, () => [new Send(worker, { total: 1 })])
        .compile({ checkpointer: savers.billing });
    const failing = build("worker", () => ({ total: 2 }));
    failing.interruptBefore = ["worker"] as never;
    await failing.invoke({ total: 0 }, inThread("sent"));
    expect((await savers.billing.threads.get("sent"))?.pendingNodes).toContain("__pregel_tasks");
    const other = build("another", () => ({ total: 3 }));
    expect(await recoverThreads(savers.billing, other, options)).toEqual({ ...none, skipped: 1 });
    const same = build("worker", () => ({ total: 2 }));
    expect(await recoverThreads(savers.billing, same, options)).toEqual({ ...none, resumed: 1 });
  });

  it("claims no thread again before it has counted how its run ended", async () => {
    await crash("charge", "own");
    await crash("charge", "foreign");
    await sql.query(
      "update checkpoint_blobs set channel = 'branch:to:gone' where thread_id = 'foreign' and channel = 'branch:to:charge'",
    );
    await sql.query(
      "update checkpoints set checkpoint = replace(checkpoint::text, 'branch:to:charge', 'branch:to:gone')::jsonb where thread_id = 'foreign'",
    );
    const { threads } = savers.billing;
    const { claim, release } = threads;
    let claimed = () => {};
    threads.claim = async (...args) => {
      const leases = await claim.apply(threads, args);
      claimed();
      return leases;
    };
    // It is free for whoever claims next, and this call does not know yet that it was skipped.
    threads.release = async (...args) => {
      await release.apply(threads, args);
      if (args[0] !== "foreign") return;
      const next = new Promise<void>((resolve) => {
        claimed = resolve;
      });
      await Promise.race([next, delay(3_000)]);
    };
    try {
      const both = { ...options, concurrency: 2 };
      const summary = await recoverThreads(savers.billing, createBilling(savers.billing), both);
      expect(summary).toEqual({ ...none, resumed: 1, skipped: 1 });
    } finally {
      Object.assign(threads, { claim, release });
    }
  });

  it("goes past threads that it skips to those that it can resume", async () => {
    for (let i = 0; i < 3; i++) await crash("charge", `own ${i}`);
    for (let i = 0; i < 5; i++) {
      await crash("charge", `foreign ${i}`);
      await sql.query(
        "update checkpoint_blobs set channel = 'branch:to:gone' where thread_id = $1 and channel = 'branch:to:charge'",
        [`foreign ${i}`],
      );
      await sql.query(
        "update checkpoints set checkpoint = replace(checkpoint::text, 'branch:to:charge', 'branch:to:gone')::jsonb where thread_id = $1",
        [`foreign ${i}`],
      );
    }
    const billing = createBilling(savers.billing);
    // The foreign ones are the newest.
    expect(await recoverThreads(savers.billing, billing, options)).toEqual({
      ...none,
      resumed: 3,
      skipped: 5,
    });
  });

  it("does not hot-loop over a thread that does not move, in one worker nor in several", async () => {
    await crash("charge", "stuck");
    let runs = 0;
    const { nodes, channels } = createBilling(savers.billing);
    const idle = {
      nodes,
      channels,
      invoke: async () => {
        runs++;
      },
    };
    const stop = new AbortController();
    const seen: Recovered[] = [];
    const workers = [1, 2, 3].map(() =>
      recoverThreads(savers.billing, idle, {
        ...options,
        pollMs: 5,
        signal: stop.signal,
        onRecovered: (each) => seen.push(each),
      }),
    );
    while (seen.length === 0) await delay(10);
    await delay(300);
    expect(runs).toBe(1);
    expect(seen.map(({ outcome }) => outcome)).toEqual(["stuck"]);
    // It stays under its lease, and is no longer renewed.
    expect(await leases()).toEqual(["stuck"]);
    stop.abort();
    const summaries = await Promise.all(workers);
    expect(summaries.map(({ stuck }) => stuck).sort()).toEqual([0, 0, 1]);
  });

  it("tries a thread that does not move again when the lease has run out, twice as late each time", {
    timeout: 60_000,
  }, async () => {
    await crash("charge", "stuck again");
    const at: number[] = [];
    const { nodes, channels } = createBilling(savers.billing);
    const stop = new AbortController();
    const summary = await recoverThreads(
      savers.billing,
      {
        nodes,
        channels,
        invoke: async () => {
          at.push(performance.now());
          // By itself it would wait 4 s now.
          if (at.length === 3) setTimeout(() => stop.abort(), 1_500);
        },
      },
      { ...options, leaseMs: 1_000, pollMs: 20, signal: stop.signal },
    );
    expect(summary).toEqual({ ...none, stuck: 3 });
    const [first = 0, second = 0, third = 0] = at;
    expect(second - first).toBeGreaterThanOrEqual(990);
    expect(third - second).toBeGreaterThanOrEqual(1_990);
  });

  it("counts what tasks stored as progress, though the graph failed after it", async () => {
    await crash("charge", "progress");
    const { nodes } = createBilling(savers.billing);
    let runs = 0;
    const graph = {
      nodes,
      invoke: async (_: null, config: RunnableConfig) => {
        runs++;
        const tuple = await savers.billing.getTuple(config);
        const configurable = { ...tuple?.config.configurable, ...config.configurable };
        // As a step does that times out when some of its tasks are done; at last when none is.
        const channel = runs < 3 ? "total" : "__resume__";
        await savers.billing.putWrites({ configurable }, [[channel, 3]], `task ${runs}`);
        throw new Error("a step's timeout");
      },
    };
    const stop = new AbortController();
    let ended = 0;
    const recovery = recoverThreads(savers.billing, graph, {
      ...options,
      pollMs: 5,
      signal: stop.signal,
      // As if its lease had run out.
      onRecovered: () =>
        void sql.query("delete from checkpointd_claims").then(() => {
          ended++;
        }),
    });
    while (ended < 3) await delay(10);
    // Nothing of the third was progress.
    await delay(300);
    stop.abort();
    expect(await recovery).toEqual({ ...none, failed: 3 });
  });

  it("says what is wrong with a graph whose threads cannot be told", async () => {
    const invoke = async () => {};
    await expect(recoverThreads(savers.nameless, { invoke })).rejects.toThrow(
      /give the saver the option graph/,
    );
    const other = createBilling(savers.chat);
    await expect(recoverThreads(savers.billing, other)).rejects.toThrow(
      /compiled with a saver of "chat", and threads of "billing"/,
    );
    for (const graph of ["", 7, null]) {
      expect(() => ConnectSaver.fromUrl(service.url, { graph: graph as never })).toThrow(
        /^graph must be a name/,
      );
    }
    expect(() => ConnectSaver.fromUrl(service.url, { graph: "a\0" })).toThrow(/^graph must not/);
  });

  it("claims none of those excepted", async () => {
    for (let i = 0; i < 3; i++) await crash("charge", `t${i}`);
    const claim = { owner: "me", graceMs: 0, limit: 10 };
    const first = await savers.billing.threads.claim({ ...claim, except: ["t0", "t2", "none"] });
    expect(first.map(({ thread }) => thread.threadId)).toEqual(["t1"]);
    const rest = await savers.billing.threads.claim({ ...claim, graph: "billing" });
    expect(rest.map(({ thread }) => thread.threadId).sort()).toEqual(["t0", "t2"]);
  });
});
