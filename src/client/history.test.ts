/** getDeltaChannelHistory against the base class's own, which makes a call for each ancestor. */
import { Annotation, DeltaChannel, END, START, StateGraph } from "@langchain/langgraph";
import { BaseCheckpointSaver } from "@langchain/langgraph-checkpoint";
import pg from "pg";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { Server } from "../server/server.js";
import { type CapturedLog, captureLog } from "../testing/captured_log.js";
import { createDatabase, type TestDatabase } from "../testing/postgres.js";
import { createRandom } from "../testing/random.js";
import { startTestServer } from "../testing/test_server.js";
import { ConnectSaver } from "./saver.js";

let database: TestDatabase;
let pool: pg.Pool;
let server: Server;
let log: CapturedLog;
let saver: ConnectSaver;

beforeAll(async () => {
  database = await createDatabase();
  pool = new pg.Pool({ connectionString: database.url, max: 2 });
  log = captureLog();
  server = await startTestServer(database.url, { log: log.log });
  // Calls of their own, so that the log has a line for each.
  saver = ConnectSaver.fromUrl(server.url, { session: false });
});
afterAll(async () => {
  await saver?.end();
  await server?.drain();
  await pool?.end();
  await database?.drop();
});

const channels = ["ch", "other", "__pregel_tasks"];
const target = (thread_id: string, checkpoint_id = "", checkpoint_ns = "") => ({
  config: { configurable: { thread_id, checkpoint_id, checkpoint_ns } },
  channels,
});
const ours = (...names: Parameters<typeof target>) =>
  saver.getDeltaChannelHistory(target(...names));
const base = (...names: Parameters<typeof target>) =>
  BaseCheckpointSaver.prototype.getDeltaChannelHistory.call(saver, target(...names));

interface Stored {
  id: string;
  parent?: string | undefined;
  ns?: string;
  checkpoint?: Record<string, unknown>;
  blobs?: Record<string, string>;
  writes?: [taskId: string, idx: number, channel: string, json: string][];
}

async function store(threadId: string, tuples: readonly Stored[]): Promise<void> {
  for (const { id, parent, ns = "", checkpoint = {}, blobs = {}, writes = [] } of tuples) {
    const channelVersions = Object.fromEntries(Object.keys(blobs).map((each) => [each, id]));
    await pool.query(
      `insert into checkpoints (thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, checkpoint)
       values ($1, $2, $3, $4, $5)`,
      [threadId, ns, id, parent, { v: 4, channel_versions: channelVersions, ...checkpoint }],
    );
    for (const [channel, json] of Object.entries(blobs)) {
      await pool.query(
        `insert into checkpoint_blobs (thread_id, checkpoint_ns, channel, version, type, blob)
         values ($1, $2, $3, $4, $5, $6)`,
        [threadId, ns, channel, id, json === "" ? "empty" : "json", json || null],
      );
    }
    for (const [taskId, idx, channel, json] of writes) {
      await pool.query(
        `insert into checkpoint_writes
           (thread_id, checkpoint_ns, checkpoint_id, task_id, idx, channel, type, blob)
         values ($1, $2, $3, $4, $5, $6, 'json', $7)`,
        [threadId, ns, id, taskId, idx, channel, Buffer.from(json)],
      );
    }
  }
}

