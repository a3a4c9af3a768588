import { create, equals, type MessageInitShape } from "@bufbuild/protobuf";
import pg from "pg";
import { afterAll, beforeAll, expect, it } from "vitest";
import {
  type ChannelBlob,
  type CheckpointTuple,
  CheckpointTupleSchema,
} from "../../gen/checkpointd/v1/checkpoint_pb.js";
import {
  ListRequestSchema,
  PutRequestSchema,
  PutWritesRequestSchema,
} from "../../gen/checkpointd/v1/checkpoint_service_pb.js";
import { createDatabase, openPool, type TestDatabase } from "../testing/postgres.js";
import { createRandom } from "../testing/random.js";
import type { Db } from "./db.js";
import { list, type PageBounds, streamBounds } from "./list_checkpoints.js";
import { createPut } from "./put.js";
import { createPutWrites } from "./put_writes.js";

let database: TestDatabase;
let db: Db;

beforeAll(async () => {
  database = await createDatabase();
  db = openPool(database.url);
  const client = new pg.Client({ connectionString: database.url });
  await client.connect();
  const random = createRandom(11);
  const pick = <T>(values: readonly T[]): T => values[random(values.length)] as T;
  for (let i = 0; i < 120; i++) {
    const place = [pick(["t", "t", "u"]), pick(["", "", "sub"])];
    // Versions that are equal as JSON and not as text, and channels that come and go.
    const versions = Object.fromEntries(
      ["a", "b", "c", "é", "none"]
        .filter(() => random(6) > 0)
        .map((channel) => [channel, pick(["1", "1.0", '"1"', '"x"', '"x"', '"x"'])]),
    );
    const json = Object.entries(versions).map(([k, v]) => `${JSON.stringify(k)}:${v}`);
    await client.query(
      "insert into checkpoints (thread_id, checkpoint_ns, checkpoint_id, checkpoint) values ($1, $2, $3, $4)",
      [...place, String(i).padStart(4, "0"), `{"v":4,"channel_versions":{${json.join()}}}`],
    );
    for (const [channel, version] of Object.entries(versions)) {
      if (channel === "none") continue;
      const text = version.replaceAll('"', "");
      await client.query(
        `insert into checkpoint_blobs (thread_id, checkpoint_ns, channel, version, type, blob)
         values ($1, $2, $3, $4, $5, $6) on conflict do nothing`,
        [...place, channel, text, pick(["json", "bytes", "empty"]), `${place} ${channel} ${text}`],
      );
    }
  }
  await client.end();
});
afterAll(async () => {
  await db?.close(1_000);
  await database?.drop();
});

async function read(init: object, bounds: PageBounds): Promise<CheckpointTuple[]> {
  const tuples: CheckpointTuple[] = [];
  const request = create(ListRequestSchema, init);
  for await (const tuple of list(db, request, undefined, bounds)) tuples.push(tuple);
  return tuples;
}

const sorted = (tuple: CheckpointTuple): CheckpointTuple => ({
  ...tuple,
  blobs: [...tuple.blobs].sort((a, b) => (a.channel < b.channel ? -1 : 1)),
});

it.each([
  ["all threads", {}],
  ["a thread", { threadId: "t" }],
  ["a namespace", { threadId: "t", checkpointNs: "" }],
  ["a resumed stream", { threadId: "t", after: { threadId: "t", checkpointId: "0070" } }],
])("what is unchanged can be left out and put back: %s", async (_, init) => {
  const complete = await read(init, streamBounds);
  const small: PageBounds[] = [1, 2, 5].map((maxRows) => ({
    ...streamBounds,
    firstRows: 1,
    maxRows,
  }));
  for (const bounds of [streamBounds, ...small, { ...streamBounds, maxBytes: 150 }]) {
    const tuples = await read({ ...init, omitUnchanged: true }, bounds);
    expect(tuples.length).toBe(complete.length);
    let before: CheckpointTuple | undefined;
    let blobs = new Map<string, ChannelBlob>();
    let left = 0;
    for (const [i, tuple] of tuples.entries()) {
      const expected = complete[i] as CheckpointTuple;
      const isSamePlace =
        before?.key?.threadId === tuple.key?.threadId &&
        before?.key?.checkpointNs === tuple.key?.checkpointNs;
      const { channel_versions: versions } = JSON.parse(tuple.checkpointJson);
      if (!isSamePlace) expect(tuple.unchangedChannels).toEqual([]);
      // Nothing came twice.
      for (const { channel, version } of isSamePlace ? tuple.blobs : []) {
        expect(blobs.get(channel)?.version).not.toBe(version);
      }
      for (const channel of tuple.unchangedChannels) {
        expect(Object.keys(versions)).toContain(channel);
        const blob = blobs.get(channel);
        if (blob) tuple.blobs.push(blob);
        if (blob) left++;
      }
      tuple.unchangedChannels = [];
      blobs = new Map(tuple.blobs.map((blob) => [blob.channel, blob]));
      expect(equals(CheckpointTupleSchema, sorted(tuple), sorted(expected))).toBe(true);
      before = tuple;
    }
    expect(left).toBeGreaterThan(20);
  }
});

