/** The bytes of encrypted values: what they hide, what can be done to them, what an extended one keeps. */
import { createSecretKey, randomBytes } from "node:crypto";
import { describe, expect, it } from "vitest";
import { readSealedHeader } from "../protocol/sealed.js";
import { createRandom } from "../testing/random.js";
import {
  fields,
  fromContent,
  open,
  readFields,
  type SealingKey,
  seal,
  sealInChunks,
  toContent,
} from "./sealed_bytes.js";

const toKey = (keyId: string): SealingKey => ({ keyId, key: createSecretKey(randomBytes(32)) });
const key = toKey("k");
const place = fields("value", "a place");
const series = fields("", "messages");

function read(sealed: Buffer, at = place, of: Buffer | undefined = series, by = key): Buffer {
  const header = readSealedHeader(sealed);
  if (!header) throw new Error("no header");
  return open(by.key, at, of, sealed, header);
}

const text = (length: number, seed = 1) => {
  const random = createRandom(seed);
  return Buffer.from(Array.from({ length }, () => random(256)));
};

describe("a content", () => {
  it.each([0, 1, 31, 32, 33, 5_000])("of %i bytes comes back, whatever it ends with", (length) => {
    for (const end of ["", "\0", "\x80", "\x80\0\0"]) {
      const data = Buffer.concat([text(length), Buffer.from(end, "latin1")]);
      const told = fromContent(read(seal(key, place, toContent("json", data))));
      expect(told.type).toBe("json");
      expect(told.data.equals(data)).toBe(true);
    }
  });

  it("does not tell by its length what short values are", () => {
    const lengths = [
      ["json", "true"],
      ["json", "false"],
      ["null", ""],
      ["msgpack", "\xc2"],
      ["json", '"a short text"'],
    ].map(([type = "", data = ""]) => seal(key, place, toContent(type, Buffer.from(data))).length);
    expect(new Set(lengths).size).toBe(1);
  });

  it("is never encrypted twice alike", () => {
    const content = toContent("json", text(100));
    const sealed = new Set(
      Array.from({ length: 100 }, () => seal(key, place, content).toString("hex")),
    );
    expect(sealed.size).toBe(100);
  });
});

describe("fields", () => {
  it("are told apart whatever is in them", () => {
    expect(fields("a", "bc").equals(fields("ab", "c"))).toBe(false);
    expect(fields("", "").equals(fields(""))).toBe(false);
    expect(readFields(fields("ü", "", Buffer.from([0])), 3).map(String)).toEqual(["ü", "", "\0"]);
    expect(() => readFields(fields("a"), 2)).toThrow(RangeError);
    expect(() => readFields(fields("abc").subarray(0, 5), 1)).toThrow(RangeError);
  });
});

describe.each([
  ["as a whole", (content: Buffer) => seal(key, place, content)],
  ["in chunks", (content: Buffer) => sealInChunks(key, place, series, content).sealed],
])("encrypted %s", (_, encrypt) => {
  const content = toContent("json", text(20_000));
  const sealed = encrypt(content);

  it("is read where it belongs, and with its key", () => {
    expect(read(sealed).equals(content)).toBe(true);
    expect(() => read(sealed, fields("value", "another place"))).toThrow();
    expect(() => read(sealed, place, series, toKey("k"))).toThrow();
  });

  it("is not read with any bit of any byte flipped, nor cut, nor prolonged", () => {
    const random = createRandom(2);
    const places = [
      ...Array.from({ length: 200 }, (_, at) => at),
      ...Array.from({ length: 200 }, () => random(sealed.length)),
      ...Array.from({ length: 60 }, (_, i) => sealed.length - 1 - i),
    ];
    for (const at of places) {
      const altered = Buffer.from(sealed);
      altered[at]! ^= 1 << random(8);
      expect(() => read(altered), `byte ${at}`).toThrow();
      expect(() => read(sealed.subarray(0, at)), `cut at ${at}`).toThrow();
    }
    expect(() => read(Buffer.concat([sealed, Buffer.alloc(1)]))).toThrow();
    expect(() => read(Buffer.concat([sealed, sealed]))).toThrow();
  });
});

