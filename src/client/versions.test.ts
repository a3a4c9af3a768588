import { describe, expect, it } from "vitest";
import { nextVersion, versionText } from "./versions.js";

describe("nextVersion", () => {
  it("counts in whole numbers and never gives the same version twice", () => {
    const seen = new Set<number>();
    let version: number | undefined;
    for (let step = 1; step <= 2000; step++) {
      for (let branch = 0; branch < 3; branch++) {
        const next = nextVersion(version);
        expect(Math.floor(next)).toBe(step);
        seen.add(next);
      }
      version = nextVersion(version);
    }
    expect(seen.size).toBe(6000);
  });

  it("stays below the integer after next where the fraction is rounded", () => {
    for (const current of [2 ** 44, 2 ** 51, 2 ** 52, 2 ** 53 - 2]) {
      for (let i = 0; i < 1000; i++) {
        const next = nextVersion(current);
        expect(next).toBeGreaterThan(current);
        expect(next).toBeLessThan(current + 2);
      }
    }
    expect(() => nextVersion(2 ** 53)).toThrow("no successor");
    expect(() => nextVersion(Number.NaN)).toThrow("no successor");
  });

  it("goes on from an integer saver's version, and lets it go on", () => {
    const ours = nextVersion(3);
    expect(Math.floor(ours)).toBe(4);
    expect(ours + 1).toBeGreaterThan(ours);
  });

  it("makes strings as Python's saver does", () => {
    const python = "00000000000000000000000000000009.0.4567890123456789";
    const next = nextVersion(python);
    expect(next).toMatch(/^0{30}10\.\d{16}$/);
    expect(next > python).toBe(true);
    expect(nextVersion("7")).toMatch(/^0{31}8\.\d{16}$/);
    expect(() => nextVersion("v1")).toThrow('"v1"');
  });
});

describe("versionText", () => {
  it.each([
    [3, "3"],
    [4.731, "4.731"],
    [-0, "0"],
    [0.000001, "0.000001"],
    [1e-7, "0.0000001"],
    [1.5e-7, "0.00000015"],
    [-1.25e-9, "-0.00000000125"],
    [123456789012345680000, "123456789012345680000"],
    [1e21, "1000000000000000000000"],
    [1.234e22, "12340000000000000000000"],
    ["0001.0.5", "0001.0.5"],
    ["1e21", "1e21"],
  ])("spells %s as %s", (version, text) => {
    expect(versionText("v", version)).toBe(text);
  });

  it.each([Number.NaN, Number.POSITIVE_INFINITY, null, undefined, true, {}])(
    "refuses %s",
    (version) => {
      expect(() => versionText("the version", version)).toThrow("the version must be");
    },
  );
});
