/**
 * Whatever is stored can be read, listed, copied, exported, pruned and deleted by everybody: strange
 * writes by every carrier, and after each that was taken everything is read back in every way.
 * READ_BACK_SEED=N repeats a run that failed, and READ_BACK_ROUNDS=N makes it longer.
 */

import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import type { MessageInitShape } from "@bufbuild/protobuf";
import { durationFromMs } from "@bufbuild/protobuf/wkt";
import { Code, ConnectError, createClient } from "@connectrpc/connect";
import { afterAll, beforeAll, describe, expect, it, vi } from "vitest";
import { type CheckpointTuple, ErrorDetailSchema } from "../../gen/checkpointd/v1/checkpoint_pb.js";
import { ListView } from "../../gen/checkpointd/v1/checkpoint_service_pb.js";
import type {
  PutExtendingResponse,
  StoredPrefixSchema,
} from "../../gen/checkpointd/v1/session_service_pb.js";
import {
  ThreadOrder,
  ThreadService,
  ThreadStatus,
} from "../../gen/checkpointd/v1/thread_service_pb.js";
import { runExport, runImport } from "../cli/threads_transfer.js";
import { Calls } from "../client/calls.js";
import { openService } from "../client/service.js";
import { toReasons } from "../client/thread_reasons.js";
import { Threads } from "../client/threads.js";
import { UrlTransport } from "../client/transport.js";
import type { ErrorReason } from "../errors.js";
import { operations } from "../protocol/operations.js";
import {
  type Call,
  createTransport,
  expectHarmless,
  startEdge,
  type Way,
} from "../testing/edge.js";
import { createHostileWrites, type HostilePut } from "../testing/hostile_writes.js";
import { createRandom } from "../testing/random.js";
import { createSessionTransport } from "../testing/session_transport.js";
import {
  byBytes,
  type ReadJson,
  type StoredCheckpoint,
  StoredThreads,
  toParts,
} from "../testing/stored_threads.js";
import { checkFilterJson } from "./json_checks.js";

const seed = Number(process.env.READ_BACK_SEED ?? 14);
const rounds = Number(process.env.READ_BACK_ROUNDS ?? 6);
const writesOfRound = 8;
const carriers: readonly Way[] = ["connect", "connect-json", "grpc", "session", "session-grpc"];

async function all<T>(messages: AsyncIterable<T>): Promise<T[]> {
  const found: T[] = [];
  for await (const each of messages) found.push(each);
  return found;
}

let edge: Awaited<ReturnType<typeof startEdge>>;
let folder: string;
let calls: Calls;
let transport: UrlTransport;
let session: ReturnType<typeof createSessionTransport>;
const threadClients: ReturnType<typeof createClient<typeof ThreadService>>[] = [];
beforeAll(async () => {
  edge = await startEdge();
  await edge.sql.query("truncate checkpoints, checkpoint_blobs");
  folder = await mkdtemp(path.join(tmpdir(), "checkpointd-read-back-"));
  transport = new UrlTransport(edge.server.url, {});
  calls = new Calls(openService(transport, {}), { timeoutMs: 60_000, retry: { attempts: 5 } });
  for (const protocol of ["connect", "connect-json", "grpc"] as const) {
    threadClients.push(createClient(ThreadService, createTransport(protocol, edge.server.url)));
  }
  session = createSessionTransport(createTransport("connect", edge.server.url));
  vi.spyOn(process.stdout, "write").mockImplementation(() => true);
});
afterAll(async () => {
  vi.restoreAllMocks();
  await calls?.end();
  transport?.close();
  await edge?.stop();
  await rm(folder, { recursive: true, force: true });
});

/** Exports the thread and imports it under another name. */
async function transfer(threadId: string, as: string, by = calls): Promise<void> {
  const command = {
    calls: by,
    threads: new Threads(by, ({ reasons }) => toReasons(reasons, String)),
  };
  const out = path.join(folder, "exported");
  await runExport({ ...command, words: [threadId], flags: { out } });
  await runImport({ ...command, words: [out], flags: { as } });
}

