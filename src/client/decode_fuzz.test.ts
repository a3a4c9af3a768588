/** Values that were mutated: whatever their bytes, they are decoded to something, in bounded work. */
import { AIMessage, HumanMessage, ToolMessage } from "@langchain/core/messages";
import { MemorySaver } from "@langchain/langgraph-checkpoint";
import { expect, it } from "vitest";
import { render } from "../cli/print.js";
import { toLines, toPlain } from "../cli/value_text.js";
import { hostileValues } from "../testing/hostile_values.js";
import { createRandom } from "../testing/random.js";
import { type Decoded, decodeValue } from "./decode_value.js";
import { changesOfValue, isSameValue, partsOfValue } from "./difference.js";
import { type StoredValue, splitValue, textOfValue } from "./stored_parts.js";

/** A pydantic model, a dataclass, an array of numpy, messages, a map: as Python wrote them. */
const ofPython = [
  "c74a0594a85f5f6d61696e5f5fa6506572736f6e82a46e616d65a3416461a26174c7150193a86461746574696d65a46461746593cd07ea0102b36d6f64656c5f76616c69646174655f6a736f6e",
  "c7200293a85f5f6d61696e5f5fa45472697082a463697479a4526f6d65a46461797303",
  "c7240694a33c6934920203a143c418000000000100000002000000030000000400000005000000",
  "92c7880594bd6c616e67636861696e5f636f72652e6d657373616765732e68756d616eac48756d616e4d65737361676586a7636f6e74656e74a24869b16164646974696f6e616c5f6b776172677380b1726573706f6e73655f6d6574616461746180a474797065a568756d616ea46e616d65c0a26964a131b36d6f64656c5f76616c69646174655f6a736f6ec0",
  "84a16101a162c3a163a878c3a97878787878a16492cb3ff0000000000000c403010203",
].map((hex) => ({ type: "msgpack", data: Buffer.from(hex, "hex") }));

const [seed, rounds] = [20_261_126, 15_000];

it(`${rounds} values from the seed ${seed} are decoded, split, compared and shown`, async () => {
  const { serde } = new MemorySaver();
  const messages = [
    new HumanMessage({ content: "Hi", name: "Ada" }),
    new AIMessage({
      content: [{ type: "text", text: "so" }],
      tool_calls: [{ name: "look", args: { q: ["x", null] }, id: "c" }],
    }),
    new ToolMessage({ content: "found", tool_call_id: "c" }),
  ];
  const real: StoredValue[] = [
    ...ofPython,
    ...hostileValues.filter(({ data }) => data.length < 1_000),
  ];
  for (const value of [
    messages,
    new Map([["a", new Set([1])]]),
    { raw: new Uint8Array(9), at: /x/ },
  ]) {
    const [type, data] = await serde.dumpsTyped(value);
    real.push({ type, data });
  }
  const random = createRandom(seed);
  let before: Decoded = { kind: "none" };
  let unread = 0;
  for (let round = 0; round < rounds; round++) {
    const { type, data } = real[random(real.length)] as StoredValue;
    const value = { type, data: mutate(data, random, type) };
    const what = () => `${round}: ${type} ${Buffer.from(value.data).toString("hex")}`;
    try {
      const decoded = decodeValue(value);
      if (decoded.kind === "unknown") unread++;
      for (const line of toLines(decoded)) expect(render(line).length).toBeLessThan(3_000);
      JSON.stringify(toPlain(decoded));
      expect(isSameValue(decoded, decodeValue(value))).toBe(true);
      changesOfValue(before, decoded);
      before = decoded;
      expectSameParts(value, decoded);
    } catch (error) {
      throw new Error(what(), { cause: error });
    }
  }
  // Both what can be read and what cannot was among them.
  expect(unread).toBeGreaterThan(rounds / 10);
  expect(unread).toBeLessThan((rounds * 9) / 10);
  expect(({} as { polluted?: number }).polluted).toBeUndefined();
}, 120_000);

/** A few of its bytes changed, removed, repeated or set to what has a meaning. */
function mutate(data: Uint8Array, random: (below: number) => number, type: string): Uint8Array {
  let bytes = Buffer.from(data);
  const meanings =
    type === "json"
      ? Buffer.from('[]{}",:\\u0-e')
      : Buffer.from("c0c1c4c7d4d8d9dcdddedf90800594", "hex");
  for (let times = random(4); times > 0 && bytes.length > 0; times--) {
    const at = random(bytes.length);
    const to = Math.min(bytes.length, at + 1 + random(8));
    switch (random(5)) {
      case 0:
        bytes[at] = random(256);
        break;
      case 1:
        bytes[at] = meanings[random(meanings.length)] as number;
        break;
      case 2:
        bytes = Buffer.concat([bytes.subarray(0, at), bytes.subarray(to)]);
        break;
      case 3:
        bytes = Buffer.concat([bytes.subarray(0, to), bytes.subarray(at)]);
        break;
      default:
        bytes = bytes.subarray(0, to);
    }
  }
  return bytes;
}

/** What is found without decoding is what decoding finds, where that is plain. */
function expectSameParts(stored: StoredValue, decoded: Decoded): void {
  textOfValue(stored, 0, 10);
  const splitting = splitValue(stored);
  let step = splitting.next();
  while (!step.done) step = splitting.next();
  const parts = step.value;
  if (!parts) {
    const whole = decoded.kind === "json" ? partsOfValue(decoded) : undefined;
    expect(whole).toBeUndefined();
    return;
  }
  for (let i = 0; i < parts.size; i++) {
    parts.key(i);
    decodeValue(parts.value(i));
  }
  if (decoded.kind !== "json" || !Array.isArray(decoded.value)) return;
  const found = Array.from({ length: parts.size }, (_, i) => decodeValue(parts.value(i)));
  expect(found).toEqual([...(partsOfValue(decoded)?.parts.values() ?? [])]);
}