describe("getDeltaChannelHistory", () => {
  it("agrees with the base class on any tree of checkpoints", { timeout: 60_000 }, async () => {
    const random = createRandom(7);
    for (let round = 0; round < 6; round++) {
      const tuples: Stored[] = [];
      const ns = round % 2 === 0 ? "" : "sub:1";
      for (let i = 0; i < 40; i++) {
        // Some ids out of order, above U+FFFF or as long as allowed; some parents not stored.
        const odd = random(8);
        const start = odd === 0 ? "\u{1f600}" : odd === 1 ? "\uffee" : odd === 2 ? "x" : "c";
        const id = `${start}${String(random(10_000)).padStart(5, "0")}-${i}`;
        const parent =
          random(15) === 0 ? "missing" : tuples[Math.max(0, i - 1 - random(3) ** 3)]?.id;
        const seed = random(24);
        const sends: Stored["writes"] =
          random(6) === 0 ? [["t9", 0, "__pregel_tasks", `"send ${i}"`]] : [];
        tuples.push({
          id: odd === 3 ? id.padEnd(128, "z") : id,
          parent,
          ns,
          // A value of its own, an emptied channel, one in the JSON (null too), an old format.
          blobs: seed === 0 ? { ch: `"seed ${i}"` } : seed === 1 ? { ch: "" } : {},
          checkpoint:
            seed === 2
              ? { channel_values: { other: i % 2 ? i : null } }
              : seed === 3
                ? { v: 3 }
                : {},
          writes: [
            [`t${random(3)}`, 0, "ch", `"b${i}"`],
            [`t${3 + random(3)}`, 0, "ch", `"a${i}"`],
            [`t${3 + random(3)}`, 1, "other", `"o${i}"`],
            ["t1", 2, "unasked", "1"],
            ...sends,
          ],
        });
      }
      await store(`tree ${round}`, tuples);
      for (const id of [undefined, "nothing", ...tuples.slice(25).map((tuple) => tuple.id)]) {
        const names = [`tree ${round}`, id, ns] as const;
        expect(await ours(...names), `round ${round}, ${id}`).toEqual(await base(...names));
      }
    }
  });

  it("takes one call for a history of 2,500 ancestors, of large values too", async () => {
    const id = (i: number) => String(i).padStart(6, "0");
    await store(
      "long",
      Array.from({ length: 2_501 }, (_, i) => ({
        id: id(i),
        ...(i > 0 ? { parent: id(i - 1) } : {}),
        blobs: i === 0 ? { ch: '"seed"' } : {},
        writes: [["t", 0, "ch", i % 100 === 0 ? `"${"x".repeat(50_000)}"` : `"${i}"`]],
      })),
    );
    const calls = () => log.lines().filter(({ msg }) => /^(slow )?call$/.test(String(msg))).length;
    const before = calls();
    const { ch } = await ours("long");
    // A stream is over for the server when it has sent the last of it.
    await expect.poll(() => calls() - before).toBe(1);
    expect(ch?.seed).toBe("seed");
    expect(ch?.writes).toHaveLength(2_500);
    expect(ch?.writes[1]).toEqual(["t", "ch", "1"]);
    expect(await base("long", id(1_200))).toEqual(await ours("long", id(1_200)));
  });

  it("ends where parents form a circle, also through a stored checkpoint itself", async () => {
    await store("circle", [
      { id: "c1", parent: "c2", writes: [["t", 0, "ch", "1"]] },
      { id: "c2", parent: "c1", writes: [["t", 0, "ch", "2"]] },
      { id: "self", parent: "self", writes: [["t", 0, "ch", "3"]] },
    ]);
    expect((await ours("circle", "c2")).ch?.writes).toHaveLength(2);
    expect((await ours("circle", "self")).ch?.writes).toHaveLength(1);
  });

  it("has an entry for every channel without ancestors, and none without channels", async () => {
    expect(await ours("nobody")).toEqual(await base("nobody"));
    const { config } = target("long");
    expect(await saver.getDeltaChannelHistory({ config, channels: [] })).toEqual({});
  });

  it("rebuilds a DeltaChannel of a real graph over snapshots and forks", async () => {
    const State = Annotation.Root({
      items: () =>
        new DeltaChannel<string[], string[]>((a, b) => a.concat(...b), { snapshotFrequency: 4 }),
    } as never);
    // LangGraph's types know DeltaChannel only in its schemas.
    const graph = new StateGraph(State as never)
      .addNode("work", () => ({ items: [`w${Math.random()}`] }) as never)
      .addEdge(START, "work")
      .addEdge("work", END)
      .compile({ checkpointer: saver });
    const config = { configurable: { thread_id: "real" } };
    for (let i = 0; i < 7; i++) await graph.invoke({ items: [`i${i}`] } as never, config);
    const states = [];
    for await (const each of graph.getStateHistory(config)) states.push(each);
    const fork = states[9]?.config;
    await graph.invoke({ items: ["forked"] } as never, fork as never);
    expect(((await graph.getState(config)).values as { items: string[] }).items).toContain(
      "forked",
    );
    for (const { config } of states) {
      const asked = { config, channels: ["items"] };
      expect(await saver.getDeltaChannelHistory(asked)).toEqual(
        await BaseCheckpointSaver.prototype.getDeltaChannelHistory.call(saver, asked),
      );
    }
  });
});
