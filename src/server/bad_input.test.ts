/** Names, lists and numbers that the contract does not allow, in every field of every RPC. */
import { Code } from "@connectrpc/connect";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { ErrorReason } from "../errors.js";
import {
  type Call,
  expectHarmless,
  make,
  postJson,
  secret,
  startEdge,
  toRaw,
  ways,
} from "../testing/edge.js";
import { randomText } from "../testing/random.js";

let edge: Awaited<ReturnType<typeof startEdge>>;
beforeAll(async () => {
  edge = await startEdge();
});
afterAll(async () => {
  // Whatever was asked above, and however often it was refused.
  expect(edge.captured.lines({ code: "InvalidArgument" }).length).toBeGreaterThan(100);
  expect(edge.captured.text()).not.toContain(secret);
  expect(edge.captured.text()).not.toContain(Buffer.from(secret).toString("hex"));
  await edge.stop();
});

const data = new TextEncoder().encode(secret);
const threadId = `${secret}-thread`;
const named = { threadId, checkpointId: "1" };
const whole = { ...named, checkpointJson: "{}" };
const write = { idx: 0, channel: "c", value: { type: "bytes", data } };
const blob = { channel: "c", version: "1", value: { type: "bytes", data } };

/** A text field: where it is, how many bytes it takes, whether it may be empty or left out. */
interface TextField {
  field: string;
  /** undefined: as many as fit into a message. */
  limit: number | undefined;
  /** As many as are stored whatever they are, which for names in a key are fewer (key_limits.test.ts). */
  stored: number;
  empty: "refused" | "allowed";
  fill: (text: string) => Call;
}

const inPut = (change: object): Call => ({ rpc: "put", request: { ...whole, ...change } });
const inBlob = (change: object) => inPut({ blobs: [blob, { ...blob, channel: "d", ...change }] });
const inWrites = (change: object): Call => ({
  rpc: "putWrites",
  request: { ...named, taskId: "t", writes: [write], ...change },
});
const inWrite = (change: object) => inWrites({ writes: [write, { ...write, idx: 1, ...change }] });
const inList = (change: object): Call => ({ rpc: "list", request: change });
const after = { threadId, checkpointNs: "", checkpointId: "1" };

const required = (
  field: string,
  limit: number | undefined,
  fill: (text: string) => Call,
  stored = limit ?? 1_000_000,
): TextField => ({ field, limit, stored, empty: "refused", fill });
const optional = (...field: Parameters<typeof required>): TextField => ({
  ...required(...field),
  empty: "allowed",
});
/** Of a name, and of one that is stored in a key with others of a few bytes. */
const nameBytes = 65_536;
const keyBytes = 2_600;

