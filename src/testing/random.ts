import { randomBytes } from "node:crypto";

/** Whole numbers below the one given, from a seed (mulberry32), so that a failure can be repeated. */
export function createRandom(seed: number): (below: number) => number {
  let state = seed;
  return (below) => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return Math.floor((((t ^ (t >>> 14)) >>> 0) / 2 ** 32) * below);
  };
}

/** Text of so many bytes that Postgres cannot compress, as it does with the keys of an index. */
export const randomText = (bytes: number) =>
  randomBytes(bytes).toString("base64url").slice(0, bytes);
