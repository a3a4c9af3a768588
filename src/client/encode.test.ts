import { create, fromBinary, type MessageInitShape, toBinary } from "@bufbuild/protobuf";
import { expect, it } from "vitest";
import { OpenSessionRequestSchema } from "../../gen/checkpointd/v1/session_service_pb.js";
import { createEnvelopeReader, largeBytes } from "../envelope.js";
import { createRandom } from "../testing/random.js";
import { encodePut, encodePutExtending, encodePutWrites } from "./encode.js";

type Operation = NonNullable<MessageInitShape<typeof OpenSessionRequestSchema>["operation"]>;

/** Reads what was encoded as the service would, and compares with what the generated code writes. */
function expectSame(id: number, timeoutMs: number, operation: Operation): void {
  const encode = { put: encodePut, putExtending: encodePutExtending, putWrites: encodePutWrites }[
    operation.case as "put"
  ];
  const chunks = encode(id, timeoutMs, operation.value as object);
  const expected = create(OpenSessionRequestSchema, { id, timeoutMs, operation });
  let messages = 0;
  const read = createEnvelopeReader(
    Number.POSITIVE_INFINITY,
    () => new Error("too large"),
    (flags, message) => {
      messages++;
      expect(flags).toBe(0);
      expect(Buffer.compare(message, toBinary(OpenSessionRequestSchema, expected))).toBe(0);
      expect(fromBinary(OpenSessionRequestSchema, message).id).toBe(id);
    },
  );
  read(Buffer.concat(chunks));
  expect(messages).toBe(1);
}

const seed = Date.now() % 1_000_000;

it(`writes what the generated code writes, seed ${seed}`, () => {
  const random = createRandom(seed);
  const pick = <T>(values: readonly T[]): T => values[random(values.length)] as T;
  const alphabet = ["a", "é", "漢", "😀", "\n", '"', "\u0000", "\ud800"];
  const text = () => {
    const length = pick([0, 0, 1, 5, 36, 127, 128, 200, 20_000]);
    const characters = Array.from({ length: Math.min(length, 200) }, () => pick(alphabet)).join("");
    return characters.repeat(Math.ceil(length / 200));
  };
  const value = () => {
    const length = pick([0, 1, 127, 128, 1_000, largeBytes - 1, largeBytes, 100_000]);
    return pick([undefined, {}, { type: text(), data: new Uint8Array(length).fill(random(256)) }]);
  };
  const several = <T>(make: () => T): T[] => Array.from({ length: pick([0, 1, 2, 9]) }, make);
  for (let i = 0; i < 200; i++) {
    const id = pick([1, 127, 128, 16_384, 2 ** 31, 2 ** 32 - 1]);
    const timeoutMs = pick([0, 1, 30_000, 2 ** 31 - 1]);
    const key = { threadId: text(), checkpointNs: text(), checkpointId: text() };
    const put = {
      ...key,
      parentCheckpointId: text(),
      checkpointJson: text(),
      metadataJson: text(),
      blobs: several(() => ({ channel: text(), version: text(), value: value() as object })),
      leaseToken: text(),
    };
    expectSame(id, timeoutMs, { case: "put", value: put });
    const uint32 = () => pick([0, 1, 127, 128, 2 ** 31, 2 ** 32 - 1]);
    const prefixes = several(() => {
      return { blobIndex: uint32(), version: text(), transactionId: text(), length: uint32() };
    });
    expectSame(id, timeoutMs, { case: "putExtending", value: { put, prefixes } });
    const idx = () => pick([0, 1, 127, 128, 2 ** 31 - 1, -1, -4, -128, -(2 ** 31)]);
    const putWrites = {
      ...key,
      taskId: text(),
      taskPath: text(),
      writes: several(() => ({ idx: idx(), channel: text(), value: value() as object })),
      leaseToken: text(),
    };
    expectSame(id, timeoutMs, { case: "putWrites", value: putWrites });
  }
  expectSame(1, 1, { case: "put", value: {} });
  expectSame(1, 1, { case: "putExtending", value: { put: {} } });
  expectSame(1, 1, { case: "putWrites", value: {} });
});

it("does not copy large values", () => {
  const data = new Uint8Array(largeBytes).fill(7);
  const blobs = [{ channel: "c", version: "1", value: { type: "bytes", data } }];
  expect(encodePut(1, 1, { blobs })).toContain(data);
});
