import { describe, expect, it } from "vitest";
import { checkHistories } from "./check.js";
import { errors, simulate } from "./check_simulation.js";

describe("the checker", () => {
  it("finds nothing in runs of a store that makes no mistake", () => {
    for (let seed = 0; seed < 3_000; seed++) {
      const { events, rows } = simulate(seed);
      expect(checkHistories(events, rows), `seed ${seed}`).toEqual([]);
    }
  });

  it.each(errors)("finds %s", (error) => {
    let caught = 0;
    for (let seed = 0; seed < 100; seed++) {
      const { events, rows } = simulate(seed, error);
      if (checkHistories(events, rows).length > 0) caught++;
    }
    expect(caught).toBeGreaterThan(2);
  });
});
