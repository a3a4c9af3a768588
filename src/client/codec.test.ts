import { create, type MessageInitShape } from "@bufbuild/protobuf";
import {
  type Checkpoint,
  emptyCheckpoint,
  MemorySaver,
  TASKS,
} from "@langchain/langgraph-checkpoint";
import { describe, expect, it } from "vitest";
import { CheckpointTupleSchema } from "../../gen/checkpointd/v1/checkpoint_pb.js";
import {
  fromTuple,
  fromValue,
  storableJson,
  toBlobs,
  toCheckpointJson,
  toFilterJson,
  toMetadataJson,
  toWrites,
} from "./codec.js";

const serde = new MemorySaver().serde;
const encode = (text: string) => new TextEncoder().encode(text);
const json = (value: unknown) => ({ type: "json", data: encode(JSON.stringify(value)) });

describe("storableJson", () => {
  it.each([
    ["plain", "plain"],
    ["a\0b\0", "ab"],
    ["\ud83d\ude00", "\ud83d\ude00"],
    ["x\ud83d", "x\ufffd"],
    ["\ude00\ud83d", "\ufffd\ufffd"],
    ["\ud83d\0\ude00", "\ufffd\ufffd"],
    ["\ud83d\ud83d\ude00", "\ufffd\ud83d\ude00"],
    ["\\u0000", "\\u0000"],
    ["\\\0", "\\"],
    ["\\\\u0000\0\\ud800", "\\\\u0000\\ud800"],
    ["\u0001\u001f\n", "\u0001\u001f\n"],
  ])("%j becomes %j", (value, stored) => {
    expect(JSON.parse(storableJson(JSON.stringify({ [value]: [value] })))).toEqual({
      [stored]: [stored],
    });
  });
});

describe("names that jsonb cannot hold", () => {
  const withVersions = (
    channel_versions: Checkpoint["channel_versions"],
    versions_seen: Checkpoint["versions_seen"] = {},
  ): Checkpoint => ({ ...emptyCheckpoint(), channel_versions, versions_seen });

  it("are refused by place, never altered", () => {
    expect(() => toCheckpointJson(withVersions({ "a\0": 1 }))).toThrow("channel_versions");
    expect(() => toCheckpointJson(withVersions({ a: "1\ud800" }))).toThrow("channel_versions");
    expect(() => toCheckpointJson(withVersions({}, { "n\ud800": {} }))).toThrow("versions_seen");
    expect(() => toCheckpointJson(withVersions({}, { n: { "c\0": 1 } }))).toThrow("versions_seen");
  });

  it("are refused in newVersions and writes", async () => {
    await expect(toBlobs(serde, {}, { "a\0": 1 })).rejects.toThrow("channel's name");
    await expect(toBlobs(serde, {}, { a: "1\0" })).rejects.toThrow('channel "a"');
    await expect(toWrites(serde, [["a\udc00", 1]])).rejects.toThrow("channel's name");
  });

  it("do not matter elsewhere in a checkpoint", () => {
    const odd = { ...emptyCheckpoint(), note: "a\0\ud800" };
    expect(JSON.parse(toCheckpointJson(odd)).note).toBe("a\ufffd");
  });
});

describe("encoding", () => {
  it("leaves the channel values out of the checkpoint", () => {
    const checkpoint = { ...emptyCheckpoint(), channel_values: { a: 1 } };
    expect(JSON.parse(toCheckpointJson(checkpoint))).not.toHaveProperty("channel_values");
    expect(checkpoint.channel_values).toEqual({ a: 1 });
  });

  it("makes one blob per new version, without a value where there is none", async () => {
    const blobs = await toBlobs(
      serde,
      { a: 1, unchanged: 2, u: undefined },
      { a: 1, gone: 2.5, u: 3, constructor: 1 },
    );
    expect(blobs).toEqual([
      { channel: "a", version: "1", value: json(1) },
      { channel: "gone", version: "2.5" },
      { channel: "u", version: "3", value: json({ lc: 2, type: "undefined" }) },
      { channel: "constructor", version: "1" },
    ]);
  });

  it("copies bytes that the graph could go on changing", async () => {
    const bytes = new Uint8Array([1, 2, 3]);
    const [blob] = await toBlobs(serde, { a: bytes }, { a: 1 });
    bytes.fill(9);
    expect(blob?.value).toEqual({ type: "bytes", data: new Uint8Array([1, 2, 3]) });
  });

  it("numbers writes by position or special channel", async () => {
    const writes = await toWrites(serde, [
      ["a", 1],
      ["__interrupt__", 2],
      ["constructor", 3],
      ["__error__", 4],
    ]);
    expect(writes.map((write) => write.idx)).toEqual([0, -3, 2, -1]);
  });

  it("keeps metadata and filters alike", async () => {
    const metadata = { source: "loop", step: 1, parents: {}, note: "a\0b" } as const;
    expect(JSON.parse(await toMetadataJson(metadata)).note).toBe("ab");
    expect(toFilterJson({ note: "a\0b" })).toBe('{"note":"ab"}');
    expect(toFilterJson({})).toBe("");
    expect(toFilterJson(undefined)).toBe("");
  });
});