/** What Postgres, asked by nobody but this test, reads in JSON that was taken. */
async function readJson({ checkpointJson, metadataJson }: HostilePut): Promise<ReadJson> {
  const object = (key: string) =>
    `case when jsonb_typeof(c -> '${key}') = 'object' then c -> '${key}' end`;
  const { rows } = await edge.sql.query({
    text: `select
        array(select array[key, value] from jsonb_each_text(${object("channel_versions")})),
        array(select jsonb_object_keys(${object("channel_values")})),
        jsonb_typeof(c -> 'v') = 'number' and (c ->> 'v')::numeric < 4, m ->> 'run_id'
      from (select $1::jsonb as c, $2::jsonb as m) as sent`,
    values: [checkpointJson, metadataJson || "{}"],
    rowMode: "array",
  });
  const [versions, inline, beforeFormat4, runId] = rows[0] ?? [];
  return { versions, inline, beforeFormat4: beforeFormat4 === true, runId };
}

/** Checks that JSON came back as it was sent, by Postgres's own measure. */
async function expectSameJson(pairs: readonly [sent: string, told: string][]): Promise<void> {
  const { rows } = await edge.sql.query(
    `select sent, told from unnest($1::text[], $2::text[]) as pair (sent, told)
     where sent::jsonb <> told::jsonb`,
    [pairs.map(([sent]) => sent), pairs.map(([, told]) => told)],
  );
  expect(rows).toEqual([]);
}

