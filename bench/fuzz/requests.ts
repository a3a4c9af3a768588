/** What a hostile client sends: any request by its descriptor, and then something wrong with it. */
import { randomBytes } from "node:crypto";
import { gzipSync } from "node:zlib";
import {
  type DescMessage,
  type DescMethod,
  type Message,
  ScalarType,
  toBinary,
  toJsonString,
} from "@bufbuild/protobuf";
import { reflect } from "@bufbuild/protobuf/reflect";
import { CheckpointService } from "../../gen/checkpointd/v1/checkpoint_service_pb.js";
import {
  OpenSessionRequestSchema,
  SessionService,
} from "../../gen/checkpointd/v1/session_service_pb.js";
import { ThreadService } from "../../gen/checkpointd/v1/thread_service_pb.js";
import { envelope } from "../../src/protocol/envelope.js";
import { randomMessage } from "../../src/testing/random_message.js";

type Random = (below: number) => number;

/** One request, or some bytes at the port. */
export interface Attack {
  /** For people: the call, its carrier and what is wrong with it. */
  name: string;
  /** Undefined: `body` goes to the port as it is. */
  path: string | undefined;
  headers: Record<string, string>;
  body: Uint8Array;
  /** The thread that it would write to. */
  threadId: string | undefined;
}

const methods: DescMethod[] = [
  ...CheckpointService.methods,
  ...CheckpointService.methods,
  ...ThreadService.methods,
];

/** A few, so that requests meet. */
const threads = ["a", "b", "c", "漢😀", "long".repeat(100)];
const hostileJson = [
  "{}",
  `{"n":${"1e131071"}}`,
  `{"n":[${Array(3_000).fill("1e131071").join()}]}`,
  `{"n":[${Array(3_000).fill("1e308").join()}]}`,
  `{"a":${"[".repeat(900)}${"]".repeat(900)}}`,
  `{"a":${"[".repeat(20_000)}${"]".repeat(20_000)}}`,
  '{"a":"\\u0000"}',
  '{"a":"\\ud800"}',
  '{"a":1,"a":2,"__proto__":{"b":1},"constructor":null}',
  `{"n":${"9".repeat(5_000)}}`,
  '{"channel_versions":{"a":1e400,"b":[],"c":null}}',
  '{"v":4,"channel_versions":"no","channel_values":[1]}',
  `{"${"k".repeat(70_000)}":1}`,
  `{"s":"${"s".repeat(200_000)}"}`,
  "{",
  "null",
];

/** Sets every text of JSON, and the thread, to something that gets further than chance does. */
function aim(schema: DescMessage, message: Message, random: Random): string | undefined {
  const target = reflect(schema, message);
  let threadId: string | undefined;
  for (const field of schema.fields) {
    if (field.fieldKind === "message" && target.isSet(field)) {
      const inner = target.get(field) as { message: Message };
      threadId ??= aim(field.message, inner.message, random);
    } else if (field.fieldKind === "list" && field.listKind === "message") {
      for (const each of target.get(field)) {
        aim(field.message, (each as { message: Message }).message, random);
      }
    } else if (field.fieldKind === "scalar" && field.scalar === ScalarType.STRING) {
      const { name } = field;
      if (name === "lease_token" && random(4) > 0) target.clear(field);
      else if (name.endsWith("_json")) target.set(field, hostileJson[random(hostileJson.length)]!);
      else if (name.endsWith("thread_id") && random(8) > 0) {
        threadId = threads[random(threads.length)]!;
        target.set(field, threadId);
      } else if (random(3) > 0) target.set(field, `${name}${random(4)}`);
    }
  }
  return threadId;
}

/** What is wrong with the bytes of a message. Most often nothing. */
const wrongs: [string, number, (bytes: Uint8Array, random: Random) => Uint8Array][] = [
  ["", 60, (bytes) => bytes],
  ["cut off", 5, (bytes, random) => bytes.subarray(0, random(bytes.length + 1))],
  [
    "with bits turned",
    10,
    (bytes, random) => {
      const turned = Uint8Array.from(bytes);
      for (let i = 1 + random(4); i > 0 && turned.length > 0; i--) {
        turned[random(turned.length)]! ^= 1 << random(8);
      }
      return turned;
    },
  ],
  [
    "with unknown fields",
    8,
    (bytes, random) =>
      Buffer.concat([
        bytes,
        Buffer.alloc(2 * [1, 100, 20_000][random(3)]!, "\u0078\u0000", "latin1"),
      ]),
  ],
  [
    "with a repeated field",
    10,
    (bytes, random) =>
      Buffer.concat([
        bytes,
        Buffer.alloc(2 * [2, 300, 20_000][random(3)]!, Buffer.from([(1 + random(12)) * 8 + 2, 0])),
      ]),
  ],
  [
    "with groups",
    3,
    (bytes, random) => Buffer.concat([bytes, Buffer.alloc(1 + random(5_000), 0x0b)]),
  ],
  ["of noise", 3, (_, random) => new Uint8Array(randomBytes(random(3_000)))],
  [
    "a bomb",
    1,
    (bytes, random) =>
      Buffer.concat([bytes, Buffer.alloc(30_000_000, Buffer.from([(1 + random(12)) * 8 + 2, 0]))]),
  ],
];