const textFields: Record<Call["rpc"], TextField[]> = {
  getTuple: [
    required("thread_id", nameBytes, (text) => ({ rpc: "getTuple", request: { threadId: text } })),
    optional("checkpoint_ns", nameBytes, (text) => ({
      rpc: "getTuple",
      request: { ...named, checkpointNs: text },
    })),
    optional("checkpoint_id", nameBytes, (text) => ({
      rpc: "getTuple",
      request: { ...named, checkpointId: text },
    })),
  ],
  put: [
    required("thread_id", nameBytes, (text) => inPut({ threadId: text }), keyBytes),
    optional("checkpoint_ns", nameBytes, (text) => inPut({ checkpointNs: text }), keyBytes),
    required("checkpoint_id", nameBytes, (text) => inPut({ checkpointId: text }), keyBytes),
    optional("parent_checkpoint_id", undefined, (text) => inPut({ parentCheckpointId: text })),
    required("blobs[1].channel", nameBytes, (text) => inBlob({ channel: text }), keyBytes),
    required("blobs[1].version", nameBytes, (text) => inBlob({ version: text }), keyBytes),
    required("blobs[1].value.type", 256, (text) => inBlob({ value: { type: text, data } })),
  ],
  putWrites: [
    required("thread_id", nameBytes, (text) => inWrites({ threadId: text }), keyBytes),
    optional("checkpoint_ns", nameBytes, (text) => inWrites({ checkpointNs: text }), keyBytes),
    required("checkpoint_id", nameBytes, (text) => inWrites({ checkpointId: text }), keyBytes),
    required("task_id", nameBytes, (text) => inWrites({ taskId: text }), keyBytes),
    optional("task_path", undefined, (text) => inWrites({ taskPath: text })),
    required("writes[1].channel", undefined, (text) => inWrite({ channel: text })),
    required("writes[1].value.type", 256, (text) => inWrite({ value: { type: text, data } })),
  ],
  list: [
    required("thread_id", nameBytes, (text) => inList({ threadId: text })),
    optional("checkpoint_ns", nameBytes, (text) => inList({ checkpointNs: text })),
    required("checkpoint_id", nameBytes, (text) => inList({ checkpointId: text })),
    required("before_checkpoint_id", nameBytes, (text) => inList({ beforeCheckpointId: text })),
    required("after.thread_id", nameBytes, (text) =>
      inList({ after: { ...after, threadId: text } }),
    ),
    optional("after.checkpoint_ns", nameBytes, (text) =>
      inList({ after: { ...after, checkpointNs: text } }),
    ),
    required("after.checkpoint_id", nameBytes, (text) =>
      inList({ after: { ...after, checkpointId: text } }),
    ),
  ],
  deleteThread: [
    required("thread_id", nameBytes, (text) => ({
      rpc: "deleteThread",
      request: { threadId: text },
    })),
  ],
};

const longText = (bytes: number) => secret.padEnd(bytes, "x");

for (const [rpc, fields] of Object.entries(textFields)) {
  describe(rpc, () => {
    for (const { field, limit, stored, empty, fill } of fields) {
      const refused = async (reason: ErrorReason, call: Call, passed?: number) => {
        const limit = passed === undefined ? {} : { limit: passed };
        const refusal = { code: Code.InvalidArgument, reason, field, ...limit };
        await edge.expectRefused(call, refusal);
      };

      if (empty === "refused") {
        test(`${field}: missing`, () => refused("REQUIRED", fill("")));
      } else {
        test(`${field}: missing is allowed`, () => make(edge.clients.connect, fill("")));
      }

      if (limit !== undefined) {
        test(`${field}: one byte too long`, () =>
          refused("TOO_LONG", fill(longText(limit + 1)), limit));

        test(`${field}: too long in bytes though not in characters`, () =>
          refused("TOO_LONG", fill("é".repeat(limit / 2 - 10) + "x".repeat(21)), limit));
      }

      test(`${field}: as long as allowed`, async () => {
        await make(edge.clients.connect, fill(randomText(stored)));
        await make(edge.clients.connect, fill("é".repeat(stored / 2)));
      });

      test(`${field}: NUL`, () => refused("NUL_CHARACTER", fill(`${secret}\0`)));

      // Only JSON can carry one, and the library that decodes it says so without our detail.
      for (const lone of ["\\ud800", "\\udc00x", "\\udc00\\ud800"]) {
        test(`${field}: a lone surrogate, ${lone}`, async () => {
          const before = await edge.rowCounts();
          const { rpc: name, json } = toRaw(fill(`${secret}LONE`));
          const answer = await postJson(edge.server.url, name, json.replace("LONE", lone));
          expect(answer.error?.code).toBe("invalid_argument");
          expect(answer.error?.message).toContain(field.split(".").at(-1)?.replace(/^.*\]/, ""));
          expectHarmless(answer.error?.message ?? "");
          expect(await edge.rowCounts()).toBe(before);
        });
      }
    }
  });
}