/** One round: writes to two threads, everything read after each, and at the end they are removed. */
async function round(number: number, poison: readonly string[]): Promise<void> {
  const random = createRandom(seed + number * 7919);
  const pick = <T>(from: readonly T[]): T => from[random(from.length)] as T;
  const longName = pick(["l".repeat(20_000), "漢|:".repeat(150), "\u202e\u001b[2J", "__proto__"]);
  const threadIds = [`${number}`, longName];
  const stored = new StoredThreads();
  const hostile = createHostileWrites(random, threadIds);
  const checkpoints = () => edge.clients[pick(carriers)];
  const threads = () => pick(threadClients);

  const expectTuples = async (tuples: CheckpointTuple[], expected: StoredCheckpoint[]) => {
    const keyOf = ({ threadId = "", checkpointNs = "", checkpointId = "" }) =>
      JSON.stringify([threadId, checkpointNs, checkpointId]).slice(0, 300);
    expect(tuples.map(({ key }) => keyOf(key ?? {}))).toEqual(expected.map(keyOf));
    for (const [i, each] of expected.entries()) {
      expect(toParts(tuples[i] as CheckpointTuple)).toEqual(stored.parts(each));
    }
    await expectSameJson(
      expected.flatMap(({ checkpointJson, metadataJson }, i): [string, string][] => [
        [checkpointJson, tuples[i]?.checkpointJson ?? ""],
        [metadataJson, tuples[i]?.metadataJson ?? ""],
      ]),
    );
  };
  const list = async (request: object) =>
    (await all(checkpoints().list(request)))
      .map(({ tuple }) => tuple as CheckpointTuple)
      .filter(({ key }) => !poison.includes(key?.threadId ?? ""));

  /** Three of them, another three each time; a List has them all. */
  const some = (from: StoredCheckpoint[]) => {
    const at = random(Math.max(1, from.length - 2));
    return from.slice(at, at + 3);
  };
  /** Every way to read that leaves what is stored as it is. */
  const reads: Record<string, () => Promise<void>> = {
    async GetTuple() {
      for (const each of some(stored.list())) {
        const { threadId, checkpointNs, checkpointId } = each;
        const { tuple } = await checkpoints().getTuple({ threadId, checkpointNs, checkpointId });
        await expectTuples(tuple ? [tuple] : [], [each]);
      }
    },
    async "GetTuple of the latest"() {
      for (const { threadId, checkpointNs } of some(stored.list())) {
        const [latest] = stored.list(threadId).filter((each) => each.checkpointNs === checkpointNs);
        const { tuple } = await checkpoints().getTuple({ threadId, checkpointNs });
        await expectTuples(tuple ? [tuple] : [], latest ? [latest] : []);
      }
    },
    async List() {
      await expectTuples(await list({}), stored.list());
      for (const threadId of threadIds) {
        await expectTuples(await list({ threadId }), stored.list(threadId));
      }
    },
    async "List with conditions"() {
      const expected = stored.list();
      if (expected.length === 0) return;
      const { threadId, checkpointNs, checkpointId, metadataJson } = pick(expected);
      const ofNs = (each: StoredCheckpoint) => each.checkpointNs === checkpointNs;
      const ofThread = stored.list(threadId);
      await expectTuples(await list({ threadId, checkpointNs }), ofThread.filter(ofNs));
      await expectTuples(await list({ checkpointNs }), expected.filter(ofNs));
      await expectTuples(
        await list({ threadId, beforeCheckpointId: checkpointId }),
        ofThread.filter((each) => byBytes(each.checkpointId, checkpointId) < 0),
      );
      await expectTuples(
        await list({ checkpointId }),
        expected.filter((each) => each.checkpointId === checkpointId),
      );
      // The metadata contains itself.
      if (isFilter(metadataJson)) {
        const found = await list({ metadataFilterJson: metadataJson });
        expect(found.map(({ key }) => key?.checkpointId)).toContain(checkpointId);
      }
      await list({ threadId, metadataFilterJson: '{"no":"such"}' });
    },
    async "List of the metadata, one at a time"() {
      const expected = stored.list();
      let after: CheckpointTuple["key"];
      for (const { metadataJson } of expected.slice(0, 6)) {
        const request = {
          view: ListView.METADATA,
          limit: 1 + poison.length,
          ...(after && { after }),
        };
        const [tuple] = await list(request);
        await expectSameJson([[metadataJson, tuple?.metadataJson ?? ""]]);
        after = tuple?.key;
      }
    },
    async GetThread() {
      for (const threadId of threadIds) {
        const [latest] = stored.list(threadId).filter(({ checkpointNs }) => checkpointNs === "");
        const { thread } = await threads().getThread({ threadId, withCounts: true });
        expect(thread?.checkpointId).toBe(latest?.checkpointId);
        if (!thread || !latest) continue;
        await expectSameJson([[latest.metadataJson, thread.metadataJson]]);
        expect(thread.counts?.checkpoints).toBe(BigInt(stored.list(threadId).length));
      }
    },
    async ListThreads() {
      const roots = stored.list().filter(({ checkpointNs }) => checkpointNs === "");
      const expected = [...new Set(roots.map(({ threadId }) => threadId))].sort(byBytes);
      const ids = async (request: object) =>
        (await all(threads().listThreads(request)))
          .map(({ thread }) => thread?.threadId ?? "")
          .filter((threadId) => !poison.includes(threadId));
      for (const withCounts of [false, true]) {
        expect(await ids({ order: ThreadOrder.BY_ID, withCounts })).toEqual(expected);
        expect((await ids({ withCounts })).sort(byBytes)).toEqual(expected);
      }
      const byStatus = [];
      for (const status of [1, 2, 3, 4] as ThreadStatus[]) {
        byStatus.push(...(await ids({ filter: { statuses: [status] } })));
      }
      expect(byStatus.sort(byBytes)).toEqual(expected);
      const times = {
        updatedAfter: { seconds: -62_000_000_000n },
        updatedBefore: { seconds: 2n ** 37n },
      };
      expect((await ids({ filter: times })).sort(byBytes)).toEqual(expected);
      const root = roots[0];
      if (!root) return;
      const [latest] = roots.filter(({ threadId }) => threadId === root.threadId);
      const metadataFilterJson = latest?.metadataJson ?? "";
      if (isFilter(metadataFilterJson)) {
        expect(await ids({ filter: { metadataFilterJson } })).toContain(root.threadId);
      }
      expect(await ids({ filter: { threadIdPrefix: root.threadId } })).toContain(root.threadId);
      await ids({ filter: { graph: "" } });
    },
    async GetChannelHistory() {
      for (const from of stored.list().slice(0, 4)) {
        const { threadId, checkpointNs, checkpointId } = from;
        const channels = ["messages", "__pregel_tasks", "a", "0", "__proto__", "branch:to:b"];
        const request = { threadId, checkpointNs, checkpointId, channels };
        const told = await all(threads().getChannelHistory(request));
        expect(
          told.map(({ checkpointId, writes, seeds, inlineSeeds, pendingSends }) => [
            checkpointId,
            toParts({ blobs: [], pendingSends: [], pendingWrites: writes } as never).writes.sort(),
            [
              ...new Set([
                ...seeds.map(({ channel }) => channel),
                ...Object.keys(inlineSeeds),
                ...(pendingSends.length > 0 ? ["__pregel_tasks"] : []),
              ]),
            ].sort(),
          ]),
        ).toEqual(
          stored.history(from, channels).map(([id, writes, found]) => [id, writes.sort(), found]),
        );
      }
    },
    async "a dry PruneThreads"() {
      const strategy = { case: "keepLast", value: 1 } as const;
      await all(threads().pruneThreads({ strategy, dryRun: true }));
      for (const threadId of threadIds) {
        const request = { threadIds: [threadId], dryRun: true };
        await all(
          threads().pruneThreads({
            ...request,
            strategy: { case: "delete" as const, value: true },
          }),
        );
      }
    },
  };

  const during = async (what: string, does: () => Promise<unknown>) => {
    try {
      await does();
    } catch (error) {
      const problem = error as Error;
      problem.message = `round ${number}, seed ${seed}: ${what}: ${problem.message}`;
      throw problem;
    }
  };

  /** A refusal says of what, and was stored nowhere. */
  const taken = async <T>(write: Promise<T>): Promise<T | undefined> => {
    try {
      return await write;
    } catch (reason) {
      const error = ConnectError.from(reason);
      const [detail] = error.findDetails(ErrorDetailSchema);
      const { code, rawMessage } = error;
      const codes = [Code.InvalidArgument, Code.ResourceExhausted];
      if (detail?.reason !== "NOT_STORED") expect(codes, rawMessage).toContain(code);
      expect(detail?.field, rawMessage).not.toBe("");
      expect(rawMessage).toContain(detail?.field);
      if (/^(TOO_|OUT_OF)/.test(detail?.reason ?? ""))
        expect(detail?.limit, rawMessage).not.toBe(0n);
      expectHarmless(rawMessage);
      return undefined;
    }
  };

  /** The values that were put last on a session, of which those of the next may begin. */
  const extendable = new Map<
    string,
    { version: string; transactionId: string; data: Uint8Array }
  >();
  /** Puts values that begin as stored ones do, and returns what is stored then. */
  const putExtending = async (put: HostilePut): Promise<HostilePut> => {
    const prefixes: MessageInitShape<typeof StoredPrefixSchema>[] = [];
    const placeOf = (channel = "") => JSON.stringify([put.threadId, put.checkpointNs, channel]);
    const whole = (put.blobs ?? []).map((blob, blobIndex) => {
      const begun = extendable.get(placeOf(blob.channel));
      if (!begun || !blob.value || begun.data.length === 0) return blob;
      const { version, transactionId, data } = begun;
      const length = 1 + random(data.length);
      prefixes.push({ blobIndex, version, transactionId, length });
      const all = Buffer.concat([data.subarray(0, length), blob.value.data as Uint8Array]);
      return { ...blob, value: { ...blob.value, data: all } };
    });
    const method = { ...operations.putExtending, localName: "putExtending" } as never;
    const request = { put: { ...put }, prefixes } as never;
    const none = undefined;
    const { message } = await session.unary(method, none, none, none, request);
    const { transactionId } = message as unknown as PutExtendingResponse;
    for (const { channel, version = "", value } of whole) {
      const data = value?.data as Uint8Array | undefined;
      if (data) extendable.set(placeOf(channel), { version, transactionId, data });
    }
    return { ...put, blobs: whole } as HostilePut;
  };

  for (let i = 0; i < writesOfRound; i++) {
    const what = `write ${i}`;
    await during(what, async () => {
      if (random(3) === 0) {
        const writes = hostile.writes();
        if (await taken(checkpoints().putWrites(writes))) stored.putWrites(writes);
        return;
      }
      const put = hostile.put();
      if (random(4) === 0) {
        const whole = await taken(putExtending(put));
        if (whole) stored.put(whole, await readJson(put));
      } else if (await taken(checkpoints().put(put))) stored.put(put, await readJson(put));
    });
    for (const [name, read] of Object.entries(reads)) await during(`${name} after ${what}`, read);
  }

  const strip = (tuples: CheckpointTuple[]) =>
    tuples.map(({ key, checkpointJson, metadataJson, ...parts }) => [
      key?.checkpointNs,
      key?.checkpointId,
      checkpointJson,
      metadataJson,
      toParts(parts as CheckpointTuple),
    ]);
  const throughFile = async (threadId: string) => {
    const before = await list({ threadId });
    if (before.length === 0) return;
    await transfer(threadId, "imported");
    expect(strip(await list({ threadId: "imported" }))).toEqual(strip(before));
    await checkpoints().deleteThread({ threadId: "imported" });
  };
  for (const [i, threadId] of threadIds.entries()) {
    await during("CopyThread", async () => {
      await threads().copyThread({
        sourceThreadId: threadId,
        targetThreadId: `copy ${number} ${i}`,
      });
      const copy = await list({ threadId: `copy ${number} ${i}` });
      expect(strip(copy)).toEqual(strip(await list({ threadId })));
    });
    await during("export and import", () => throughFile(threadId));
    await during("a claim", async () => {
      const { threads: claimed } = await threads().claimThreads({ owner: "o", threadId });
      for (const { leaseToken } of claimed) {
        await threads().renewClaim({ threadId, leaseToken });
        await threads().releaseClaim({ threadId, leaseToken });
      }
      const statuses = [1, 2, 3, 4] as ThreadStatus[];
      const grace = durationFromMs(0);
      const any = await threads().claimThreads({
        owner: "o",
        grace,
        limit: 100,
        filter: { statuses },
      });
      for (const { thread } of any.threads) {
        await threads().releaseClaim({ threadId: thread?.threadId ?? "", force: true });
      }
    });
  }
  await during("PruneThreads", async () => {
    const strategy = { case: "keepLast", value: 1 } as const;
    const counts = async (dryRun: boolean) =>
      (await all(threads().pruneThreads({ strategy, dryRun })))
        .filter(({ threadId }) => threadId !== "")
        .map(({ threadId, removed }) => [threadId, removed?.checkpoints]);
    const dry = await counts(true);
    expect(await counts(false)).toEqual(dry);
    await list({});
  });
  for (const threadId of threadIds) {
    await during("export and import of what is left", () => throughFile(threadId));
  }
  await during("DeleteRuns", async () => {
    const runs = new Set(stored.list().map(({ read }) => read.runId));
    const runIds = [...runs].filter((id) => id !== null && id !== "" && id.length < 20_000);
    await threads().deleteRuns({ runIds: runIds as string[] });
    expect(
      (await list({})).filter(({ metadataJson }) => /"run_id": "run"/.test(metadataJson)),
    ).toEqual([]);
  });
  await during("DeleteThread", async () => {
    const { rows } = await edge.sql.query(
      `select thread_id from checkpoints union select thread_id from checkpoint_writes
       union select thread_id from checkpoint_blobs`,
    );
    for (const { thread_id: threadId } of rows) {
      if (!poison.includes(threadId)) await checkpoints().deleteThread({ threadId });
    }
    expect(await edge.rowCounts()).toBe(`${poison.length},0,0`);
  });
  expect(edge.captured.lines({ level: 50 })).toEqual([]);
}