describe("chunks", () => {
  const before = toContent("json", text(20_000));
  const first = sealInChunks(key, place, series, before);
  const grown = toContent("json", Buffer.concat([text(20_000), text(3_000, 9)]));
  const at = fields("value", "the next place");
  const header = readSealedHeader(first.sealed)!.end;
  const start = header + 28;
  const length = 4_096 + 28;
  const chunk = (of: Buffer, i: number) =>
    of.subarray(start + 92 + (i - 1) * length, start + 92 + i * length);

  it("of a value that grew are kept, but for the ends", () => {
    const second = sealInChunks(key, at, series, grown, first);
    expect(read(second.sealed, at).equals(grown)).toBe(true);
    for (const i of [1, 2, 3, 4]) {
      expect(chunk(second.sealed, i).equals(chunk(first.sealed, i))).toBe(true);
    }
    expect(chunk(second.sealed, 5).equals(chunk(first.sealed, 5))).toBe(false);
    // The list of chunks belongs to the place, and the head may have changed.
    expect(second.sealed.subarray(0, start + 92)).not.toEqual(first.sealed.subarray(0, start + 92));
    expect(() => read(second.sealed)).toThrow();
  });

  it.each([
    [
      "was altered in the middle",
      Buffer.concat([grown.subarray(0, 9_000), text(grown.length - 9_000, 3)]),
      {},
    ],
    ["became shorter", before.subarray(0, 19_008), {}],
    ["is of another channel", grown, { series: fields("", "other") }],
    ["has another key", grown, { key: toKey("k") }],
    ["has a key of another id", grown, { key: { ...key, keyId: "l" } }],
  ] as [string, Buffer, { series?: Buffer; key?: SealingKey }][])(
    "of a value that %s are all new",
    (_, content, other) => {
      const by = other.key ?? key;
      const of = other.series ?? series;
      const second = sealInChunks(by, at, of, content, first);
      expect(read(second.sealed, at, of, by).equals(content)).toBe(true);
      for (const i of [1, 2, 3, 4])
        expect(first.sealed.includes(chunk(second.sealed, i))).toBe(false);
    },
  );

  it("never share a nonce, along forks neither", () => {
    const nonces = new Map<string, string>();
    const note = (sealed: Buffer) => {
      for (let from = start; from < sealed.length; from += from === start ? 92 : length) {
        const end = from + (from === start ? 92 : length);
        const nonce = sealed.toString("hex", from, from + 12);
        const whole = sealed.toString("hex", from, end);
        expect(nonces.get(nonce) ?? whole).toBe(whole);
        nonces.set(nonce, whole);
      }
    };
    note(first.sealed);
    for (const seed of [4, 5, 6]) {
      const branch = toContent("json", Buffer.concat([text(20_000), text(9_000, seed)]));
      const one = sealInChunks(key, at, series, branch, first);
      note(one.sealed);
      const longer = toContent(
        "json",
        Buffer.concat([text(20_000), text(9_000, seed), text(5_000)]),
      );
      note(sealInChunks(key, at, series, longer, one).sealed);
    }
  });

  it("cannot be left out, exchanged, repeated or taken from another version", () => {
    const { sealed } = first;
    const parts = [sealed.subarray(0, start + 92), ...[1, 2, 3, 4, 5].map((i) => chunk(sealed, i))];
    const second = sealInChunks(key, at, series, grown).sealed;
    const put = (...order: (Buffer | undefined)[]) => Buffer.concat(order.map((it) => it!));
    const [head, a, b, c, d, e] = parts;
    expect(read(put(head, a, b, c, d, e)).equals(before)).toBe(true);
    for (const altered of [
      put(head, a, b, c, d),
      put(head, a, c, b, d, e),
      put(head, a, a, c, d, e),
      put(head, b, c, d, e),
      put(head, a, b, c, d, e, e),
      put(head, a, chunk(second, 2), c, d, e),
      put(head),
      sealed.subarray(0, start),
    ]) {
      expect(() => read(altered)).toThrow();
    }
  });
});

it("tells key and arrangement of what is encrypted, and nothing of what is not", () => {
  const ids = ["k", "ключ", "x".repeat(1024)];
  for (const keyId of ids) {
    const sealed = seal({ ...key, keyId }, place, Buffer.alloc(32));
    expect(readSealedHeader(sealed)).toMatchObject({ keyId, arrangement: 0 });
  }
  for (const data of [
    "",
    "{}",
    "\x01\x00\x00\x09k",
    "\x01\x02\x00\x00",
    "\x02\x00\x00\x00",
    "\x01\x00\x00\x01\xff",
  ]) {
    expect(readSealedHeader(Buffer.from(data, "latin1"))).toBeUndefined();
  }
});
