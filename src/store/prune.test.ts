/** PruneThreads never removes what a checkpoint that stays needs: random threads, random rules. */
import { setTimeout as delay } from "node:timers/promises";
import { type MessageInitShape, toJsonString } from "@bufbuild/protobuf";
import { type Client, createClient, type Transport } from "@connectrpc/connect";
import { createConnectTransport } from "@connectrpc/connect-node";
import { Annotation, Command, DeltaChannel, START, StateGraph } from "@langchain/langgraph";
import type { BaseCheckpointSaver } from "@langchain/langgraph-checkpoint";
import { PostgresSaver } from "@langchain/langgraph-checkpoint-postgres";
import pg from "pg";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { CheckpointTupleSchema } from "../../gen/checkpointd/v1/checkpoint_pb.js";
import { CheckpointService } from "../../gen/checkpointd/v1/checkpoint_service_pb.js";
import {
  type PruneThreadsRequestSchema,
  ThreadService,
} from "../../gen/checkpointd/v1/thread_service_pb.js";
import { ConnectSaver } from "../client/saver.js";
import type { Pruned, PruneOptions } from "../client/threads.js";
import type { Server } from "../server/server.js";
import { createDatabase, type TestDatabase } from "../testing/postgres.js";
import { createRandom } from "../testing/random.js";
import { type Graph, type Scenario, scenarios } from "../testing/scenarios.js";
import { startTestServer } from "../testing/test_server.js";

let database: TestDatabase;
let pool: pg.Pool;
let server: Server;
let transport: Transport;
let service: Client<typeof CheckpointService>;
let saver: ConnectSaver;

beforeAll(async () => {
  database = await createDatabase();
  pool = new pg.Pool({ connectionString: database.url, max: 4 });
  server = await startTestServer(database.url);
  transport = createConnectTransport({ baseUrl: server.url, httpVersion: "2" });
  service = createClient(CheckpointService, transport);
  saver = ConnectSaver.fromUrl(server.url);
});
afterAll(async () => {
  await saver?.end();
  await server?.drain();
  await pool?.end();
  await database?.drop();
});

const config = (thread_id: string) => ({ configurable: { thread_id } });

/** Every checkpoint of a thread as the service returns it, by namespace and id. */
async function read(threadId: string): Promise<Map<string, string>> {
  const tuples = new Map<string, string>();
  for await (const { tuple } of service.list({ threadId })) {
    if (!tuple) continue;
    tuple.blobs.sort((a, b) => (a.channel < b.channel ? -1 : 1));
    const { checkpointNs = "", checkpointId = "" } = tuple.key ?? {};
    tuples.set(`${checkpointNs}\t${checkpointId}`, toJsonString(CheckpointTupleSchema, tuple));
  }
  return tuples;
}

/** What LangGraph makes of the root checkpoints that are stored, by id. */
async function states(graph: Graph, threadId: string): Promise<Map<string, string>> {
  const all = new Map<string, string>();
  for (const name of (await read(threadId)).keys()) {
    const [ns = "", checkpoint_id = ""] = name.split("\t");
    if (ns !== "") continue;
    const { values, next, tasks } = (await graph.getState({
      configurable: { thread_id: threadId, checkpoint_id },
    })) as unknown as { values: unknown; next: unknown; tasks: { name: string }[] };
    all.set(
      checkpoint_id,
      JSON.stringify([values, next, tasks.map((task) => ({ ...task, state: undefined }))]),
    );
  }
  return all;
}

async function prune(options: PruneOptions): Promise<Pruned[]> {
  const all: Pruned[] = [];
  for await (const each of saver.threads.prune(options)) {
    if (each.threadId !== undefined) all.push(each);
  }
  return all;
}

/** Values that no checkpoint of their thread and namespace names. */
const unused = async () =>
  (
    await pool.query(
      `select b.thread_id, b.checkpoint_ns, b.channel, b.version from checkpoint_blobs b
       where not exists (
         select from checkpoints c
         where c.thread_id = b.thread_id and c.checkpoint_ns = b.checkpoint_ns
           and c.checkpoint -> 'channel_versions' ->> b.channel = b.version
       )`,
    )
  ).rows;