describe("decoding", () => {
  const key = { threadId: "t", checkpointNs: "ns", checkpointId: "c2" };
  const stored = (checkpoint: object, rest: MessageInitShape<typeof CheckpointTupleSchema> = {}) =>
    create(CheckpointTupleSchema, {
      ...rest,
      key,
      checkpointJson: JSON.stringify(checkpoint),
      metadataJson: '{"source":"loop","step":1}',
    } as MessageInitShape<typeof CheckpointTupleSchema>);

  it("gives the direct saver's shape", async () => {
    const tuple = stored(
      { v: 4, id: "c2", ts: "now", channel_versions: { a: 1, b: 2 } },
      {
        parentCheckpointId: "c1",
        blobs: [
          { channel: "a", version: "1", value: json(new Array(3).fill(0)) },
          { channel: "b", version: "2", value: { type: "empty", data: new Uint8Array() } },
        ],
        pendingWrites: [{ taskId: "t1", idx: 0, channel: "b", value: json("w") }],
      },
    );
    const configurable = { thread_id: "t", checkpoint_ns: "ns" };
    expect(await fromTuple(serde, tuple)).toStrictEqual({
      config: { configurable: { ...configurable, checkpoint_id: "c2" } },
      checkpoint: {
        v: 4,
        id: "c2",
        ts: "now",
        channel_versions: { a: 1, b: 2 },
        versions_seen: {},
        channel_values: { a: [0, 0, 0] },
      },
      metadata: { source: "loop", step: 1 },
      parentConfig: { configurable: { ...configurable, checkpoint_id: "c1" } },
      pendingWrites: [["t1", "b", "w"]],
    });
    const first = await fromTuple(serde, stored({ v: 4 }), 7);
    expect(Object.keys(first)).toContain("parentConfig");
    expect(first.parentConfig).toBeUndefined();
    expect(first.config.configurable?.thread_id).toBe(7);
  });

  it("keeps values inlined by Python and lays blobs over them", async () => {
    const tuple = stored(
      { v: 4, channel_values: { n: 1, s: "x" }, channel_versions: {} },
      { blobs: [{ channel: "s", version: "1", value: json("blob") }] },
    );
    const { checkpoint } = await fromTuple(serde, tuple);
    expect(checkpoint.channel_values).toEqual({ n: 1, s: "blob" });
  });

  it("turns a parent's sends into a channel", async () => {
    const sends = { pendingSends: [json("s1"), json("s2")] };
    const { checkpoint } = await fromTuple(
      serde,
      stored({ v: 1, channel_versions: { a: 2, b: 10 } }, sends),
    );
    expect(checkpoint.channel_values).toEqual({ [TASKS]: ["s1", "s2"] });
    expect(checkpoint.channel_versions[TASKS]).toBe(10);
    const alone = await fromTuple(serde, stored({ v: 1, channel_versions: {} }, sends));
    expect(Math.floor(Number(alone.checkpoint.channel_versions[TASKS]))).toBe(1);
    const none = await fromTuple(serde, stored({ v: 1, channel_versions: {} }));
    expect(none.checkpoint.channel_versions).toEqual({});
  });

  it("does not let a channel called __proto__ near a prototype", async () => {
    const tuple = stored(
      { v: 4 },
      { blobs: [{ channel: "__proto__", version: "1", value: json({ polluted: true }) }] },
    );
    const { checkpoint } = await fromTuple(serde, tuple);
    expect(({} as Record<string, unknown>).polluted).toBeUndefined();
    expect(Object.getPrototypeOf(checkpoint.channel_values)).toBe(Object.prototype);
    expect(Object.entries(checkpoint.channel_values)).toEqual([["__proto__", { polluted: true }]]);
  });

  it("gives bytes of their own, not a view of the whole message", async () => {
    const message = Buffer.from("0123456789");
    const value = (await fromValue(serde, {
      $typeName: "checkpointd.v1.Value",
      type: "bytes",
      data: message.subarray(2, 4),
    })) as Uint8Array;
    expect(value.constructor).toBe(Uint8Array);
    expect(value.buffer.byteLength).toBe(2);
    expect([...value]).toEqual([0x32, 0x33]);
  });
});