/** What is wrong with a request besides its texts. */
const wrong: [string, Call, { reason: ErrorReason; field: string; limit?: number }][] = [
  [
    "a channel twice",
    inPut({ blobs: [blob, { ...blob, version: "2" }] }),
    { reason: "DUPLICATE", field: "blobs[1].channel" },
  ],
  [
    'a blob of the reserved type "empty"',
    inBlob({ value: { type: "empty", data } }),
    { reason: "RESERVED", field: "blobs[1].value.type" },
  ],
  [
    "a blob whose value has no type",
    inBlob({ value: { data } }),
    { reason: "REQUIRED", field: "blobs[1].value.type" },
  ],
  [
    'a write of the reserved type "empty"',
    inWrite({ value: { type: "empty", data } }),
    { reason: "RESERVED", field: "writes[1].value.type" },
  ],
  [
    "a write without a value",
    inWrite({ value: undefined }),
    { reason: "REQUIRED", field: "writes[1].value" },
  ],
  ["a negative limit", inList({ limit: -1 }), { reason: "OUT_OF_RANGE", field: "limit" }],
  [
    "the most negative limit",
    inList({ limit: -(2 ** 31) }),
    { reason: "OUT_OF_RANGE", field: "limit" },
  ],
  ["an unknown view", inList({ view: 3 }), { reason: "OUT_OF_RANGE", field: "view" }],
  ["a negative view", inList({ view: -1 }), { reason: "OUT_OF_RANGE", field: "view" }],
  [
    "a place in another thread",
    inList({ threadId: `${secret}-other`, after }),
    { reason: "OUT_OF_RANGE", field: "after.thread_id" },
  ],
  [
    "a place in another namespace",
    inList({ threadId, checkpointNs: "other", after }),
    { reason: "OUT_OF_RANGE", field: "after.checkpoint_ns" },
  ],
  [
    "an empty place",
    inList({ after: { threadId: "", checkpointId: "" } }),
    { reason: "REQUIRED", field: "after.thread_id" },
  ],
];

for (const [name, call, refusal] of wrong) {
  test(`${call.rpc}: ${name}`, async () => {
    await edge.expectRefused(call, { code: Code.InvalidArgument, ...refusal });
  });
}

const blobs = (count: number) =>
  Array.from({ length: count }, (_, i) => ({ ...blob, channel: `c${i}` }));
const writes = (count: number) => Array.from({ length: count }, (_, idx) => ({ ...write, idx }));

describe("long lists", () => {
  for (const count of [100_001, 120_000]) {
    for (const way of ways) {
      test(`${count} channels or writes are refused over ${way}`, async () => {
        const refusal = { code: Code.InvalidArgument, reason: "TOO_MANY", limit: 100_000 } as const;
        const tooManyBlobs = inPut({ blobs: blobs(count) });
        await edge.expectRefused(tooManyBlobs, { ...refusal, field: "blobs" }, [way]);
        const tooManyWrites = inWrites({ writes: writes(count) });
        await edge.expectRefused(tooManyWrites, { ...refusal, field: "writes" }, [way]);
      });
    }
  }

  test("100,000 channels and 100,000 writes are stored and read", async () => {
    const { connect } = edge.clients;
    const many = { threadId: `${secret}-many`, checkpointId: "1" };
    const versions = Object.fromEntries(blobs(100_000).map(({ channel }) => [channel, 1]));
    await connect.put({
      ...many,
      checkpointJson: JSON.stringify({ v: 4, channel_versions: versions }),
      blobs: blobs(100_000),
    });
    await connect.putWrites({ ...many, taskId: "t", writes: writes(100_000) });
    const { tuple } = await connect.getTuple(many);
    expect(tuple?.blobs).toHaveLength(100_000);
    expect(tuple?.pendingWrites.map(({ idx }) => idx)).toEqual(writes(100_000).map((w) => w.idx));
  });
});

test("what looks wrong and is allowed", async () => {
  const { connect } = edge.clients;
  const { rowCounts } = edge;
  const before = await rowCounts();
  await make(connect, inList({ limit: 0 }));
  await make(connect, inList({ limit: 2 ** 31 - 1, threadId }));
  await make(connect, inList({ after }));
  await make(connect, inWrites({ writes: [] }));
  expect(await rowCounts()).toBe(before);
  await make(connect, inWrites({ writes: [{ ...write, idx: -(2 ** 31) }] }));
  await make(connect, inWrites({ writes: [{ ...write, idx: 2 ** 31 - 1 }] }));
  await make(connect, inBlob({ value: undefined }));
  await make(connect, inBlob({ value: { type: "bytes" } }));
});
