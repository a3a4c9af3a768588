/** The hand encoder against the generated code, for every field that the descriptors have. */
import { create, fromBinary, type MessageInitShape, toBinary } from "@bufbuild/protobuf";
import { expect, it } from "vitest";
import { OpenSessionRequestSchema } from "../../gen/checkpointd/v1/session_service_pb.js";
import { createRandom } from "../testing/random.js";
import { randomMessage } from "../testing/random_message.js";
import { encodeOperation } from "./encode.js";
import { createEnvelopeReader, largeBytes } from "./envelope.js";
import { type OperationName, operations, type RequestInit } from "./operations.js";

type Operation = NonNullable<MessageInitShape<typeof OpenSessionRequestSchema>["operation"]>;

const names = Object.keys(operations) as OperationName[];

/** Reads what was encoded as the service would, and compares with what the generated code writes. */
function expectSame<Name extends OperationName>(
  id: number,
  timeoutMs: number,
  name: Name,
  request: RequestInit<Name>,
): void {
  const operation = { case: name, value: request } as Operation;
  const expected = create(OpenSessionRequestSchema, { id, timeoutMs, operation });
  const messages: Uint8Array[] = [];
  const read = createEnvelopeReader(
    Number.POSITIVE_INFINITY,
    () => new Error("too large"),
    (flags, message) => {
      expect(flags).toBe(0);
      messages.push(message);
    },
  );
  read(Buffer.concat(encodeOperation(id, timeoutMs, name, request)));
  expect(messages).toHaveLength(1);
  const [message] = messages as [Uint8Array];
  const generated = toBinary(OpenSessionRequestSchema, expected);
  if (Buffer.compare(message, generated) !== 0) {
    // Says which field it is.
    expect(fromBinary(OpenSessionRequestSchema, message)).toEqual(expected);
    expect(Buffer.from(message)).toEqual(Buffer.from(generated));
  }
}

const seed = Date.now() % 1_000_000;

it.each(names)(`writes %s as the generated code does, seed ${seed}`, (name) => {
  const random = createRandom(seed);
  const pick = <T>(values: readonly T[]): T => values[random(values.length)] as T;
  for (let i = 0; i < 100; i++) {
    const id = pick([1, 127, 128, 16_384, 2 ** 31, 2 ** 32 - 1]);
    const timeoutMs = pick([0, 1, 30_000, 2 ** 31 - 1]);
    const request = randomMessage(operations[name].input, random) as RequestInit<typeof name>;
    expectSame(id, timeoutMs, name, request);
  }
  expectSame(1, 1, name, {});
});

it("writes long texts, and texts and numbers of every length", () => {
  for (const length of [1, 127, 128, 16_383, 16_384, 20_000]) {
    for (const character of ["a", "é", "漢", "😀"]) {
      expectSame(1, 1, "put", { checkpointJson: character.repeat(length) });
    }
  }
  expectSame(1, 1, "put", { threadId: "\ud800", blobs: [{ channel: "a\udc00b" }] });
  for (let bits = 0; bits < 32; bits++) {
    expectSame(2 ** bits, 2 ** bits, "putWrites", {
      writes: [{ idx: 2 ** bits - 1 }, { idx: -(2 ** bits) }, { idx: -(2 ** bits) + 1 }],
    });
  }
});

it.each([1, largeBytes - 1, largeBytes, 100_000])("writes values of %i bytes", (length) => {
  const value = { type: "bytes", data: new Uint8Array(length).fill(7) };
  expectSame(1, 1, "put", { blobs: [{ channel: "c", version: "1", value }, { value }] });
  expectSame(1, 1, "putWrites", { writes: [{ channel: "c", value }, { value }] });
});

it("does not copy large values", () => {
  const data = new Uint8Array(largeBytes).fill(7);
  const blobs = [{ channel: "c", version: "1", value: { type: "bytes", data } }];
  expect(encodeOperation(1, 1, "put", { blobs })).toContain(data);
});
