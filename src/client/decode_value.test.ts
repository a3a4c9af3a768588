/** Values as LangGraph's serializers in JavaScript (run here) and in Python (bytes kept from 4.3) wrote them. */
import { AIMessage, ChatMessage, HumanMessage, ToolMessage } from "@langchain/core/messages";
import { MemorySaver } from "@langchain/langgraph-checkpoint";
import { describe, expect, it } from "vitest";
import { decodeValue } from "./decode_value.js";

const { serde } = new MemorySaver();
const encode = (text: string) => new TextEncoder().encode(text);
const fromJson = (text: string) => decodeValue({ type: "json", data: encode(text) });
const fromHex = (hex: string) => decodeValue({ type: "msgpack", data: Buffer.from(hex, "hex") });
async function fromJs(value: unknown) {
  const [type, data] = await serde.dumpsTyped(value);
  return decodeValue({ type, data });
}
const json = (value: unknown) => ({ kind: "json", value });

describe("what JavaScript's serializer wrote", () => {
  it("is plain JSON where it is", async () => {
    for (const value of [null, "text", 1.5, true, [], [1, { a: [null] }], {}, { a: { b: 1 } }]) {
      expect(await fromJs(value)).toEqual(json(value));
    }
  });

  it("has every digit of integers that Python or Postgres wrote", () => {
    const integers = '[9007199254740993, -9007199254740993,"9007199254740993\\"1", 1e21, 4.5]';
    expect(fromJson(integers)).toEqual(
      json(["9007199254740993", "-9007199254740993", '9007199254740993"1', 1e21, 4.5]),
    );
    const long = `${'\\"9'.repeat(3_000_000)}`;
    expect(fromJson(`["${long}", 12345678901234567890]`)).toEqual(
      json([long.replaceAll("\\", ""), "12345678901234567890"]),
    );
  });

  it("has messages with what they say, their calls of tools and the rest", async () => {
    const decoded = await fromJs({
      messages: [
        new HumanMessage({ content: "Hi", id: "1", name: "Ada" }),
        new AIMessage({ content: "", tool_calls: [{ name: "look", args: { q: "x" }, id: "c" }] }),
        new ToolMessage({ content: "found", tool_call_id: "c", name: "look", artifact: [1] }),
        new AIMessage({
          content: [
            { type: "text", text: "see " },
            { type: "image_url", image_url: "data:" },
          ],
        }),
        new ChatMessage("hm", "critic"),
      ],
    });
    expect(decoded).toMatchObject({
      kind: "object",
      fields: [["messages", { kind: "list" }]],
    });
    const [[, list]] = (decoded as Extract<typeof decoded, { kind: "object" }>).fields as [
      [string, Extract<typeof decoded, { kind: "list" }>],
    ];
    expect(list.items).toMatchObject([
      { kind: "message", role: "human", text: "Hi", id: "1", name: "Ada", toolCalls: [] },
      { role: "ai", text: "", toolCalls: [{ name: "look", id: "c", args: json({ q: "x" }) }] },
      { role: "tool", text: "found", toolCallId: "c", name: "look" },
      { role: "ai", text: "see [image_url]" },
      { role: "critic", text: "hm" },
    ]);
    const fieldsOf = (i: number) => (list.items[i] as { fields: [string, unknown][] }).fields;
    expect(fieldsOf(2)).toContainEqual(["artifact", json([1])]);
    expect(fieldsOf(3)).toContainEqual(["content", expect.objectContaining({ kind: "json" })]);
  });

  it("has sets, maps, bytes, errors, patterns and undefined", async () => {
    expect(await fromJs(new Set([1]))).toEqual({ kind: "list", name: "Set", items: [json(1)] });
    expect(await fromJs(new Map([["a", 1]]))).toEqual({
      kind: "object",
      name: "Map",
      fields: [["a", json(1)]],
    });
    expect(await fromJs({ raw: new Uint8Array([0, 255]) })).toEqual({
      kind: "object",
      fields: [["raw", { kind: "bytes", bytes: new Uint8Array([0, 255]) }]],
    });
    expect(await fromJs(new Uint8Array([1]))).toEqual({
      kind: "bytes",
      bytes: new Uint8Array([1]),
    });
    expect(await fromJs(new Error("boom"))).toEqual({
      kind: "list",
      name: "Error",
      items: [json("boom")],
    });
    expect(await fromJs(/a.b/g)).toEqual(json("/a.b/g"));
    expect(await fromJs(undefined)).toEqual({ kind: "none" });
    expect(fromJson('{"lc":2,"type":"delta_snapshot","value":[1]}')).toEqual(json([1]));
  });
});

