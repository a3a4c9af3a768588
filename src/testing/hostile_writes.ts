/** Writes that are as strange as a client may send them: most are taken, and then everybody reads them. */
import { Buffer } from "node:buffer";
import type { MessageInitShape } from "@bufbuild/protobuf";
import type {
  PutRequestSchema,
  PutWritesRequestSchema,
} from "../../gen/checkpointd/v1/checkpoint_service_pb.js";
import type { createRandom } from "./random.js";

type Random = ReturnType<typeof createRandom>;
export type HostilePut = MessageInitShape<typeof PutRequestSchema> & { threadId: string };
export type HostileWrites = MessageInitShape<typeof PutWritesRequestSchema> & { threadId: string };

/** Texts of every kind that a name, a key of JSON or a type may be. */
const words = [
  "a",
  "0",
  "-1",
  "1e5",
  " ",
  "null",
  "__proto__",
  "constructor",
  "toString",
  "hasOwnProperty",
  "x'; drop table checkpoints; --",
  "../../etc/passwd",
  "%s%n$1",
  "\\x00\\u0000",
  '"\\"',
  "{}",
  "a|b:c|d:",
  "\n\r\t",
  "\u0001\u001b[31m\u007f\u0085",
  "\u202eabc\u2066\u2028\ufeff",
  "é漢😀\u{10ffff}\ufffe",
  "__pregel_tasks",
  "__start__",
  "branch:to:b",
  "join:a+b:c",
  "__error__",
  "__interrupt__",
];

