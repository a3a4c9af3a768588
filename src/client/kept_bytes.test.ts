/** The rule of PutExtendingRequest, by which clients find what of a value is stored already. */
import { expect, it } from "vitest";
import { createRandom } from "../testing/random.js";
import { type KeptBytes, keptBytes } from "./kept_bytes.js";

/** The value as the server makes it: of what is stored, and of what is sent. */
function restored(stored: Uint8Array, value: Uint8Array, kept: KeptBytes): Buffer {
  const { offset, headLength, length } = kept;
  return Buffer.concat([
    value.subarray(0, headLength),
    stored.subarray(offset, offset + length),
    value.subarray(headLength + length),
  ]);
}

const seed = Date.now() % 1_000_000;

/** A msgpack array of texts, as Python's serializer writes it. */
function msgpack(texts: readonly string[]): Buffer {
  const { length } = texts;
  const header = [
    Buffer.from([0x90 | length]),
    Buffer.from([0xdc, length >> 8, length & 255]),
    Buffer.from([0xdd, 0, length >> 16, (length >> 8) & 255, length & 255]),
  ][length < 16 ? 0 : length < 65_536 ? 1 : 2]!;
  const parts = texts.map((text) => {
    const bytes = Buffer.from(text);
    return Buffer.concat([Buffer.from([0xda, bytes.length >> 8, bytes.length & 255]), bytes]);
  });
  return Buffer.concat([header, ...parts]);
}

const message = (i: number) => `${i} ${"word ".repeat(200)}`;
const messages = (from: number, to: number) =>
  Array.from({ length: to - from }, (_, i) => message(from + i));

it.each([
  ["a short list", 14, 15, 1, 1],
  ["a list whose header becomes longer", 15, 16, 1, 3],
  ["a list", 16, 17, 3, 3],
  ["a list beyond a byte's count", 255, 256, 3, 3],
])("keeps all of %s in msgpack but its header", (_, before, after, offset, headLength) => {
  const stored = msgpack(messages(0, before));
  const kept = keptBytes(stored, msgpack(messages(0, after)));
  // The header's own bytes may be equal at their end.
  const more = offset - kept.offset;
  expect(more).toBeLessThan(3);
  expect(kept).toEqual({
    offset: offset - more,
    headLength: headLength - more,
    length: stored.length - offset + more,
  });
});

it("keeps all of a list beyond 65,535 elements", () => {
  const many = Array.from({ length: 65_536 }, (_, i) => `${i}`);
  const stored = msgpack(many.slice(0, -1));
  expect(keptBytes(stored, msgpack(many)).length).toBeGreaterThanOrEqual(stored.length - 3);
});

it("keeps what a window of the last messages has of the one before", () => {
  const stored = msgpack(messages(0, 40));
  const value = msgpack(messages(3, 43));
  const [gone] = [msgpack(messages(0, 3)).length - 1];
  const { length } = keptBytes(stored, value);
  expect(length).toBeGreaterThanOrEqual(stored.length - 3 - gone);
});

it("keeps a window of short messages, most bytes of which are in each of them", () => {
  const short = (i: number) => ({
    lc: 1,
    type: "constructor",
    id: ["langchain_core", "messages", "AIMessage"],
    kwargs: {
      content: `${i * 7919}`,
      additional_kwargs: {},
      tool_calls: [],
      invalid_tool_calls: [],
    },
  });
  const window = (from: number) =>
    Buffer.from(JSON.stringify(Array.from({ length: 200 }, (_, i) => short(from + i))));
  const stored = window(0);
  const value = window(3);
  const kept = keptBytes(stored, value);
  expect(restored(stored, value, kept)).toEqual(value);
  expect(kept.length).toBeGreaterThan(stored.length * 0.98);
});

it("keeps JSON whose first field changes, and what follows where the value ends alike", () => {
  const json = (n: number, rest: string) => Buffer.from(JSON.stringify({ n, list: [rest] }));
  const long = messages(0, 40).join();
  const stored = json(99, long);
  const value = json(100, long);
  const kept = keptBytes(stored, value);
  expect(restored(stored, value, kept)).toEqual(value);
  expect(kept.length).toBeGreaterThan(stored.length - 10);
});

it("takes the beginning where it is half of the stored value or more", () => {
  const stored = Buffer.from("a".repeat(20_000) + "b".repeat(10_000));
  const value = Buffer.from("a".repeat(20_000) + "c".repeat(50_000));
  expect(keptBytes(stored, value)).toEqual({ offset: 0, headLength: 0, length: 20_000 });
});

it("keeps nothing of values that have nothing in common", () => {
  const none = { offset: 0, headLength: 0, length: 0 };
  const [a, b] = [Buffer.alloc(50_000, 1), Buffer.alloc(50_000, 2)];
  expect(keptBytes(a, b)).toEqual(none);
  expect(keptBytes(a, Buffer.alloc(0))).toEqual(none);
  expect(keptBytes(Buffer.alloc(0), b)).toEqual(none);
});

it(`makes the value of what is kept and what is sent, whatever changed, seed ${seed}`, () => {
  const random = createRandom(seed);
  for (let i = 0; i < 2_000; i++) {
    // Few different bytes have the anchor in many places.
    const letters = [1, 2, 3, 256][random(4)] as number;
    const some = (most: number) =>
      Buffer.from(Array.from({ length: random(most) }, () => random(letters)));
    let value = Buffer.concat(Array.from({ length: 1 + random(3) }, () => some(2_000)));
    const stored = Buffer.from(value);
    for (let change = random(4); change > 0; change--) {
      const from = random(value.length + 1);
      const to = random(2) ? from : from + random(value.length - from + 1);
      value = Buffer.concat([value.subarray(0, from), some(50), value.subarray(to)]);
    }
    const kept = keptBytes(stored, value);
    expect(restored(stored, value, kept)).toEqual(value);
    expect(kept.offset + kept.length).toBeLessThanOrEqual(stored.length);
    expect(kept.headLength + kept.length).toBeLessThanOrEqual(value.length);
  }
});
