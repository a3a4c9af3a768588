import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { setTimeout as delay } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { Annotation, END, interrupt, START, StateGraph } from "@langchain/langgraph";
import pg from "pg";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { Server } from "../server/server.js";
import { createDatabase, type TestDatabase } from "../testing/postgres.js";
import { startTestServer } from "../testing/test_server.js";
import { LEASE_TOKEN } from "./names.js";
import { type Recovered, recoverThreads } from "./recover.js";
import { ConnectSaver } from "./saver.js";
import type { Thread } from "./threads.js";

/** Compiled, because a worker is killed and started again many times; `npm test` builds first. */
const worker = fileURLToPath(new URL("../../dist/src/testing/recovery_worker.js", import.meta.url));

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
    type Entry = { thread: string; node: string; worker: string; what: string };
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
        // Run again only after a worker that was killed while it ran, or had just run, the node:
        // nothing of the thread that comes after it was begun in that turn.
        for (const { worker } of runs.slice(0, -1)) {
          const later = entries.filter(
            (each) => each.worker === worker && isAfter(each.node, node) && each.what === "begin",
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
    expect(await recoverThreads(saver, failing, options)).toEqual({
      resumed: 0,
      failed: 1,
      lost: 0,
    });
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
    expect(summary).toEqual({ resumed: 0, failed: 0, lost: 1 });
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
    expect(await recoverThreads(saver, long, options)).toEqual({ resumed: 1, failed: 0, lost: 0 });
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
