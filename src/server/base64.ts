/**
 * What newer versions of Node have: base64 of bytes by native code. To be imported before
 * @bufbuild/protobuf, which looks for it when it is loaded and does without byte by byte: of a value of
 * 60 MB, as JSON, that stopped the process for 30 s.
 */
interface Native {
  toBase64?: (options?: { alphabet?: string; omitPadding?: boolean }) => string;
  setFromBase64?: (text: string) => { read: number; written: number };
}

const prototype = Uint8Array.prototype as Native;
const view = (bytes: Uint8Array) => Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);

if (prototype.toBase64 === undefined) {
  define("toBase64", function (this: Uint8Array, { alphabet, omitPadding } = {}) {
    if (alphabet === "base64url") {
      const text = view(this).toString("base64url");
      return omitPadding ? text : text.padEnd(Math.ceil(text.length / 4) * 4, "=");
    }
    const text = view(this).toString("base64");
    return omitPadding ? text.replace(/=+$/, "") : text;
  });
}

if (prototype.setFromBase64 === undefined) {
  define("setFromBase64", function (this: Uint8Array, text) {
    // Buffer passes over what is none, which its caller has to look at.
    const padding = text.endsWith("==") ? 2 : text.endsWith("=") ? 1 : 0;
    if (text.length % 4 > 0 || /[^A-Za-z0-9+/]/.test(text.slice(0, text.length - padding))) {
      throw new SyntaxError("not base64 as RFC 4648 has it, with padding");
    }
    return { read: text.length, written: view(this).write(text, "base64") };
  });
}

function define<Name extends keyof Native>(
  name: Name,
  value: Extract<Native[Name], (...parameters: never) => unknown>,
): void {
  Object.defineProperty(prototype, name, { value, writable: true, configurable: true });
}
