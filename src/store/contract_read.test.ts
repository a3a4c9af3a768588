/**
 * docs/langgraph-contract.md, 2.4, 2.5 and 2.9: what GetTuple and List find, and in what order. On
 * our own tables and on tables that the JS saver made in a database whose collation is not that of
 * bytes.
 */
import { randomBytes } from "node:crypto";
import type { MessageInitShape } from "@bufbuild/protobuf";
import { type Client, createClient } from "@connectrpc/connect";
import { createConnectTransport } from "@connectrpc/connect-node";
import { PostgresSaver } from "@langchain/langgraph-checkpoint-postgres";
import pg from "pg";
import { afterAll, beforeAll, describe, expect, inject, it } from "vitest";
import type { CheckpointKey, CheckpointTuple } from "../../gen/checkpointd/v1/checkpoint_pb.js";
import {
  CheckpointService,
  type ListRequestSchema,
  ListView,
  type PutRequestSchema,
} from "../../gen/checkpointd/v1/checkpoint_service_pb.js";
import type { Server } from "../server/server.js";
import { createDatabase, type TestDatabase, withDatabase } from "../testing/postgres.js";
import { startTestServer } from "../testing/test_server.js";

/** A database that orders text as English does, with tables made by LangGraph's JS saver. */
async function createEnglishDatabase(): Promise<TestDatabase> {
  const name = `test_${randomBytes(8).toString("hex")}`;
  const onServer = async (statement: string) => {
    const admin = new pg.Client({ connectionString: inject("postgresUrl") });
    await admin.connect();
    await admin.query(statement).finally(() => admin.end());
  };
  await onServer(
    `CREATE DATABASE ${name} LOCALE_PROVIDER icu ICU_LOCALE 'en-US' ENCODING 'UTF8' TEMPLATE template0`,
  );
  const url = withDatabase(inject("postgresUrl"), name);
  const direct = PostgresSaver.fromConnString(url);
  await direct.setup();
  await direct.end();
  return { url, drop: () => onServer(`DROP DATABASE IF EXISTS ${name} WITH (FORCE)`) };
}

type ListInit = MessageInitShape<typeof ListRequestSchema>;

/** What the model knows of a checkpoint. */
interface Known {
  key: { threadId: string; checkpointNs: string; checkpointId: string };
  metadata: Record<string, unknown>;
}

const bytewise = (a: string, b: string) => Buffer.compare(Buffer.from(a), Buffer.from(b));

/** Newest first: by id, then thread, then namespace, all by their bytes. */
function newestFirst({ key: a }: Known, { key: b }: Known): number {
  return (
    bytewise(b.checkpointId, a.checkpointId) ||
    bytewise(b.threadId, a.threadId) ||
    bytewise(b.checkpointNs, a.checkpointNs)
  );
}

/** jsonb's @> as far as the filters below go. */
function contains(value: unknown, part: unknown): boolean {
  if (Array.isArray(part)) {
    return Array.isArray(value) && part.every((p) => value.some((v) => contains(v, p)));
  }
  if (typeof part !== "object" || part === null) return value === part;
  return Object.entries(part).every(
    ([name, p]) => typeof value === "object" && contains(value?.[name as never], p),
  );
}

function expected(known: Known[], request: ListInit): Known[] {
  const { threadId, checkpointNs, checkpointId, beforeCheckpointId, metadataFilterJson } = request;
  const found = known.filter(
    ({ key, metadata }) =>
      (threadId === undefined || key.threadId === threadId) &&
      (checkpointNs === undefined || key.checkpointNs === checkpointNs) &&
      (checkpointId === undefined || key.checkpointId === checkpointId) &&
      (beforeCheckpointId === undefined || bytewise(key.checkpointId, beforeCheckpointId) < 0) &&
      contains(metadata, JSON.parse(metadataFilterJson || "{}")),
  );
  return found.sort(newestFirst).slice(0, request.limit ?? found.length);
}

const threads = ["T", "a", "é", "z10"];
const namespaces = ["", "B|1", "a:2"];
const ids = "0 1 9 10 A B Z a b z é É - _ a-1 a1 ab \u{1f600} \uffee".split(" ");

const databases: Record<string, () => Promise<TestDatabase>> = {
  "on our own tables": createDatabase,
  "on the JS saver's tables in English order": createEnglishDatabase,
};

