/** The hand encoder against the generated code, for every field that the descriptors have. */
import { create, fromBinary, type MessageInitShape, toBinary } from "@bufbuild/protobuf";
import { expect, it } from "vitest";
import {
  type GetTupleResponse,
  GetTupleResponseSchema,
} from "../../gen/checkpointd/v1/checkpoint_service_pb.js";
import {
  OpenSessionRequestSchema,
  type OpenSessionResponse,
  OpenSessionResponseSchema,
} from "../../gen/checkpointd/v1/session_service_pb.js";
import { createRandom } from "../testing/random.js";
import { randomMessage } from "../testing/random_message.js";
import { encodeOperation } from "./encode.js";
import { encodeAnswer } from "./encode_answer.js";
import { createEnvelopeReader, largeBytes } from "./envelope.js";
import { type OperationName, operations, type RequestInit } from "./operations.js";

type Operation = NonNullable<MessageInitShape<typeof OpenSessionRequestSchema>["operation"]>;

const names = Object.keys(operations) as OperationName[];

/** The one message of these chunks, without its envelope. */
function messageOf(chunks: readonly Uint8Array[]): Uint8Array {
  const messages: Uint8Array[] = [];
  const read = createEnvelopeReader(
    Number.POSITIVE_INFINITY,
    () => new Error("too large"),
    (flags, message) => {
      expect(flags).toBe(0);
      messages.push(message);
    },
  );
  read(Buffer.concat(chunks));
  expect(messages).toHaveLength(1);
  return messages[0]!;
}

/** Reads what was encoded as the service would, and compares with what the generated code writes. */
function expectSame<Name extends OperationName>(
  id: number,
  timeoutMs: number,
  name: Name,
  request: RequestInit<Name>,
  trace?: { traceparent: string; tracestate: string },
): void {
  const operation = { case: name, value: request } as Operation;
  const expected = create(OpenSessionRequestSchema, { id, timeoutMs, operation, ...trace });
  const message = messageOf(encodeOperation(id, timeoutMs, name, request, trace));
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
    const traceparent = pick(["", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"]);
    const tracestate = pick(["", "a=b", "x".repeat(512)]);
    expectSame(id, timeoutMs, name, request, { traceparent, tracestate });
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

it(`writes answers as the generated code does, seed ${seed}`, () => {
  const random = createRandom(seed);
  for (let i = 0; i < 300; i++) {
    const response = randomMessage(OpenSessionResponseSchema, random) as OpenSessionResponse;
    if (i % 2 === 0) {
      const value = randomMessage(GetTupleResponseSchema, random) as GetTupleResponse;
      response.result = { case: "getTuple", value };
    }
    const message = messageOf(encodeAnswer(response));
    const generated = toBinary(OpenSessionResponseSchema, response);
    if (Buffer.compare(message, generated) !== 0) {
      // Says which field it is.
      expect(fromBinary(OpenSessionResponseSchema, message)).toEqual(response);
      expect(Buffer.from(message)).toEqual(Buffer.from(generated));
    }
  }
});

it("copies no large value of an answer", () => {
  const data = new Uint8Array(largeBytes).fill(7);
  const tuple = { pendingWrites: [{ taskId: "t", channel: "c", value: { type: "bytes", data } }] };
  const value = create(GetTupleResponseSchema, { tuple });
  expect(encodeAnswer({ id: 1, result: { case: "getTuple", value } })).toContain(data);
});
