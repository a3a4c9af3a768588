import { type DescMessage, fromBinary, toBinary } from "@bufbuild/protobuf";
import { DurationSchema } from "@bufbuild/protobuf/wkt";
import { expect, it } from "vitest";
import { CheckpointService } from "../../gen/checkpointd/v1/checkpoint_service_pb.js";
import { SessionService } from "../../gen/checkpointd/v1/session_service_pb.js";
import { ThreadService } from "../../gen/checkpointd/v1/thread_service_pb.js";
import { createRandom } from "../testing/random.js";
import { randomMessage } from "../testing/random_message.js";
import { checkBinarySize } from "./message_size.js";

const schemas = [CheckpointService, SessionService, ThreadService].flatMap(({ methods }) =>
  methods.map(({ input }) => [input.name, input] as const),
);
const messages = 3_000;

/** Whether it is let through; undefined if not. */
function check(schema: DescMessage, bytes: Uint8Array): boolean {
  try {
    checkBinarySize(schema, bytes);
    return true;
  } catch {
    return false;
  }
}

it.each(schemas)("lets through of %s only what its decoder can read", (_, schema) => {
  const random = createRandom(1126);
  let passed = 0;
  for (let i = 0; i < messages; i++) {
    const bytes = Buffer.from(toBinary(schema, randomMessage(schema, random)));
    expect(check(schema, bytes)).toBe(true);
    // Few of them, so that many are still messages; near the tags, which are at the beginning.
    const within = random(2) === 0 ? Math.min(bytes.length, 24) : bytes.length;
    for (let turned = random(4); turned >= 0 && within > 0; turned--) {
      bytes[random(within)] = [0, 0x80, 0xff, random(256)][random(4)] as number;
    }
    if (!check(schema, bytes)) continue;
    passed++;
    expect(() => fromBinary(schema, bytes, { readUnknownFields: false })).not.toThrow();
  }
  expect(passed).toBeGreaterThan(messages / 100);
});

it.each([
  ["a tag of more than 32 bits", DurationSchema, "8080808010 00"],
  ["a tag of ten bytes", DurationSchema, "80808080f8ffffffff01 00"],
  ["a tag that is longer than it must be", DurationSchema, "888080808000 01"],
  [
    "a list of numbers that ends within one",
    ThreadService.method.claimThreads.input,
    "2a04 0a020483",
  ],
])("refuses %s", (_, schema, hex) => {
  const bytes = Buffer.from(hex.replaceAll(" ", ""), "hex");
  expect(() => checkBinarySize(schema, bytes)).toThrow("the message cannot be read");
});
