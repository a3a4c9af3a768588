/** Channel versions: how the next one is made and how one is spelled on the wire. */
import type { ChannelVersions } from "@langchain/langgraph-checkpoint";

type ChannelVersion = ChannelVersions[string];

/**
 * The version after `current`: greater than it, of its type, and different on every call, so
 * that two branches of a fork do not write the same version of a channel (blobs are stored once
 * and never replaced: with equal versions the second branch would lose its value).
 *
 * - undefined or a number gives a number: the next integer plus a random fraction. It never
 *   reaches the integer after that, and an integer saver can go on from it.
 * - a string gives a string as Python's saver makes it: the next integer in 32 digits, a point,
 *   and 16 random digits. Strings made here and there sort by their integer.
 *
 * Throws an Error if `current` is a string that does not begin with digits, or a number that
 * has no greater integer in a double.
 */
export function nextVersion(current: number | undefined): number;
export function nextVersion(current: string): string;
export function nextVersion(current: ChannelVersion | undefined): ChannelVersion;
export function nextVersion(current: ChannelVersion | undefined): ChannelVersion {
  if (typeof current === "string") {
    const digits = /^\d+/.exec(current)?.[0];
    if (digits === undefined) {
      throw new Error(`channel version ${JSON.stringify(current)} does not begin with digits`);
    }
    return `${String(BigInt(digits) + 1n).padStart(32, "0")}.${randomDigits()}`;
  }
  const whole = Math.floor(current ?? 0) + 1;
  if (!Number.isSafeInteger(whole)) throw new Error(`channel version ${current} has no successor`);
  const next = whole + Math.random();
  // The sum of a fraction close to 1 rounds up, the likelier the greater the version is.
  return next < whole + 1 ? next : whole;
}

/**
 * `version` as Postgres prints the number or string in `channel_versions` (jsonb_each_text),
 * which is what a blob is joined by. jsonb's numbers have no exponent, JavaScript's can.
 *
 * Throws an Error naming `field` for a version that is neither a finite number nor a string.
 */
export function versionText(field: string, version: unknown): string {
  if (typeof version === "string") return version;
  if (typeof version !== "number" || !Number.isFinite(version)) {
    throw new Error(`${field} must be a string or a finite number, not ${String(version)}`);
  }
  const text = String(version);
  return text.includes("e") ? withoutExponent(text) : text;
}

function withoutExponent(text: string): string {
  const [, sign = "", whole = "", fraction = "", exponent = ""] =
    /^(-?)(\d+)(?:\.(\d+))?e([+-]\d+)$/.exec(text) ?? [];
  const digits = whole + fraction;
  const point = whole.length + Number(exponent);
  // JavaScript turns to exponents from 1e21 up and below 1e-6, where the point lies outside
  // the 17 digits it prints, so one of the two cases always holds.
  return point <= 0
    ? `${sign}0.${"0".repeat(-point)}${digits}`
    : `${sign}${digits}${"0".repeat(point - digits.length)}`;
}

function randomDigits(): string {
  return String(Math.floor(Math.random() * 1e16)).padStart(16, "0");
}
