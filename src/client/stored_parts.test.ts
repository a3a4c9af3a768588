/** Values in part: the same parts that decodeValue finds in the whole, with little work for large ones. */
import { AIMessage } from "@langchain/core/messages";
import { MemorySaver } from "@langchain/langgraph-checkpoint";
import { describe, expect, it } from "vitest";
import { decodeValue } from "./decode_value.js";
import { partsOfValue } from "./difference.js";
import { type StoredValue, splitValue, textOfValue } from "./stored_parts.js";

const { serde } = new MemorySaver();
const json = (text: string): StoredValue => ({ type: "json", data: Buffer.from(text) });
const msgpack = (hex: string): StoredValue => ({ type: "msgpack", data: Buffer.from(hex, "hex") });

function split(stored: StoredValue) {
  const splitting = splitValue(stored);
  let pauses = 0;
  for (;;) {
    const { done, value } = splitting.next();
    if (done) return { parts: value, pauses };
    pauses++;
  }
}

const partsOf = (stored: StoredValue) => {
  const { parts } = split(stored);
  return (
    parts &&
    Array.from({ length: parts.size }, (_, i) => [parts.key(i), decodeValue(parts.value(i))])
  );
};

describe("the parts of a stored value", () => {
  it.each([
    json("[]"),
    json(" [ ] "),
    json("{}"),
    json('[1,"a",null,[1,[2]],{"a":"]"}]'),
    json(' { "a" : 1 , "b\\"" : "x,\\\\" , "c:" : [ "}" , { } ] } '),
    json('{"é\\u0041":"ü"}'),
    msgpack("90"),
    msgpack("80"),
    msgpack("9501a2c3a9c092010281a16101"),
    msgpack("8201a16102a162"),
    msgpack("dc000201dd00000001cb7ff0000000000000"),
    msgpack("de0001d90161c40100"),
    msgpack("82c0c2c3d20000000a"),
    msgpack("93d501ffffd8010000000000000000000000000000000000c7020292c0"),
  ])("are those of the whole: $type $data", (stored) => {
    const whole = partsOfValue(decodeValue(stored));
    if (decodeValue(stored).kind === "unknown") expect(partsOf(stored)).toBeDefined();
    else expect(partsOf(stored)).toEqual([...(whole?.parts ?? [])]);
  });

  it("are messages as JavaScript's serializer writes them", async () => {
    const messages = [new AIMessage("one"), new AIMessage({ content: 'tw"o\\', id: "2" })];
    const [type, data] = await serde.dumpsTyped(messages);
    expect(partsOf({ type, data })).toMatchObject([
      ["0", { kind: "message", text: "one" }],
      ["1", { kind: "message", text: 'tw"o\\', id: "2" }],
    ]);
  });

  it("are those of what a delta channel kept, and of an extension", () => {
    expect(partsOf(json('{"lc":2,"type":"delta_snapshot","value":[1,2]}'))).toHaveLength(2);
    expect(partsOf(msgpack("c70307920102"))).toHaveLength(2);
    // A dataclass: its module, its name, its fields.
    const trip = "c7200293a85f5f6d61696e5f5fa45472697082a463697479a4526f6d65a46461797303";
    expect(partsOf(msgpack(trip))?.map(([, part]) => (part as { value: unknown }).value)).toEqual([
      "__main__",
      "Trip",
      { city: "Rome", days: 3 },
    ]);
  });

  it.each([
    json('"text"'),
    json("1"),
    json(""),
    json("[1"),
    json('["a'),
    json("{1}"),
    msgpack("a161"),
    msgpack(""),
    msgpack("92"),
    msgpack("ddffffffff01"),
    msgpack("c1"),
    { type: "pickle", data: Buffer.from("[1]") },
  ])("are none of what has none, or is damaged: $type $data", (stored) => {
    expect(partsOf(stored)).toBeUndefined();
  });

  it("are found with pauses, and no more of them than a million", () => {
    const many = split(json(`[${"1,".repeat(1_500_000)}1]`));
    expect(many.parts).toMatchObject({ size: 1_000_000, isCut: true });
    expect(many.pauses).toBeGreaterThan(0);
    const quotes = split(json(`["${'\\"'.repeat(5_000_000)}"]`));
    expect(quotes.parts?.size).toBe(1);
    expect(quotes.pauses).toBeGreaterThanOrEqual(9);
    const numbers = Buffer.alloc(5_000_005, 1);
    numbers.writeUInt8(0xdd, 0);
    numbers.writeUInt32BE(5_000_000, 1);
    const nested = Buffer.concat([Buffer.from("91", "hex"), numbers]);
    const inner = split({ type: "msgpack", data: nested });
    expect(inner.parts?.size).toBe(1);
    expect(inner.pauses).toBeGreaterThanOrEqual(4);
  });
});

describe("a piece of a stored text", () => {
  it.each([
    json(JSON.stringify('a"b\\c\n\u0001é€😀'.repeat(20))),
    json(`"${"\\ud83d\\ude00\\u00e9".repeat(20)}"`),
    { type: "msgpack", data: Buffer.from([0xd9, 120, ...Buffer.from("é€😀x".repeat(12))]) },
  ])("after the other is the text: $type", (stored) => {
    const whole = decodeValue(stored);
    for (let most = 12; most < 40; most++) {
      let text = "";
      for (let at = 0; ; ) {
        const piece = textOfValue(stored, at, most);
        if (!piece) throw new Error("no text");
        expect(piece.text.isWellFormed()).toBe(true);
        text += piece.text;
        at = piece.end;
        if (at >= piece.bytes) break;
      }
      expect({ kind: "json", value: text }).toEqual(whole);
    }
  });

  it("is none of what is no text, and what is stored of a damaged one", () => {
    expect(textOfValue(json("[]"), 0, 10)).toBeUndefined();
    expect(textOfValue(msgpack("c40161"), 0, 10)).toBeUndefined();
    expect(textOfValue(json('"\\x"'), 0, 10)?.text).toBe("\\x");
    expect(textOfValue(msgpack("a1ff"), 0, 10)?.text).toBe("\ufffd");
  });
});