function choose<T extends [string, number, ...unknown[]]>(from: readonly T[], random: Random): T {
  let at = random(from.reduce((sum, [, weight]) => sum + weight, 0));
  for (const each of from) {
    at -= each[1];
    if (at < 0) return each;
  }
  throw new Error("there is nothing to choose from");
}

/** The attack with this number of a run. */
export function createAttack(random: Random): Attack {
  if (random(25) === 0) return atThePort(random);
  const method = methods[random(methods.length)]!;
  const inSession = random(4) === 0;
  const schema = inSession ? OpenSessionRequestSchema : method.input;
  const message = randomMessage(schema, random);
  const threadId = aim(schema, message, random);
  if (inSession) return onASession(message, threadId, random);
  const isStream = method.methodKind === "server_streaming";
  const path = `/${method.parent.typeName}/${method.name}`;
  const [what, , spoil] = choose(wrongs, random);
  if (random(4) === 0) {
    const text = Buffer.from(spoil(Buffer.from(toJsonString(schema, message)), random));
    const type = isStream ? "application/connect+json" : "application/json";
    const body = isStream ? inEnvelope(0, text) : text;
    return {
      name: `${method.name} as JSON ${what}`,
      path,
      headers: { "content-type": type },
      body,
      threadId,
    };
  }
  const bytes = spoil(toBinary(schema, message), random);
  const name = `${method.name} ${what}`;
  const isZipped = random(4) === 0;
  const sent = isZipped ? gzipSync(bytes) : bytes;
  const flags = isZipped ? 1 : 0;
  if (random(3) === 0) {
    const headers = {
      "content-type": "application/grpc-web+proto",
      ...(isZipped ? { "grpc-encoding": "gzip" } : {}),
    };
    return {
      name: `${name} over gRPC-Web`,
      path,
      headers,
      body: inEnvelope(flags, sent),
      threadId,
    };
  }
  const encoding = isStream ? "connect-content-encoding" : "content-encoding";
  const headers = {
    "content-type": isStream ? "application/connect+proto" : "application/proto",
    ...(isZipped ? { [encoding]: "gzip" } : {}),
  };
  return { name, path, headers, body: isStream ? inEnvelope(flags, sent) : sent, threadId };
}

const inEnvelope = (flags: number, message: Uint8Array) =>
  Buffer.concat([envelope(flags, message.length), message]);

const upgrade = Buffer.from(
  `GET /${SessionService.typeName}/OpenSession HTTP/1.1\r\nhost: localhost\r\n` +
    "connection: upgrade\r\nupgrade: checkpointd-session\r\n\r\n",
);

/** Several operations in one write, the last of which may be spoilt. */
function onASession(message: Message, threadId: string | undefined, random: Random): Attack {
  const [what, , spoil] = choose(wrongs, random);
  const frames: Uint8Array[] = [upgrade];
  for (let i = 1 + random(3); i > 0; i--) {
    (message as unknown as { id: number }).id = random(5);
    frames.push(
      inEnvelope(
        random(20) === 0 ? random(256) : 0,
        toBinary(OpenSessionRequestSchema, message as never),
      ),
    );
  }
  frames.push(inEnvelope(0, spoil(toBinary(OpenSessionRequestSchema, message as never), random)));
  const name = `a session of ${frames.length - 1} messages, the last ${what}`;
  return { name, path: undefined, headers: {}, body: Buffer.concat(frames), threadId };
}

function atThePort(random: Random): Attack {
  const raw = (name: string, body: Uint8Array): Attack => ({
    name,
    path: undefined,
    headers: {},
    body,
    threadId: undefined,
  });
  const noise = randomBytes(random(2_000));
  const preface = Buffer.from("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
  switch (random(5)) {
    case 0:
      return raw("noise at the port", noise);
    case 1:
      return raw("HTTP/2 and noise", Buffer.concat([preface, noise]));
    case 2:
      return raw("a session and noise", Buffer.concat([upgrade, noise]));
    case 3:
      return raw("an envelope of 4 GiB", Buffer.concat([upgrade, Buffer.alloc(5, 0xff), noise]));
    default:
      return raw(
        "half a request",
        Buffer.from(
          `POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9\r\nx: ${noise.toString("hex")}`,
        ),
      );
  }
}