const delta: Scenario = {
  name: "delta channels",
  build(checkpointer) {
    const channel = (snapshotFrequency: number) => () =>
      new DeltaChannel<string[], string[]>((a, b) => a.concat(...b), { snapshotFrequency });
    const State = Annotation.Root({ few: channel(3), many: channel(50) } as never);
    return new StateGraph(State as never)
      .addNode("a", (() => ({ few: ["a"], many: ["a"] })) as never)
      .addNode("b", (() => ({ many: ["b"] })) as never)
      .addEdge(START, "a")
      .addEdge("a" as never, "b" as never)
      .compile({ checkpointer }) as unknown as Graph;
  },
  run: (graph, config) => graph.invoke({ few: ["in"], many: ["in"] }, config),
};

/** A subgraph that remembers from call to call, in a namespace without a ":". */
const remembering: Scenario = {
  name: "subgraph with a memory",
  build(checkpointer) {
    const State = Annotation.Root({
      log: Annotation<string[]>({ reducer: (a, b) => a.concat(b), default: () => [] }),
    });
    const inner = new StateGraph(State)
      .addNode("deep", () => ({ log: ["deep"] }))
      .addEdge(START, "deep")
      .compile({ checkpointer: true });
    return new StateGraph(State)
      .addNode("sub", inner)
      .addEdge(START, "sub")
      .compile({ checkpointer }) as unknown as Graph;
  },
  run: (graph, config) => graph.invoke({ log: ["in"] }, config),
};

/** Runs a thread several times, from its end and from older checkpoints. */
async function live(
  { build, run }: Scenario,
  checkpointer: BaseCheckpointSaver,
  threadId: string,
  random: (below: number) => number,
): Promise<void> {
  const graph = build(checkpointer);
  const durability = ["async", "sync", "exit"][random(3)];
  const anyhow = (result: Promise<unknown>) => result.catch(() => {});
  for (let turns = 2 + random(3); turns > 0; turns--) {
    await anyhow(run(graph, { ...config(threadId), durability }));
    const old: object[] = [];
    for await (const each of graph.getStateHistory(config(threadId))) old.push(each.config);
    const some = old[random(old.length)] ?? config(threadId);
    const what = random(4);
    if (what === 0) await anyhow(graph.invoke(null, some));
    if (what === 1) await anyhow(graph.invoke(new Command({ resume: "yes" }), config(threadId)));
    if (what === 2) await anyhow(graph.updateState(some, { log: ["edited"], few: ["edited"] }));
  }
}

