/** What is looked at in a text of JSON before anybody reads it. */
import { expect, test } from "vitest";
import { checkStoredJson } from "./json_checks.js";
import { checkJsonSize, mostParts } from "./message_size.js";

test.each([
  ["escaped quotes", `"${'\\"'.repeat(3_000_000)}"`],
  ["short strings", '"" '.repeat(2_000_000)],
  ["backslashes", `"${"\\\\".repeat(3_000_000)}"`],
  ["a long value", `"${"A".repeat(6_000_000)}"`],
])("what comes after %s is counted", (_, text) => {
  const commas = ",".repeat(mostParts);
  expect(() => checkJsonSize(Buffer.from(`{${text}${commas}`))).toThrow(`more than ${mostParts}`);
  // Their end may be missing.
  expect(() => checkJsonSize(Buffer.from(`{${text}"${commas}`))).not.toThrow();
});

test("JSON that Postgres would write out three times as long is refused", () => {
  // 64 MB of the shortest numbers with an exponent, of one digit.
  const numbers = (each: string) => `{"a":[${each.repeat(16 * 1024 * 1024 - 10)}1]}`;
  const check = (each: string) => checkStoredJson("metadata_json", numbers(each));
  expect(() => check("1e9,")).toThrow("numbers with exponents");
  expect(() => check("1e4,")).toThrow("when Postgres writes it out");
  expect(() => check("100,")).not.toThrow();
});