/** A generator of writes to some threads, the same for the same random numbers. */
export function createHostileWrites(random: Random, threads: readonly string[]) {
  const pick = <T>(from: readonly T[]): T => from[random(from.length)] as T;
  const often = (share: number) => random(100) < share;
  const digits = (most: number) => `${1 + random(9)}${letters(random(most), "0123456789")}`;
  /** Cannot be compressed, unless it is of few letters. */
  const letters = (length: number, from = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ") =>
    Array.from({ length }, () => from[random(from.length)]).join("");
  /** A name that may be in a key. Most are short; the long ones go up to what an index takes. */
  const name = (): string => {
    if (often(70)) return pick(words);
    if (often(60)) return letters(1 + random(40));
    return often(50)
      ? letters(300 + random(300))
      : pick(["x", "漢", "ab|"]).repeat(1 + random(9_000));
  };

  const number = () =>
    pick([
      () => `${random(100)}`,
      () => "-0",
      () => "0.1000",
      () => "9007199254740993",
      () => digits(400),
      () => `${digits(200)}.${letters(1 + random(200), "0123456789")}`,
      () => `${digits(3)}e${random(12)}`,
      () => `-${digits(3)}.5E+0${random(300)}`,
      () => `${digits(3)}e-${random(400)}`,
      () => pick(["1e308", "1e309", "1e3000", "0e131071", "1e-16000", "1e131071", "1e-16384"]),
      () => digits(5_000),
    ])();
  const string = () =>
    pick([
      () => JSON.stringify(pick(words)),
      () => '""',
      () => JSON.stringify(letters(random(100))),
      () => `"${pick(["\\u001f", "\\ud83d\\ude00", "\\/", "\\u2028", "\\b\\f"])}"`,
      () => `"${pick(["x", "漢", "\\n", "\\u0041"]).repeat(often(10) ? 100_000 : 300)}"`,
      () => (often(95) ? '"\\\\u0000"' : pick(['"\\u0000"', '"\\ud800"', '"a\\u0000\\u0000"'])),
    ])();
  const json = (depth: number): string => {
    const kind = random(depth > 4 ? 4 : 8);
    if (kind < 2) return number();
    if (kind < 4) return string();
    if (kind === 4) return pick(["true", "false", "null"]);
    if (kind === 5) return `[${list(() => json(depth + 1))}]`;
    if (kind === 6 && often(15)) return deep();
    return object(depth + 1);
  };
  const list = (each: () => string) =>
    Array.from({ length: pick([0, 1, 3, 8]) }, each).join(pick([",", " ,\n"]));
  /** As deep as Postgres takes it, and deeper. */
  const deep = () => {
    const [open, close] = pick([
      ["[", "]"],
      ['{"a":', "}"],
      ['[{"":', "}]"],
    ] as const);
    const times = pick([50, 500, 1_500, 3_000, 6_000, 9_000, 14_000]);
    return `${open.repeat(times)}1${close.repeat(times)}`;
  };
  const member = (depth: number) => `${string()}:${json(depth)}`;
  const object = (depth: number): string => {
    if (depth > 1 && often(3)) return `{${manyKeys()}}`;
    const inner = list(() => member(depth));
    return often(10) && inner ? `{${inner},"d":1,"d":${json(depth)}}` : `{${inner}}`;
  };
  const manyKeys = () =>
    Array.from({ length: 3_000 }, (_, i) => `"${letters(3)}${i}":${random(9)}`).join();

  const version = () => pick(["1", "2", "3", "1.0", "00000001.0.5", "v", "漢", letters(30)]);
  const channels = [
    "messages",
    "__start__",
    "__pregel_tasks",
    "branch:to:b",
    "join:a+b:c",
    ...words,
  ];
  const data = (): Uint8Array => {
    const size = pick([0, 1, 2, 30, 300, 300, 5_000, often(10) ? 3_000_000 : 70_000]);
    const filled = pick([0, 0x5b, 0xff, 0x61, -1]);
    if (filled >= 0) return new Uint8Array(size).fill(filled);
    const block = Uint8Array.from({ length: Math.min(size, 5_000) }, () => random(256));
    return Uint8Array.from({ length: size }, (_, i) => block[i % block.length] as number);
  };
  const value = () => {
    if (often(30)) return { type: "json", data: Buffer.from(json(3)) };
    const type = pick(["json", "msgpack", "bytes", "null", "é", " ", "__proto__", "Empty"]);
    return { type, data: data() };
  };

  /** Ids that a client may give, of the kinds by which they are told apart. */
  const checkpointId = () =>
    pick([
      () => `1f0${letters(5, "0123456789abcdef")}-00${random(10)}0-6000-8000-000000000000`,
      () => `1f0${letters(5, "0123456789abcdef")}-0000-6000-8000-000000000000`,
      () => pick(["00000000-0000-6000-0000-000000000000", "ffffffff-ffff-6fff-ffff-ffffffffffff"]),
      () => `${random(20)}`,
      name,
    ])();
  const namespace = () => (often(60) ? "" : often(60) ? pick(["sub", "sub:1|x:2", "a|b"]) : name());
  const runIds = ["run", "run", "漢", "__proto__", letters(1_000)];
  /** Of all that was put, so that what follows meets it. */
  const places: { threadId: string; checkpointNs: string; checkpointId: string }[] = [];

  function put(): HostilePut {
    const again = often(15) ? pick(places) : undefined;
    const place = again ?? {
      threadId: pick(threads),
      checkpointNs: namespace(),
      checkpointId: checkpointId(),
    };
    places.push(place);
    const before = places.filter(
      ({ threadId, checkpointNs }) =>
        threadId === place.threadId && checkpointNs === place.checkpointNs,
    );
    const named = [...new Set(Array.from({ length: random(6) }, () => pick(channels)))];
    const blobs = named.map((channel) => ({
      channel,
      version: version(),
      ...(often(85) ? { value: value() } : {}),
    }));
    const versions = blobs.map(
      ({ channel, version }) =>
        `${JSON.stringify(channel)}:${/^[123]$/.test(version) && often(50) ? version : JSON.stringify(version)}`,
    );
    const seen = `{"n":{${list(() => `${JSON.stringify(pick(channels))}:${number()}`)}},"__input__":{}}`;
    const parts = [
      pick(['"v":1', '"v":2', '"v":3', '"v":4', '"v":4', '"v":4.0', '"v":"3"', `"v":${number()}`]),
      often(90) ? `"channel_versions":{${versions}}` : `"channel_versions":${json(2)}`,
      often(80) ? `"versions_seen":${seen}` : `"versions_seen":${json(2)}`,
      often(70) ? `"channel_values":{}` : `"channel_values":{"messages":${json(3)}}`,
      ...(often(30) ? [`"more":${json(1)}`] : []),
    ];
    const metadata = [
      `"step":${often(70) ? random(50) - 1 : json(3)}`,
      `"source":${often(70) ? '"loop"' : json(3)}`,
      ...(often(60) ? [`"run_id":${often(80) ? JSON.stringify(pick(runIds)) : json(2)}`] : []),
      ...(often(40) ? [`"parents":{"":${JSON.stringify(pick(places).checkpointId)}}`] : []),
      ...(often(20) ? [`"checkpointd_graph":${often(60) ? string() : json(3)}`] : []),
      ...(often(50) ? [`"more":${json(1)}`] : []),
    ];
    return {
      ...place,
      parentCheckpointId: before.length > 0 && often(80) ? pick(before).checkpointId : "",
      checkpointJson: `{${parts.join()}}`,
      metadataJson: often(10) ? "" : often(10) ? `{${manyKeys()}}` : `{${metadata.join()}}`,
      blobs,
    };
  }

  function writes(): HostileWrites {
    const count = often(3) ? 3_000 : random(6);
    const all = Array.from({ length: count }, (_, i) => ({
      idx: pick([i, i, -1 - random(4), random(3), 2 ** 31 - 1, -(2 ** 31)]),
      channel: pick(channels),
      value: count > 10 ? { type: "json", data: Buffer.from(`${i}`) } : value(),
    }));
    return {
      // A write may come before its checkpoint.
      ...(places.length > 0 && often(85)
        ? pick(places)
        : { threadId: pick(threads), checkpointNs: namespace(), checkpointId: checkpointId() }),
      taskId: often(20) ? "00000000-0000-0000-0000-000000000000" : pick(words),
      taskPath: pick(["", "~__pregel_pull, a", "é", "\u202e", "p".repeat(5_000)]),
      writes: all,
    };
  }

  return { put, writes };
}
