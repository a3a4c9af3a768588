/** What every text and list of a request may be; see request_checks.ts. */
import { Buffer } from "node:buffer";
import { invalidArgument } from "../errors.js";

/** Limits of texts in bytes of UTF-8, and of lists in elements. */
export const limits = {
  /** A name that is in a key, or may be. The longest that Postgres can compress to fit are shorter. */
  name: 65_536,
  /** The largest is 4294967295. */
  transactionId: 10,
  /** Where a bytea of Postgres ends. */
  offset: 1024 ** 3,
  type: 256,
  /** Channels or writes. A graph has a channel for each field of its state, and one for each node. */
  elements: 100_000,
  leaseToken: 64,
  owner: 256,
  /** Threads or runs that one request may name, and threads it may claim. */
  threads: 1_000,
  keepLast: 1_000_000,
} as const;

export function checkName(field: string, text: string, limit: number = limits.name): void {
  checkRequired(field, text);
  checkText(field, text, limit);
}

export function checkRequired(field: string, text: string): void {
  if (text === "") throw invalidArgument(field, "REQUIRED", "must not be empty");
}

export function checkText(field: string, text: string, limit: number = limits.name): void {
  // A UTF-16 unit is at most 3 bytes of UTF-8, so most names need no counting.
  if (text.length * 3 > limit && Buffer.byteLength(text) > limit) {
    throw invalidArgument(field, "TOO_LONG", `must be at most ${limit} bytes`, limit);
  }
  checkCharacters(field, text);
}

export function checkCharacters(field: string, text: string): void {
  if (text.includes("\0")) {
    throw invalidArgument(field, "NUL_CHARACTER", "must not hold a NUL character");
  }
  if (!text.isWellFormed()) {
    throw invalidArgument(field, "LONE_SURROGATE", "must not hold a lone surrogate");
  }
}

export function checkCount(field: string, count: number, limit: number = limits.elements): void {
  if (count > limit) {
    const message = `must have at most ${limit} elements, has ${count}`;
    throw invalidArgument(field, "TOO_MANY", message, limit);
  }
}