describe("pruneThreads", () => {
  it("leaves every checkpoint that stays as it was, byte for byte", {
    timeout: 120_000,
  }, async () => {
    const seed = Date.now() % 1_000_000;
    const random = createRandom(seed);
    const savers = [() => new ConnectSaver(transport), () => new PostgresSaver(pool)];
    for (const [i, make] of savers.entries()) {
      for (const scenario of [...scenarios, delta, delta, remembering, remembering]) {
        const threadId = `${i} ${scenario.name} ${random(1e9)}`;
        await live(scenario, make(), threadId, random);
        // The direct saver's values of forks are lost before we come (docs/langgraph-contract.md,
        // 2.10): what it reads is the same before and after all the same.
        const graph = scenario.build(make());
        const tuples = await read(threadId);
        const before = await states(graph, threadId);
        await saver.threads.copy(threadId, `${threadId} copy`);

        const keepLast = 1 + random(6);
        const olderThanMs = random(3) === 0 ? random(2_000) : undefined;
        const rule = { keepLast, ...(olderThanMs === undefined ? {} : { olderThanMs }) };
        const about = `seed ${seed}, ${threadId}, ${JSON.stringify(rule)}`;
        const threadIds = [threadId];
        const dry = await prune({ threadIds, ...rule, dryRun: true });
        expect(await read(threadId), about).toEqual(tuples);
        const removed = await prune({ threadIds, ...rule });
        if (olderThanMs === undefined) expect(removed, about).toEqual(dry);

        const left = await read(threadId);
        for (const [name, tuple] of left) expect(tuple, `${about} ${name}`).toBe(tuples.get(name));
        for (const [id, state] of await states(graph, threadId)) {
          expect(state, `${about} ${id}`).toBe(before.get(id));
        }
        const newest = [...before.keys()].slice(0, keepLast);
        expect([...left.keys()], about).toEqual(
          expect.arrayContaining(newest.map((id) => `\t${id}`)),
        );
        if (olderThanMs === undefined) {
          expect(await prune({ threadIds, ...rule }), `${about}, again`).toEqual([]);
        }
        // It goes on as it would have. With our saver: the direct one would give new values
        // versions that other branches have used, and lose them where those are still stored.
        const go = async (id: string) => {
          // A graph of its own for each: what a scenario's nodes remember decides what they do.
          const goingOn = scenario.build(saver);
          await goingOn.invoke(new Command({ resume: "go" }), config(id)).catch(() => {});
          const { values, next } = (await goingOn.getState(config(id))) as unknown as {
            values: Record<string, unknown>;
            next: unknown;
          };
          // Writes of nodes that ran side by side are replayed into a delta channel in the order of
          // their tasks' ids, which come from the new checkpoint's: no two runs have the same.
          if (Array.isArray(values.many)) values.many.sort();
          if (Array.isArray(values.few)) values.few.sort();
          return JSON.stringify([values, next]);
        };
        expect(await go(threadId), about).toBe(await go(`${threadId} copy`));
      }
    }
    expect(await unused()).toEqual([]);
  });

  // What updateState stores does not say which channels are delta channels.
  it.each([
    ["the writes of a run with exit durability", "exit", 1],
    ["a snapshot, through edits of edits", "sync", 3],
  ])("keeps %s that an edit is rebuilt from, however often", async (about, durability, edits) => {
    const threadId = `edited ${about}`;
    const graph = delta.build(saver);
    await delta.run(graph, { ...config(threadId), durability });
    const at: object[] = [];
    for await (const each of graph.getStateHistory(config(threadId))) at.push(each.config);
    let last = at[0] as object;
    for (let i = 0; i < edits; i++) {
      last = (await graph.updateState(last, { many: ["edited"] }, "a")) as object;
    }
    const before = (await states(graph, threadId)).get(
      (last as { configurable: { checkpoint_id: string } }).configurable.checkpoint_id,
    );
    expect(before).toContain('"in","a"');
    for (const _ of [1, 2, 3]) {
      await prune({ threadIds: [threadId], keepLast: 1 });
      expect([...(await states(graph, threadId)).values()][0]).toBe(before);
    }
  });

  it("keeps what old formats read from the parent, and Python's inlined values", async () => {
    const put = (id: string, parent: string | null, checkpoint: object) =>
      pool.query(
        `insert into checkpoints (thread_id, checkpoint_id, parent_checkpoint_id, checkpoint)
         values ('python', $1, $2, $3)`,
        [id, parent, checkpoint],
      );
    for (const id of ["1", "2", "3", "4"]) {
      const channel_versions = { n: `000${id}.0.1`, b: "0001.0.5" };
      await put(id, id === "1" ? null : String(Number(id) - 1), {
        v: 3,
        channel_versions,
        channel_values: { n: Number(id) },
      });
      for (const channel of ["__pregel_tasks", "x"]) {
        await pool.query(
          `insert into checkpoint_writes
             (thread_id, checkpoint_id, task_id, idx, channel, type, blob, task_path)
           values ('python', $1, $2, 0, $2, 'msgpack', '\\x90', 'p')`,
          [id, channel],
        );
      }
    }
    await pool.query(
      `insert into checkpoint_blobs (thread_id, channel, version, type, blob)
       values ('python', 'b', '0001.0.5', 'msgpack', '\\xc3')`,
    );
    const before = (await read("python")).get("\t4");
    expect(before).toContain("pendingSends");
    const [pruned] = await prune({ threadIds: ["python"], keepLast: 1 });
    expect(pruned?.removed).toMatchObject({ checkpoints: 3, blobs: 0 });
    const left = await read("python");
    expect([...left.keys()]).toEqual(["\t4"]);
    expect(left.get("\t4")).toBe(before);
  });

  it("never takes a value from a put that is under way", { timeout: 60_000 }, async () => {
    let isOver = false;
    const graph = (scenarios[0] as Scenario).build(saver);
    const threadIds = ["busy 0", "busy 1", "raw 0", "raw 1"];
    const writers = [0, 1].flatMap((i) => [
      (async () => {
        while (!isOver) await graph.invoke({ log: ["in"] }, config(`busy ${i}`));
      })(),
      // As forks of the direct saver do: the same version brought again, with the same value.
      (async () => {
        for (let n = 0; !isOver; n++) {
          const version = String(n % 7);
          await service.put({
            threadId: `raw ${i}`,
            checkpointId: String(n).padStart(8, "0"),
            checkpointJson: JSON.stringify({ v: 4, channel_versions: { a: Number(version) } }),
            blobs: [{ channel: "a", version, value: { type: "json", data: Buffer.from(version) } }],
          });
        }
      })(),
    ]);
    for (let run = 0; run < 20; run++) {
      await prune({ threadIds, keepLast: 1 });
      await delay(1);
    }
    isOver = true;
    await Promise.all(writers);
    const { rows } = await pool.query(
      `select c.thread_id, c.checkpoint_id, v.key from checkpoints c,
         jsonb_each_text(c.checkpoint -> 'channel_versions') as v
       where c.thread_id = any($1) and not exists (
         select from checkpoint_blobs b where b.thread_id = c.thread_id
           and b.channel = v.key and b.version = v.value
       )`,
      [threadIds],
    );
    expect(rows).toEqual([]);
    const { values } = (await graph.getState(config("busy 0"))) as unknown as {
      values: { log: string[] };
    };
    expect(values.log.length % 4).toBe(0);
  });

  it("leaves threads under a lease alone, and whole threads that were just updated", async () => {
    const linear = scenarios[0] as Scenario;
    for (const id of ["held", "fresh"]) await linear.run(linear.build(saver), config(id));
    const [lease] = await saver.threads.claim({ owner: "me", threadId: "held" });
    expect(await prune({ threadIds: ["held"], keepLast: 1 })).toEqual([]);
    expect(await prune({ prefix: "held", delete: true })).toEqual([]);
    await saver.threads.release("held", lease?.token ?? "");
    expect(await prune({ prefix: "held", delete: true })).toHaveLength(1);
    expect(await prune({ threadIds: ["fresh"], delete: true, olderThanMs: 60_000 })).toEqual([]);
    expect(await prune({ threadIds: ["fresh"], delete: true, olderThanMs: 0 })).toHaveLength(1);
    expect((await read("fresh")).size + (await read("held")).size).toBe(0);
  });

  it("prunes a long thread in batches of bounded size", { timeout: 60_000 }, async () => {
    await pool.query(
      `insert into checkpoints (thread_id, checkpoint_id, parent_checkpoint_id, checkpoint)
       select 'long', lpad(i::text, 8, '0'), lpad((i - 1)::text, 8, '0'),
         jsonb_build_object('v', 4, 'channel_versions', jsonb_build_object('a', i, 'b', i / 100))
       from generate_series(1, 6000) as i`,
    );
    await pool.query(
      `insert into checkpoint_blobs (thread_id, channel, version, type, blob)
       select 'long', 'a', i::text, 'json', '1'::bytea from generate_series(1, 6000) as i
       union all select 'long', 'b', i::text, 'json', '1'::bytea from generate_series(0, 60) as i`,
    );
    const [pruned] = await prune({ threadIds: ["long"], keepLast: 5 });
    expect(pruned?.removed).toMatchObject({ checkpoints: 5_995, blobs: 5_995 + 59 });
    expect((await read("long")).size).toBe(5);
    expect(await unused()).toEqual([]);
  });
});

it("goes on after a thread, in the order of ids, byte by byte", async () => {
  const ids = ["after-a", "after-b", "after-é", "after-漢", "after-😀"];
  for (const threadId of ids)
    await service.put({ threadId, checkpointId: "1", checkpointJson: "{}" });
  const threads = createClient(ThreadService, transport);
  const strategy = { case: "delete", value: true } as const;
  const pruned = async (request: MessageInitShape<typeof PruneThreadsRequestSchema>) => {
    const found = [];
    for await (const { threadId } of threads.pruneThreads({ strategy, dryRun: true, ...request })) {
      if (threadId) found.push(threadId);
    }
    return found;
  };
  const filter = { threadIdPrefix: "after-" };
  const shuffled = [...ids].reverse();
  for (const [i, afterThreadId] of ["", ...ids].entries()) {
    expect(await pruned({ filter, afterThreadId })).toEqual(ids.slice(i));
    expect(await pruned({ threadIds: shuffled, afterThreadId })).toEqual(ids.slice(i));
  }
});
