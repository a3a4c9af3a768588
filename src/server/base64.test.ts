import { expect, it } from "vitest";
import "./base64.js";

const prototype = Uint8Array.prototype as unknown as {
  toBase64(options?: object): string;
  setFromBase64(text: string): { read: number; written: number };
};
const toBase64 = (bytes: Uint8Array, options?: object) => prototype.toBase64.call(bytes, options);
const setFromBase64 = (bytes: Uint8Array, text: string) =>
  prototype.setFromBase64.call(bytes, text);

it("writes and reads base64 of any length, at any place of a buffer", () => {
  const whole = Uint8Array.from({ length: 300 }, (_, i) => i * 7);
  for (let length = 0; length < 260; length++) {
    const bytes = whole.subarray(3, 3 + length);
    const text = Buffer.from(bytes).toString("base64");
    expect(toBase64(bytes)).toBe(text);
    expect(toBase64(bytes, { omitPadding: true })).toBe(text.replace(/=/g, ""));
    const url = text.replaceAll("+", "-").replaceAll("/", "_");
    expect(toBase64(bytes, { alphabet: "base64url", omitPadding: false })).toBe(url);
    const read = new Uint8Array(length);
    expect(setFromBase64(read, text)).toEqual({ read: text.length, written: length });
    expect(read).toEqual(bytes);
  }
});

it.each(["a", "ab", "abc", "ab-_", "ab==ab==", "a===", "ab=c", "\u00e9abc", "ab\u0000c"])(
  "reads no %j, which its caller has to look at",
  (text) => {
    expect(() => setFromBase64(new Uint8Array(10), text)).toThrow(SyntaxError);
  },
);

it("takes a moment for much", () => {
  const bytes = new Uint8Array(60_000_000).fill(7);
  const text = toBase64(bytes);
  expect(setFromBase64(new Uint8Array(60_000_000), text).written).toBe(60_000_000);
});