describe("what Python's serializer wrote", () => {
  const message = (hex: string) => (fromHex(hex) as { items: unknown[] }).items;
  it.each([
    ["a tuple", "920102", json([1, 2])],
    [
      "a set",
      "d80093a86275696c74696e73a37365749103",
      { kind: "list", name: "set", items: [json(3)] },
    ],
    [
      "a dataclass",
      "c7200293a85f5f6d61696e5f5fa45472697082a463697479a4526f6d65a46461797303",
      {
        kind: "object",
        name: "Trip",
        fields: [
          ["city", json("Rome")],
          ["days", json(3)],
        ],
      },
    ],
    [
      "a pydantic model with a date",
      "c74a0594a85f5f6d61696e5f5fa6506572736f6e82a46e616d65a3416461a26174c7150193a86461746574696d65a46461746593cd07ea0102b36d6f64656c5f76616c69646174655f6a736f6e",
      {
        kind: "object",
        name: "Person",
        fields: [
          ["name", json("Ada")],
          ["at", json("2026-01-02")],
        ],
      },
    ],
    [
      "an enum",
      "c7150093a85f5f6d61696e5f5fa6436f6c6f7572a3726564",
      { kind: "list", name: "Colour", items: [json("red")] },
    ],
    [
      "a datetime",
      "c73b0394a86461746574696d65a86461746574696d65b9323032362d30312d30325430333a30343a30352b30303a3030ad66726f6d69736f666f726d6174",
      json("2026-01-02T03:04:05+00:00"),
    ],
    [
      "a UUID",
      "c72d0093a475756964a455554944d9203030303030303030303030303030303030303030303030303030303030303031",
      json("00000000-0000-0000-0000-000000000001"),
    ],
    [
      "an array of numpy",
      "c7240694a33c6934920203a143c418000000000100000002000000030000000400000005000000",
      {
        kind: "object",
        name: "ndarray",
        fields: [
          ["dtype", json("<i4")],
          ["shape", json([2, 3])],
          ["order", json("C")],
          ["data", { kind: "bytes" }],
        ],
      },
    ],
    ["a delta channel's snapshot", "c70307920102", json([1, 2])],
    ["keys that are numbers", "8201a16102a162", json({ 1: "a", 2: "b" })],
    [
      "numbers of every size",
      "95fb01cd012ccf000000012a05f200cf4000000000000000",
      json([-5, 1, 300, 5_000_000_000, "4611686018427387904"]),
    ],
    [
      "numbers that JSON has not",
      "92cb7ff0000000000000cb7ff8000000000000",
      json(["Infinity", "NaN"]),
    ],
    [
      "bytes inside",
      "81a161c40100",
      { kind: "object", fields: [["a", { kind: "bytes", bytes: Buffer.from([0]) }]] },
    ],
  ])("%s", (_, hex, expected) => {
    expect(fromHex(hex)).toMatchObject(expected);
  });

  it("messages", () => {
    expect(
      message(
        "92c7880594bd6c616e67636861696e5f636f72652e6d657373616765732e68756d616eac48756d616e4d65737361676586a7636f6e74656e74a24869b16164646974696f6e616c5f6b776172677380b1726573706f6e73655f6d6574616461746180a474797065a568756d616ea46e616d65c0a26964a131b36d6f64656c5f76616c69646174655f6a736f6ec7d70594ba6c616e67636861696e5f636f72652e6d657373616765732e6169a941494d65737361676589a7636f6e74656e74a0b16164646974696f6e616c5f6b776172677380b1726573706f6e73655f6d6574616461746180a474797065a26169a46e616d65c0a26964a132aa746f6f6c5f63616c6c739184a46e616d65a46c6f6f6ba46172677381a171a178a26964a26331a474797065a9746f6f6c5f63616c6cb2696e76616c69645f746f6f6c5f63616c6c7390ae75736167655f6d65746164617461c0b36d6f64656c5f76616c69646174655f6a736f6e",
      ),
    ).toMatchObject([
      { kind: "message", role: "human", text: "Hi", id: "1" },
      { kind: "message", role: "ai", toolCalls: [{ name: "look", args: json({ q: "x" }) }] },
    ]);
  });

  it("null, bytes and what earlier versions wrote as JSON", () => {
    const data = Buffer.from([0, 255]);
    expect(decodeValue({ type: "null", data: Buffer.alloc(0) })).toEqual(json(null));
    expect(decodeValue({ type: "bytearray", data })).toEqual({ kind: "bytes", bytes: data });
    expect(
      fromJson(
        '{"lc":1,"type":"constructor","id":["langchain","schema","messages","HumanMessage"],"kwargs":{"content":"Hi","type":"human"}}',
      ),
    ).toMatchObject({ kind: "message", role: "human", text: "Hi" });
    expect(
      fromJson('{"lc":2,"type":"constructor","id":["builtins","set"],"args":[[1]],"kwargs":{}}'),
    ).toEqual({ kind: "list", name: "set", items: [json(1)] });
  });
});

