import { describe, expect, it } from "vitest";
import { type Decoded, decodeValue } from "../client/decode_value.js";
import { render } from "./print.js";
import * as values from "./value_text.js";

const { toLastLine, toPlain } = values;
const toLine = (decoded: Decoded) => render(values.toLine(decoded));
const toLines = (decoded: Decoded) => values.toLines(decoded).map((line) => render(line));

const fromHex = (hex: string) => decodeValue({ type: "msgpack", data: Buffer.from(hex, "hex") });
const says = (text: string): Decoded => ({
  kind: "message",
  role: "human",
  text,
  toolCalls: [],
  fields: [],
});

describe("values as text", () => {
  it("are one line each, shortened, without what moves the cursor", () => {
    // A dataclass and a set of Python, bytes in a map, and what nobody reads.
    const trip = "c7200293a85f5f6d61696e5f5fa45472697082a463697479a4526f6d65a46461797303";
    expect(toLine(fromHex(trip))).toBe('Trip {city: "Rome", days: 3}');
    expect(toLine(fromHex("d80093a86275696c74696e73a37365749103"))).toBe("set(3)");
    expect(toLine(fromHex("81a161c40100"))).toBe("{a: <bytes, 1 B>}");
    expect(toLine(decodeValue({ type: "pickle\u001b", data: new Uint8Array(2) }))).toBe(
      "<pickle\\u001b, 2 B, not read: a type of another serializer>",
    );
    expect(toLine(decodeValue(undefined))).toBe("<nothing>");
    expect(toLine(says("\u001b[2J\u009b x\n\ty"))).toBe("human: \\u001b[2J\\u009b x y");
    expect(toLine(says("x".repeat(10_000))).length).toBeLessThan(500);
    expect(toLine({ kind: "json", value: "x".repeat(10_000) }).length).toBeLessThan(500);
  });

  it("are the last messages of a long conversation, and what was said last", () => {
    const items = Array.from({ length: 60 }, (_, i) => says(`${i}`));
    const shown = toLines({ kind: "list", items });
    expect(shown).toHaveLength(51);
    expect([shown[0], shown[1], shown.at(-1)]).toEqual(["… 10 before", "human: 10", "human: 59"]);
    expect(toLastLine({ kind: "list", items }, 60)).toBe("human: 59");
    expect(toLastLine({ kind: "json", value: [1, 2] }, 60)).toBe("[1,2]");
  });
});

it("values as JSON have what a message says under the names of its parts", () => {
  const message: Decoded = {
    kind: "message",
    role: "ai",
    text: "Hi",
    id: "1",
    toolCalls: [{ name: "look", args: { kind: "json", value: 1 } }],
    fields: [
      ["role", { kind: "json", value: "not this" }],
      ["status", { kind: "bytes", bytes: new Uint8Array(3) }],
    ],
  };
  expect(JSON.parse(JSON.stringify(toPlain({ kind: "list", items: [message] })))).toEqual([
    {
      role: "ai",
      text: "Hi",
      id: "1",
      toolCalls: [{ name: "look", args: 1 }],
      status: { type: "bytes", bytes: 3 },
    },
  ]);
  expect(toPlain(decodeValue({ type: "x", data: new Uint8Array(2) }))).toEqual({
    type: "x",
    bytes: 2,
    reason: "a type of another serializer",
  });
});