/** Whether it is not too much for a filter, of which less may be than of metadata. */
function isFilter(json: string): boolean {
  try {
    checkFilterJson("filter", json);
    return true;
  } catch {
    return false;
  }
}

describe("what was stored", () => {
  const numbers = Array.from({ length: rounds }, (_, i) => i);
  it("is read back in every way", { timeout: 60_000 + rounds * 30_000 }, async () => {
    for (const number of numbers) await round(number, []);
  });

  it("is so beside what nobody can print", { timeout: 120_000 + rounds * 30_000 }, async () => {
    await edge.sql.query(
      `insert into checkpoints (thread_id, checkpoint_id, checkpoint, metadata)
       select 'poison', '5', '{}', jsonb_object_agg('k' || i, 1e131071) from generate_series(1, 9000) as i`,
    );
    for (const number of numbers) await round(rounds + number, ["poison"]);
    expect(edge.captured.lines({ msg: "left out of an answer" }).length).toBeGreaterThan(0);
  });
});

describe("what is refused, since it could not be read", () => {
  const key = { threadId: "t", checkpointId: "1" };
  const numbers = (count: number) => `{"a":[${"1,".repeat(count)}1]}`;
  const nested = (levels: number) => `${'{"a":'.repeat(levels - 1)}{}${"}".repeat(levels - 1)}`;
  const random = createRandom(1);
  const digits = Array.from({ length: 9_000 }, () => 1 + random(9)).join("");

  it.each<[string, string, ErrorReason, number]>([
    ["2,001 levels", nested(2_001), "INVALID_JSON", 2_000],
    ["more than 4 Mi elements", numbers(5_000_000), "TOO_MANY", 4 * 1024 * 1024],
    [
      "more digits than are told",
      `{"a":[${"1e9,".repeat(200_000)}1]}`,
      "OUT_OF_RANGE",
      1024 * 1024,
    ],
    ["a run that is a number of 9,000 digits", `{"run_id":${digits}}`, "TOO_LONG", 2_692],
  ])("%s", async (_, metadataJson, reason, limit) => {
    const refusal = { code: Code.InvalidArgument, reason, field: "metadata_json", limit };
    const call: Call = { rpc: "put", request: { ...key, checkpointJson: "{}", metadataJson } };
    await edge.expectRefused(call, refusal, ["connect", "session"]);
  });

  it("JSON that is larger than a message when it is printed", async () => {
    const maxMessageSize = 1024 * 1024;
    const small = await startEdge({ maxMessageSize });
    try {
      // Postgres prints three bytes for each two.
      const put = { ...key, checkpointJson: numbers(400_000) };
      const refusal = {
        code: Code.InvalidArgument,
        reason: "TOO_LONG",
        field: "checkpoint_json",
      } as const;
      await small.expectRefused(
        { rpc: "put", request: put },
        { ...refusal, limit: maxMessageSize },
      );
      await small.clients.connect.put({ ...key, checkpointJson: numbers(300_000) });
      const { tuple } = await small.clients.connect.getTuple(key);
      await small.clients.connect.put({ ...key, checkpointJson: tuple?.checkpointJson ?? "" });
    } finally {
      await small.stop();
    }
  });
});

