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

test("JSON that Postgres would write out much longer, or could not read, is refused", () => {
  const check = (each: string, times: number) =>
    checkStoredJson("metadata_json", `{"a":[${each.repeat(times)}1]}`);
  // The shortest numbers with an exponent, of one digit.
  expect(() => check("1e9,", 3_000_000)).toThrow("numbers with exponents");
  expect(() => check("1,", 5_000_000)).toThrow("elements and keys");
  const deep = `{"a":${"[".repeat(2_000)}${"]".repeat(2_000)}}`;
  expect(() => checkStoredJson("metadata_json", deep)).toThrow("levels deep");
  expect(check("100,", 3_000_000).printed).toBe(3_000_000 * 5 + 10);
});
