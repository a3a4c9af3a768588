/** A checkpoint that a direct saver stored and nobody can print breaks nothing but itself. */
import { durationFromMs } from "@bufbuild/protobuf/wkt";
import { Code, createClient } from "@connectrpc/connect";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { ListView } from "../../gen/checkpointd/v1/checkpoint_service_pb.js";
import {
  type Thread,
  ThreadOrder,
  ThreadService,
  ThreadStatus,
} from "../../gen/checkpointd/v1/thread_service_pb.js";
import { createTransport, expectTold, failureOf, startEdge } from "../testing/edge.js";

async function all<T>(messages: AsyncIterable<T>): Promise<T[]> {
  const found: T[] = [];
  for await (const each of messages) found.push(each);
  return found;
}

const undeliverable = {
  code: Code.FailedPrecondition,
  reason: "UNDELIVERABLE",
  limit: 128 * 1024 * 1024,
} as const;

// Of the first Postgres prints 144 MB; the second, of 1.2 GB, is more than it can.
describe.each([
  ["metadata", 1_100],
  ["metadata", 9_000],
  ["checkpoint", 9_000],
])("%s of %d numbers 1e131071", (column, numbers) => {
  let edge: Awaited<ReturnType<typeof startEdge>>;
  let threads: ReturnType<typeof createClient<typeof ThreadService>>;
  beforeAll(async () => {
    edge = await startEdge();
    threads = createClient(ThreadService, createTransport("connect", edge.server.url));
    await edge.sql.query("truncate checkpoints, checkpoint_blobs");
    await edge.sql.query(
      `insert into checkpoints (thread_id, checkpoint_id, checkpoint, metadata)
       select 'poison', '5', ${column === "checkpoint" ? "json, '{}'" : "'{}', json"}
       from (
         select jsonb_object_agg('k' || i, 1e131071) as json from generate_series(1, $1::int) as i
       ) as made`,
      [numbers],
    );
    for (const i of [1, 2, 8, 9]) {
      await edge.clients.connect.put({
        threadId: `good${i}`,
        checkpointId: `${i}`,
        checkpointJson: '{"v":4}',
        metadataJson: '{"step":1}',
      });
    }
  }, 120_000);
  afterAll(() => edge.stop());
  const good = ["good1", "good2", "good8", "good9"];
  /** A thread's status is told of its checkpoint without printing it, unless that failed elsewhere. */
  const others = (found: { thread?: Thread | undefined }[]) =>
    found
      .map(({ thread }) => thread?.threadId)
      .filter((id) => column !== "checkpoint" || id !== "poison")
      .sort();
  const leftOut = () =>
    edge.captured.lines({ msg: "left out of an answer", threadId: "poison", checkpointId: "5" });

  it("is left out of lists and reported", { timeout: 120_000 }, async () => {
    const { connect, session } = edge.clients;
    for (const view of [ListView.FULL, ListView.METADATA]) {
      const isTold = column === "checkpoint" && view === ListView.METADATA;
      const expected = isTold ? [...good, "poison"] : good;
      for (const client of [connect, session]) {
        const ids = async (request: object) =>
          (await all(client.list({ view, ...request })))
            .map(({ tuple }) => tuple?.key?.threadId)
            .sort();
        expect(await ids({})).toEqual(expected);
        expect(await ids({ omitUnchanged: true })).toEqual(expected);
        expect(await ids({ checkpointNs: "" })).toEqual(expected);
        expect(await ids({ metadataFilterJson: '{"step":1}' })).toEqual(good);
        expect(await ids({ threadId: "poison" })).toEqual(isTold ? ["poison"] : []);
        expect((await ids({ limit: 3 })).length).toBe(3);
      }
    }
    expect(leftOut().length).toBeGreaterThan(0);
  });

  it("is left out of threads, and may be counted", { timeout: 120_000 }, async () => {
    for (const order of [ThreadOrder.NEWEST_FIRST, ThreadOrder.BY_ID]) {
      for (const withCounts of [false, true]) {
        const found = await all(threads.listThreads({ order, withCounts }));
        expect(others(found)).toEqual(good);
      }
    }
    if (column === "checkpoint") return;
    expectTold(await failureOf(threads.getThread({ threadId: "poison" })), undeliverable);
    expect(leftOut().length).toBeGreaterThan(0);
  });

  it("is an error of its own where it is asked for by its name", { timeout: 120_000 }, async () => {
    for (const client of [edge.clients.connect, edge.clients.session]) {
      const [latest, named, ...others] = await Promise.allSettled([
        client.getTuple({ threadId: "poison" }),
        client.getTuple({ threadId: "poison", checkpointId: "5" }),
        ...good.map((threadId) => client.getTuple({ threadId })),
      ]);
      for (const refused of [latest, named]) {
        expect(refused.status).toBe("rejected");
        expectTold((refused as PromiseRejectedResult).reason, undeliverable);
        expect((refused as PromiseRejectedResult).reason.message).toContain("checkpoint 5");
      }
      expect(others.map(({ status }) => status)).toEqual(good.map(() => "fulfilled"));
    }
  });

  it("is not claimed, and keeps nothing from being claimed", { timeout: 120_000 }, async () => {
    const statuses = [ThreadStatus.COMPLETED];
    const claim = { owner: "o", grace: durationFromMs(0), limit: 10, filter: { statuses } };
    const { threads: claimed } = await threads.claimThreads(claim);
    expect(others(claimed)).toEqual(good);
    for (const { thread } of claimed) {
      const { threadId } = thread!;
      await threads.releaseClaim({ threadId, force: true });
    }
    const { rows } = await edge.sql.query("select count(*)::int as n from checkpointd_claims");
    expect(rows[0].n).toBe(0);
  });

  it("is copied, pruned and deleted like others", { timeout: 120_000 }, async () => {
    const copy = { sourceThreadId: "poison", targetThreadId: "poison2" };
    expect((await threads.copyThread(copy)).copied?.checkpoints).toBe(1n);
    const counted = async (request: object) =>
      (await all(threads.pruneThreads(request))).flatMap(({ threadId, removed }) =>
        threadId ? [[threadId, removed?.checkpoints]] : [],
      );
    const everything = { strategy: { case: "delete", value: true } };
    const dry = await counted({ ...everything, dryRun: true });
    expect(dry.map(([threadId]) => threadId)).toEqual([...good, "poison", "poison2"]);
    expect(await counted({ ...everything, filter: { threadIdPrefix: "poison" } })).toEqual([
      ["poison", 1n],
      ["poison2", 1n],
    ]);
    expect(await edge.rowCounts()).toBe("4,0,0");
  });

  it("is nothing that a tuple refers to", { timeout: 120_000 }, async () => {
    const json = `{"v": 4, "channel_versions": {"c": 1}}`;
    await edge.sql.query(
      `insert into checkpoints (thread_id, checkpoint_id, checkpoint, metadata)
       select 'mixed', n, case when n = '2' then $1::jsonb || ${column === "checkpoint" ? "json" : "'{}'"} else $1::jsonb end,
         case when n = '2' then ${column === "checkpoint" ? "'{}'" : "json"} else '{}'::jsonb end
       from unnest('{1,2,3}'::text[]) as n, (
         select jsonb_object_agg('k' || i, 1e131071) as json from generate_series(1, $2::int) as i
       ) as made`,
      [json, numbers],
    );
    await edge.sql.query(
      `insert into checkpoint_blobs (thread_id, channel, version, type, blob)
       values ('mixed', 'c', '1', 'json', '7')`,
    );
    for (const client of [edge.clients.connect, edge.clients.session]) {
      const found = await all(client.list({ threadId: "mixed", omitUnchanged: true }));
      expect(found.map(({ tuple }) => [tuple?.key?.checkpointId, tuple?.blobs.length])).toEqual([
        ["3", 1],
        ["1", 1],
      ]);
    }
  });
});
