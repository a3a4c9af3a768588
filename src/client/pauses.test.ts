import { expect, it } from "vitest";
import { createPauses } from "./pauses.js";

it("lets a thread alone twice as long each time, an hour at the most, until it is forgotten", () => {
  let now = 0;
  const pauses = createPauses(60_000, () => now);
  const lengths: number[] = [];
  for (let i = 0; i < 9; i++) {
    pauses.pause("a");
    const begun = now;
    expect(pauses.threads()).toEqual(["a"]);
    while (pauses.threads().length > 0) now += 30_000;
    lengths.push((now - begun) / 60_000);
  }
  expect(lengths).toEqual([1, 2, 4, 8, 16, 32, 60, 60, 60]);
  pauses.forget("a");
  pauses.pause("a");
  now += 59_000;
  pauses.pause("b");
  expect(pauses.threads()).toEqual(["a", "b"]);
  now += 2_000;
  expect(pauses.threads()).toEqual(["b"]);
});

it("begins anew with a thread that nobody claimed for long", () => {
  let now = 0;
  const pauses = createPauses(1_000, () => now);
  pauses.pause("a");
  now += 2_001;
  expect(pauses.threads()).toEqual([]);
  pauses.pause("a");
  now += 1_001;
  expect(pauses.threads()).toEqual([]);
});