describe.each(Object.entries(databases))("%s", (where, create) => {
  let database: TestDatabase;
  let server: Server;
  let service: Client<typeof CheckpointService>;
  const known: Known[] = [];

  const put = (key: Known["key"], more: MessageInitShape<typeof PutRequestSchema> = {}) =>
    service.put({ checkpointJson: '{"v": 4}', ...more, ...key });

  async function list(request: ListInit): Promise<CheckpointTuple[]> {
    const tuples: CheckpointTuple[] = [];
    for await (const { tuple } of service.list(request)) tuples.push(tuple!);
    return tuples;
  }

  beforeAll(async () => {
    database = await create();
    server = await startTestServer(database.url);
    service = createClient(
      CheckpointService,
      createConnectTransport({ baseUrl: server.url, httpVersion: "2" }),
    );
    for (const threadId of threads) {
      for (const checkpointNs of namespaces) {
        for (const checkpointId of ids) {
          const n = known.length;
          const metadata = { step: n % 3, nested: { a: [n % 2, "x"], b: n % 4 } };
          known.push({ key: { threadId, checkpointNs, checkpointId }, metadata });
        }
      }
    }
    await Promise.all(
      known.map(async ({ key, metadata }, n) => {
        const value = { type: "json", data: Buffer.from(`${n}`) };
        await put(key, {
          checkpointJson: `{"v": 4, "n": ${n}, "channel_versions": {"a": ${n}}}`,
          metadataJson: JSON.stringify(metadata),
          blobs: [{ channel: "a", version: `${n}`, value }],
        });
        const writes = [{ idx: 0, channel: "a", value }];
        if (n % 5 === 0) await service.putWrites({ ...key, taskId: "t", writes });
      }),
    );
  });
  afterAll(async () => {
    await server?.drain();
    await database?.drop();
  });

  it("the table's own order is that of bytes only where we made it", async () => {
    const client = new pg.Client({ connectionString: database.url });
    await client.connect();
    const { rows } = await client.query(
      "SELECT DISTINCT checkpoint_id AS id FROM checkpoints ORDER BY checkpoint_id",
    );
    await client.end();
    const order = rows.map(({ id }) => id);
    const bytes = [...ids].sort(bytewise);
    if (where === "on our own tables") expect(order).toEqual(bytes);
    else expect(order).not.toEqual(bytes);
  });

  describe("2.4 getTuple", () => {
    it("2.9 finds the latest as the greatest id by bytes, in exactly the namespace", async () => {
      for (const threadId of threads) {
        for (const checkpointNs of namespaces) {
          const { tuple } = await service.getTuple({ threadId, checkpointNs });
          const [latest] = expected(known, { threadId, checkpointNs });
          expect(tuple?.key).toMatchObject(latest!.key);
        }
      }
    });

    it("finds every checkpoint by its id, complete", async () => {
      for (const [n, { key, metadata }] of known.entries()) {
        const { tuple } = await service.getTuple(key);
        expect(tuple?.key).toMatchObject(key);
        expect(JSON.parse(tuple!.checkpointJson)).toEqual({ v: 4, n, channel_versions: { a: n } });
        expect(JSON.parse(tuple!.metadataJson)).toEqual(metadata);
        const value = { type: "json", data: new Uint8Array(Buffer.from(`${n}`)) };
        expect(tuple?.blobs).toMatchObject([{ channel: "a", version: `${n}` }]);
        expect(new Uint8Array(tuple!.blobs[0]!.value!.data)).toEqual(value.data);
        expect(tuple?.pendingWrites).toHaveLength(n % 5 === 0 ? 1 : 0);
      }
    });

    it.each([
      { threadId: "nobody" },
      { threadId: "a", checkpointNs: "nowhere" },
      { threadId: "a", checkpointId: "nothing" },
      { threadId: "nobody", checkpointNs: "a:2", checkpointId: "a" },
      { threadId: "t" },
      { threadId: "e\u0301" },
    ])("answers absence with an empty message: %j", async (request) => {
      expect((await service.getTuple(request)).tuple).toBeUndefined();
      expect(await list(request)).toEqual([]);
    });
  });

  describe("2.5 list", () => {
    const choices = {
      threadId: [undefined, "é", "nobody"],
      checkpointNs: [undefined, "", "B|1"],
      checkpointId: [undefined, "Z"],
      beforeCheckpointId: [undefined, "é", "a"],
      metadataFilterJson: ["", '{"step": 1}', '{"nested": {"a": ["x", 1], "b": 3}}'],
      limit: [undefined, 0, 9],
    };
    const combinations = Object.entries(choices).reduce<ListInit[]>(
      (sofar, [name, values]) =>
        sofar.flatMap((request) =>
          values.map((value) => (value === undefined ? request : { ...request, [name]: value })),
        ),
      [{}],
    );
    const full = new Map<string, CheckpointTuple>();
    const name = (key: CheckpointKey | Known["key"]) =>
      JSON.stringify([key.threadId, key.checkpointNs, key.checkpointId]);
    beforeAll(async () => {
      for (const { key } of known) full.set(name(key), (await service.getTuple(key)).tuple!);
    });

    const byThread = (given: string | undefined) =>
      combinations.filter(({ threadId }) => threadId === given);

    it.each(choices.threadId)("every combination of conditions, thread: %s", async (threadId) => {
      for (const request of byThread(threadId)) {
        const found = await list(request);
        const wanted = expected(known, request).map(({ key }) => full.get(name(key)));
        expect(found, JSON.stringify(request)).toEqual(wanted);
      }
    });

    it.each([1, 8, 1000, 2 ** 31 - 1])("a limit of %s alone", async (limit) => {
      const found = await list({ limit });
      expect(found.map(({ key }) => key)).toMatchObject(
        expected(known, { limit }).map(({ key }) => key),
      );
    });

    it("resumes after any tuple with what follows it, and can leave out the contents", async () => {
      for (const request of combinations.filter(({ limit }) => limit === undefined)) {
        const wanted = expected(known, request).map(({ key }) => key);
        const view = ListView.METADATA;
        const headers = await list({ ...request, view });
        expect(headers.map(({ key }) => key)).toMatchObject(wanted);
        for (const { checkpointJson, blobs, pendingWrites } of headers) {
          expect([checkpointJson, blobs, pendingWrites]).toEqual(["", [], []]);
        }
        const at = Math.floor(wanted.length / 3);
        const after = wanted[at];
        if (after === undefined) continue;
        const rest = await list({ ...request, view, after } as ListInit);
        expect(rest.map(({ key }) => key)).toMatchObject(wanted.slice(at + 1));
      }
    });
  });

  describe("2.4 pending sends", () => {
    const send = (text: string, idx = 0) => ({
      idx,
      channel: "__pregel_tasks",
      value: { type: "json", data: Buffer.from(text) },
    });
    const texts = (tuple: CheckpointTuple | undefined) =>
      tuple?.pendingSends.map(({ data }) => Buffer.from(data).toString());

    it("are those of the parent, in its thread and namespace, ordered by path, task and idx", async () => {
      // Every thread and namespace has the same ids, so a join that forgets one shows.
      const places = ["sends 1", "sends 2"].flatMap((threadId) =>
        ["", "ns"].map((checkpointNs) => ({ threadId, checkpointNs })),
      );
      for (const [p, place] of places.entries()) {
        const at = (checkpointId: string) => ({ ...place, checkpointId });
        const old = '{"v": 1}';
        await put(at("1"), { checkpointJson: old });
        await put(at("2"), { checkpointJson: old, parentCheckpointId: "1" });
        await put(at("3"), { checkpointJson: old, parentCheckpointId: "2" });
        const sends = async (id: string, taskPath: string, taskId: string, from: number) =>
          service.putWrites({
            ...at(id),
            taskPath,
            taskId,
            writes: [
              send(`${p} ${id} ${taskPath} ${taskId} ${from + 1}`, from + 1),
              send(`${p} ${id} ${taskPath} ${taskId} ${from}`, from),
              { ...send("not a send", from + 2), channel: "a" },
            ],
          });
        await sends("1", "b", "1", 0);
        await sends("1", "a", "b", 9);
        await sends("1", "a", "B", 0);
        await sends("1", "Z", "é", 0);
        await sends("1", "", "z", 0);
        await sends("2", "", "t", 0);
      }
      for (const [p, place] of places.entries()) {
        const wanted: Record<string, string[]> = {
          3: [`${p} 2  t 0`, `${p} 2  t 1`],
          2: ["z 0", "z 1"]
            .map((end) => `${p} 1  ${end}`)
            .concat(
              ["Z é 0", "Z é 1", "a B 0", "a B 1", "a b 9", "a b 10", "b 1 0", "b 1 1"].map(
                (end) => `${p} 1 ${end}`,
              ),
            ),
          1: [],
        };
        const listed = await list(place);
        expect(listed.map(({ key }) => key?.checkpointId)).toEqual(["3", "2", "1"]);
        // So are the pending writes of the parent itself.
        expect(listed[2]?.pendingWrites.map(({ taskId, idx }) => `${taskId} ${idx}`)).toEqual(
          ["z", "é", "B", "b", "1"].flatMap((task) =>
            (task === "b" ? [9, 10, 11] : [0, 1, 2]).map((idx) => `${task} ${idx}`),
          ),
        );
        for (const tuple of listed) {
          const { checkpointId = "" } = tuple.key!;
          expect(texts(tuple)).toEqual(wanted[checkpointId]);
          expect((await service.getTuple({ ...place, checkpointId })).tuple).toEqual(tuple);
        }
      }
      const keyOf = (tuple: CheckpointTuple) => {
        const { threadId, checkpointNs, checkpointId } = tuple.key!;
        return { threadId, checkpointNs, checkpointId };
      };
      // One list over all threads and namespaces says the same of each.
      const all = await list({ beforeCheckpointId: "4" });
      const ours = all.filter(({ key }) => key?.threadId.startsWith("sends"));
      expect(ours).toHaveLength(12);
      for (const tuple of ours) expect(tuple).toEqual((await service.getTuple(keyOf(tuple))).tuple);
    });

    it("come only with a format before 4, even when the parent itself is not stored", async () => {
      const threadId = "formats";
      const writes = [send("sent")];
      await service.putWrites({ threadId, checkpointId: "0", taskId: "t", writes });
      const formats = { 1: "1", 2: "3", 3: "3.9", 4: "4", 5: "4.0", 6: '"3"', 7: "null" };
      for (const [checkpointId, v] of Object.entries(formats)) {
        const checkpointJson = `{"v": ${v}}`;
        await put(
          { threadId, checkpointNs: "", checkpointId },
          { checkpointJson, parentCheckpointId: "0" },
        );
      }
      const tuples = await list({ threadId });
      expect(tuples.reverse().map(texts)).toEqual([["sent"], ["sent"], ["sent"], [], [], [], []]);
    });
  });
});
