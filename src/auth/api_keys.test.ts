import { createHash } from "node:crypto";
import { expect, test } from "vitest";
import { createKey, hashKey, isKey } from "./api_keys.js";

test("a key is a word with a prefix that scanners know, and no two are the same", () => {
  const keys = Array.from({ length: 500 }, createKey);
  for (const key of keys) expect(key).toMatch(/^ckpd_[0-9A-Za-z]{49}$/);
  expect(new Set(keys).size).toBe(500);
  // 32 random bytes: each digit of base62 is somewhere, and the first is not always 0.
  expect(new Set(keys.join("").slice(5)).size).toBeGreaterThanOrEqual(62);
});

test("a key that was cut, or typed wrongly in any place, is told from one that nobody has", () => {
  const key = createKey();
  expect(isKey(key)).toBe(true);
  for (let i = 5; i < key.length; i++) {
    const other = key[i] === "x" ? "y" : "x";
    expect(isKey(key.slice(0, i) + other + key.slice(i + 1)), `${i}`).toBe(false);
  }
  for (const wrong of [key.slice(0, -1), `${key}x`, key.slice(1), "", "ckpd_", ` ${key}`]) {
    expect(isKey(wrong)).toBe(false);
  }
});

test("the hash is that of the whole key, as sha256sum prints it", () => {
  const key = "ckpd_000";
  expect(hashKey(key)).toBe(createHash("sha256").update(key, "utf8").digest("hex"));
  expect(hashKey(key)).toMatch(/^[0-9a-f]{64}$/);
});
