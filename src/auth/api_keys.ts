/**
 * API keys: `ckpd_`, 32 random bytes as 43 digits of base62, and 6 digits that are their CRC-32. The
 * prefix is what scanners of repositories look for, the checksum tells a key from a text that only
 * looks like one, and nothing in it ends a word, so that it is marked by a double click.
 */
import { createHash, randomBytes } from "node:crypto";
import { crc32 } from "node:zlib";

/** How each key begins, and nothing else that is sent as a bearer. */
export const keyPrefix = "ckpd_";

const digits = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
const shape = /^ckpd_[0-9A-Za-z]{49}$/;

/** Makes a key that nobody can guess. */
export function createKey(): string {
  const random = toBase62(BigInt(`0x${randomBytes(32).toString("hex")}`), 43);
  return `${keyPrefix}${random}${checksum(random)}`;
}

/** Whether this can be a key: false for one that was cut or typed wrongly. */
export function isKey(text: string): boolean {
  return shape.test(text) && checksum(text.slice(5, 48)) === text.slice(48);
}

/**
 * The SHA-256 of the whole key, in hexadecimal digits: all that the server keeps. A key has 256 random
 * bits, so its hash needs no salt and no slowness, and the time that it takes to find it tells nothing.
 */
export function hashKey(key: string): string {
  return createHash("sha256").update(key).digest("hex");
}

const checksum = (text: string) => toBase62(BigInt(crc32(text)), 6);

function toBase62(number: bigint, length: number): string {
  let text = "";
  for (let rest = number; text.length < length; rest /= 62n)
    text = digits[Number(rest % 62n)] + text;
  return text;
}