it("tells large values by their sizes, those of writes too", async () => {
  const put = (init: MessageInitShape<typeof PutRequestSchema>) =>
    createPut(db)(create(PutRequestSchema, init));
  const key = { threadId: "sizes", checkpointNs: "" };
  const clear = (bytes: number) => ({ type: "bytes", data: new Uint8Array(bytes) });
  await put({
    ...key,
    checkpointId: "1",
    checkpointJson: JSON.stringify({ v: 4, channel_versions: { a: 1, b: 1, none: 1 } }),
    blobs: [
      { channel: "a", version: "1", value: clear(0) },
      { channel: "b", version: "1", value: clear(300_000) },
    ],
  });
  await put({
    ...key,
    checkpointId: "2",
    parentCheckpointId: "1",
    checkpointJson: JSON.stringify({ v: 4, channel_versions: { a: 2, b: 1 } }),
    blobs: [{ channel: "a", version: "2", value: clear(7) }],
  });
  const writes = [
    { idx: 0, channel: "a", value: clear(8) },
    { idx: -1, channel: "__error__", value: clear(7) },
  ];
  const ofTask = { ...key, checkpointId: "2", taskId: "t", taskPath: "p", writes };
  await createPutWrites(db)(create(PutWritesRequestSchema, ofTask));
  const told = async (maxValueBytes: number | undefined, more = {}) =>
    (await read({ ...key, maxValueBytes, ...more }, streamBounds)).map((tuple) => [
      tuple.blobs.map(({ channel, value }) => [channel, value?.data.length]),
      tuple.pendingWrites.map(({ channel, value }) => [channel, value?.data.length]),
      tuple.omitted.map(({ $typeName: _, ...omitted }) => Object.values(omitted)),
      tuple.unchangedChannels,
    ]);
  const b = ["b", "1", "", 0, "", "bytes", 300_000];
  const write = ["a", "", "t", 0, "p", "bytes", 8];
  expect(await told(7)).toEqual([
    [[["a", 7]], [["__error__", 7]], [b, write], []],
    [[["a", 0]], [], [b], []],
  ]);
  expect(await told(300_000)).toEqual([
    [
      [
        ["a", 7],
        ["b", 300_000],
      ],
      [
        ["__error__", 7],
        ["a", 8],
      ],
      [],
      [],
    ],
    [
      [
        ["a", 0],
        ["b", 300_000],
      ],
      [],
      [],
      [],
    ],
  ]);
  const error = ["__error__", "", "t", -1, "p", "bytes", 7];
  expect(await told(0, { omitUnchanged: true })).toEqual([
    [[], [], [["a", "2", "", 0, "", "bytes", 7], b, error, write], []],
    [[["a", 0]], [], [], ["b"]],
  ]);
  // In the JSON, where Python has them: what is larger is left out of it, but of scalars only texts.
  await put({
    ...key,
    threadId: "inlined",
    checkpointId: "1",
    checkpointJson: JSON.stringify({
      v: 4,
      channel_versions: { text: "1.5", flag: 1, list: 1, none: 1 },
      channel_values: { text: "éé", flag: true, list: [1, 2], none: null },
    }),
  });
  const inlined = async (more: object) =>
    (await read({ ...key, threadId: "inlined", ...more }, streamBounds)).map((tuple) => [
      JSON.parse(tuple.checkpointJson).channel_values,
      tuple.omitted.map(({ channel, version, type, bytes }) => [channel, version, type, bytes]),
    ]);
  const [text, list] = [
    ["text", "1.5", "json", 6],
    ["list", "1", "json", 6],
  ];
  expect(await inlined({})).toEqual([[{ text: "éé", flag: true, list: [1, 2], none: null }, []]]);
  expect(await inlined({ maxValueBytes: 6 })).toEqual(await inlined({}));
  expect(await inlined({ maxValueBytes: 5 })).toEqual([[{ flag: true, none: null }, [list, text]]]);
  expect(await inlined({ onlyValues: [{ channel: "text" }] })).toEqual([
    [{ text: "éé", flag: true, none: null }, [list]],
  ]);
  // Some alone: a channel's own value is none that a task wrote to it.
  const checkpoint = { checkpointId: "2" };
  const a = ["a", "2", "", 0, "", "bytes", 7];
  const only = async (...onlyValues: object[]) =>
    (await told(undefined, { ...checkpoint, onlyValues }))[0];
  expect(await only({ channel: "b" })).toEqual([[["b", 300_000]], [], [a, error, write], []]);
  expect(await only({ channel: "a", idx: 9 })).toEqual([[["a", 7]], [], [b, error, write], []]);
  expect(await only({ channel: "a", taskId: "t" })).toEqual([[], [["a", 8]], [a, b, error], []]);
  expect(await only({ channel: "a", taskId: "t", idx: 1 })).toEqual([
    [],
    [],
    [a, b, error, write],
    [],
  ]);
  expect(
    await told(7, { ...checkpoint, onlyValues: [{ channel: "b" }, { channel: "a" }] }),
  ).toEqual([[[["a", 7]], [], [b, error, write], []]]);
});