describe("what is taken to its limits, and what a direct saver stored beyond them", () => {
  const guarded = async () => {
    await edge.sql.query("truncate checkpoints, checkpoint_blobs, checkpoint_writes");
    await edge.sql.query(
      `insert into checkpoints (thread_id, checkpoint_id, checkpoint, metadata)
       select 'poison', '5', '{}', jsonb_object_agg('k' || i, 1e131071) from generate_series(1, 9000) as i`,
    );
    await all(edge.clients.connect.list({}));
  };

  it("is listed and filtered by where it is deep", { timeout: 120_000 }, async () => {
    await guarded();
    const deep = (levels: number) => `{"a":${"[".repeat(levels - 1)}${"]".repeat(levels - 1)}}`;
    const { connect } = edge.clients;
    const put = { threadId: "deep", checkpointId: "1", checkpointJson: deep(2_000) };
    await connect.put({ ...put, metadataJson: deep(2_000) });
    await edge.sql.query(
      `insert into checkpoints (thread_id, checkpoint_id, checkpoint, metadata) values ('deeper', '1', '{}', $1)`,
      [deep(16_000)],
    );
    const ids = async (request: object) =>
      (await all(connect.list(request))).map(({ tuple }) => tuple?.key?.threadId);
    expect(await ids({ metadataFilterJson: deep(2_000) })).toContain("deep");
    expect((await ids({})).sort()).toEqual(["deep"]);
    const [reader] = threadClients as [(typeof threadClients)[0]];
    const found = await all(reader.listThreads({ withCounts: true }));
    expect(found.map(({ thread }) => thread?.threadId)).toEqual(["deep"]);
    for (const thread_id of ["deep", "deeper"]) {
      expect((await edge.clients.connect.getTuple({ threadId: "deep" })).tuple).toBeDefined();
      await reader.copyThread({
        sourceThreadId: thread_id,
        targetThreadId: `copy of ${thread_id}`,
      });
    }
    expect(edge.captured.lines({ msg: "left out of an answer", threadId: "deeper" })).not.toEqual(
      [],
    );
    await edge.sql.query("truncate checkpoints");
  });

  it("has a status where a join holds more than can be written out", {
    timeout: 120_000,
  }, async () => {
    await edge.clients.connect.put({
      threadId: "join",
      checkpointId: "1",
      checkpointJson: '{"v":4,"channel_versions":{"join:a+b:c":"1"}}',
    });
    // Written out it has four bytes for one, more than Postgres can make.
    await edge.sql.query(
      `insert into checkpoint_blobs (thread_id, channel, version, type, blob)
       select 'join', 'join:a+b:c', '1', 'json', decode(repeat('92', 280000000), 'hex')`,
    );
    const [reader] = threadClients as [(typeof threadClients)[0]];
    const found = await all(reader.listThreads({}));
    expect(found.map(({ thread }) => thread?.status)).toEqual([ThreadStatus.COMPLETED]);
    await edge.sql.query("truncate checkpoints, checkpoint_blobs");
  });

  it("is imported: JSON and a value that are too large for one message", async () => {
    const small = await startEdge({ maxMessageSize: 24 * 1024 * 1024 });
    const ofSmall = new UrlTransport(small.server.url, {});
    const by = new Calls(openService(ofSmall, {}), { timeoutMs: 60_000 });
    try {
      const text = "x".repeat(17_000_000);
      const key = { threadId: "large", checkpointId: "1" };
      const blob = {
        channel: "c",
        version: "1",
        value: { type: "bytes", data: Buffer.from(text) },
      };
      const json = `"v":4,"channel_versions":{"c":"1"}`;
      const { connect } = small.clients;
      await connect.put({ ...key, checkpointJson: `{${json}}`, blobs: [blob] });
      await connect.put({ ...key, checkpointJson: `{${json},"text":"${text}"}` });
      await transfer("large", "imported", by);
      const { tuple } = await connect.getTuple({ threadId: "imported" });
      expect(tuple?.blobs.length).toBe(1);
      expect(tuple?.checkpointJson.length).toBeGreaterThan(text.length);
    } finally {
      await by.end();
      ofSmall.close();
      await small.stop();
    }
  });

  it("is imported: what was sent by a parent that is not stored any more", async () => {
    const threadId = "sent";
    const put = { threadId, checkpointJson: '{"v":3}' };
    const { connect } = edge.clients;
    await connect.put({ ...put, checkpointId: "1" });
    await connect.putWrites({
      threadId,
      checkpointId: "1",
      taskId: "task",
      writes: ["a", "b"].map((text, idx) => ({
        idx,
        channel: "__pregel_tasks",
        value: { type: "bytes", data: Buffer.from(text) },
      })),
    });
    await connect.put({ ...put, checkpointId: "2", parentCheckpointId: "1" });
    const strategy = { case: "keepLast", value: 1 } as const;
    const [pruner] = threadClients as [(typeof threadClients)[0]];
    await all(pruner.pruneThreads({ threadIds: [threadId], strategy }));
    await transfer(threadId, "imported");
    const { tuple } = await connect.getTuple({ threadId: "imported" });
    expect(tuple?.pendingSends.map(({ data }) => String(data))).toEqual(
      (await connect.getTuple({ threadId })).tuple?.pendingSends.map(({ data }) => String(data)),
    );
    expect(tuple?.pendingSends.length).toBe(2);
  });
});