describe("what cannot be decoded", () => {
  it("is nothing where there is nothing", () => {
    expect(decodeValue(undefined)).toEqual({ kind: "none" });
    expect(decodeValue({ type: "empty", data: encode("") })).toEqual({ kind: "none" });
    // What LangGraph's serializer writes for a function.
    expect(fromJson("")).toEqual({ kind: "none" });
  });

  it.each([
    ["json", "7b", /JSON/],
    ["json", "22ff22", /./],
    ["json+aes", "00", "a type of another serializer"],
    ["pickle", "8004", "a type of another serializer"],
    ["msgpack", "", "the bytes end within a value"],
    ["msgpack", "c1", "no msgpack begins with the byte 193"],
    ["msgpack", "0101", "bytes follow the value"],
    ["msgpack", "ddffffffff", "the bytes end within a value"],
    ["msgpack", "dfffffffff01", "the bytes end within a value"],
    ["msgpack", "c6ffffffff01", "the bytes end within a value"],
    ["msgpack", "d46301", "an extension of msgpack that LangGraph does not write (99)"],
    ["msgpack", "91".repeat(600), "nested more than 500 levels deep"],
  ])("%s %s is unknown, with its bytes and the reason", (type, hex, reason) => {
    const data = Buffer.from(hex, "hex");
    expect(decodeValue({ type, data })).toEqual({
      kind: "unknown",
      type,
      bytes: data,
      reason: reason instanceof RegExp ? expect.stringMatching(reason) : reason,
    });
  });

  it("is what is nested so deep that its reader would overflow", () => {
    const unknown = { kind: "unknown", reason: "nested more than 500 levels deep" };
    expect(fromJson("[".repeat(100_000) + "]".repeat(100_000))).toMatchObject(unknown);
    expect(fromJson('{"a":'.repeat(501) + 1 + "}".repeat(501))).toMatchObject(unknown);
    expect(fromJson("[".repeat(400) + "]".repeat(400))).toMatchObject({ kind: "json" });
    // Extensions within extensions, each the whole of the one before.
    let hex = "c0";
    for (let i = 0; i < 600; i++) {
      const length = (hex.length / 2).toString(16).padStart(8, "0");
      hex = `c9${length}07${hex}`;
    }
    expect(fromHex(hex)).toMatchObject(unknown);
  });
});

it("takes hostile values for what they are: text, keys, nothing that runs", () => {
  const text = "<img src=x onerror=alert(1)>";
  expect(fromJson(JSON.stringify({ [text]: text }))).toEqual(json({ [text]: text }));
  const polluted = fromJson('{"__proto__":{"polluted":1},"constructor":1}');
  expect(polluted).toEqual({ kind: "json", value: expect.anything() });
  expect(Object.keys((polluted as { value: object }).value)).toEqual(["__proto__", "constructor"]);
  expect(({} as { polluted?: number }).polluted).toBeUndefined();
  // Records that are not what they say.
  for (const record of [
    { lc: 1, type: "constructor", id: ["langchain_core", "messages", "HumanMessage"] },
    { lc: 1, type: "constructor", id: [], kwargs: 1 },
    { lc: 2, type: "constructor", id: ["Map"], args: [[1]] },
    { lc: 2, type: "constructor", id: ["Uint8Array"], args: ["x"] },
    { lc: 1, type: "constructor", id: [{}, null], args: { length: 9 } },
    {
      lc: 1,
      type: "constructor",
      id: ["a", "messages", "AIMessage"],
      kwargs: { tool_calls: [null, 1] },
    },
    {
      lc: 1,
      type: "constructor",
      id: ["a", "messages", "AIMessage"],
      kwargs: { content: [null, 1] },
    },
  ]) {
    expect(fromJson(JSON.stringify(record)).kind).toMatch(/^(message|object|list)$/);
  }
  // Data of a user that only looks like a message, as LangChain marks it.
  const fake = { lc: 1, type: "constructor", id: ["langchain_core", "messages", "AIMessage"] };
  expect(fromJson(JSON.stringify({ __lc_escaped__: fake }))).toEqual(json(fake));
});
