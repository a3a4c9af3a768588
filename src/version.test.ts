import { expect, it } from "vitest";
import { isOlder, version } from "./version.js";

it.each([
  ["0.1.0", "0.2.0", true],
  ["0.9.0", "0.10.0", true],
  ["1.0.0", "0.10.0", false],
  ["0.2.0", "0.2.0", false],
  ["0.2.1", "0.2.0", false],
  ["0.2.0", "0.2.1", true],
  // What leads to a release has its migrations.
  ["0.2.0-rc.1", "0.2.0", false],
  ["0.2.0", "newest", undefined],
  ["0.2.0", "", undefined],
  ["0.2.0", "0.3", undefined],
])("%s is older than %s: %s", (one, other, expected) => {
  expect(isOlder(one, other)).toBe(expected);
});

it("this version has three numbers", () => {
  expect(isOlder(version(), version())).toBe(false);
});
