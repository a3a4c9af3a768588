/** What differs between decoded values. */
import { expect, it } from "vitest";
import type { Decoded } from "./decode_value.js";
import { itemsWithout } from "./difference.js";

it("tells the items of a set that are not in another, of any kind, without looking at each with each", () => {
  let looks = 0;
  const text = (value: string): Decoded =>
    Object.defineProperty({ kind: "json" } as Decoded, "value", {
      enumerable: true,
      get: () => {
        looks++;
        return value;
      },
    });
  const count = 2_000;
  const items = Array.from({ length: count }, (_, i) => text(`a${i}`));
  const others = Array.from({ length: count }, (_, i) => text(`a${i + 1}`));
  expect(itemsWithout(items, others)).toEqual([{ kind: "json", value: "a0" }]);
  expect(looks).toBeLessThan(10 * count);
  const bytes = (...of: number[]): Decoded => ({ kind: "bytes", bytes: Uint8Array.from(of) });
  const number: Decoded = { kind: "json", value: 1 };
  expect(itemsWithout([bytes(1), bytes(1, 2), number], [bytes(1), text("1")])).toEqual([
    bytes(1, 2),
    number,
  ]);
});
