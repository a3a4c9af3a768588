/** What a value that somebody types may be: one place for all flags, variables and rules. */
import { didYouMean } from "../protocol/nearest.js";

/** What a value may be, and how it is read. */
export interface Kind<T> {
  /** What the value may be, as the end of a sentence: "must be …". */
  readonly allowed: string;
  /** The text that the flag stands for without a value; undefined: it needs one. */
  readonly alone?: string;
  /** The text that `--no-flag` stands for; undefined: there is no such flag. */
  readonly negated?: string;
  /**
   * Reads a value.
   *
   * @param earlier what the same flag gave before, for a flag that gathers
   * @throws Refusal where it is not allowed
   */
  parse(text: string, earlier?: T): T;
}

/** Why a value is refused: the sentence that begins with the name of what has the value. */
export class Refusal extends Error {
  override readonly name = "Refusal";
}

/**
 * Makes a kind.
 *
 * @param read returns undefined for a value that is not allowed
 * @param isSecret whether a refused value must not be repeated
 */
export function kind<T>(
  allowed: string,
  read: (text: string) => T | undefined,
  isSecret = false,
): Kind<T> {
  return {
    allowed,
    parse(text) {
      const value = read(text);
      if (value !== undefined) return value;
      throw new Refusal(`must be ${allowed}${isSecret ? "" : `, not "${text}"`}.`);
    },
  };
}

export const text = kind("text that is not empty", (value) => (value === "" ? undefined : value));

/** Text that may be empty. */
export const anyText = kind("text", (value) => value);

/** One of some words. */
export function oneOf<const T extends string>(words: readonly T[]): Kind<T> {
  const allowed = `one of ${words.join(", ")}`;
  return {
    allowed,
    parse(value) {
      const word = words.find((known) => known === value);
      if (word !== undefined) return word;
      throw new Refusal(`must be ${allowed}, not "${value}".${didYouMean(value, words)}`);
    },
  };
}

/** Some of some words, separated by commas. */
export function someOf<const T extends string>(words: readonly T[]): Kind<T[]> {
  const allowed = `some of ${words.join(", ")}, separated by commas`;
  const toWord = (value: string) => {
    const word = words.find((known) => known === value);
    if (word !== undefined) return word;
    throw new Refusal(`must be ${allowed}, not "${value}".${didYouMean(value, words)}`);
  };
  return { allowed, parse: (value) => value.split(",").map((part) => toWord(part.trim())) };
}

export const boolean: Kind<boolean> = {
  allowed: "true or false",
  alone: "true",
  negated: "false",
  parse(value) {
    if (value === "true" || value === "false") return value === "true";
    const hint = didYouMean(value, ["true", "false"]);
    throw new Refusal(`must be true or false, not "${value}".${hint}`);
  },
};

/** A flag that is there or not. */
export const present: Kind<boolean> = {
  allowed: "no value",
  alone: "",
  parse(value) {
    if (value === "") return true;
    throw new Refusal("takes no value.");
  },
};

/** A whole number. */
export function integer(min: number, max: number): Kind<number> {
  return kind(`a whole number from ${min} to ${max}`, (value) => {
    const number = /^\d+$/.test(value) ? Number(value) : Number.NaN;
    return number >= min && number <= max ? number : undefined;
  });
}

const times = { ms: 1, s: 1000, m: 60_000, h: 3_600_000, d: 86_400_000 };
const sizes = { B: 1, KiB: 1024, MiB: 1024 ** 2 };

/** A whole number with one of the units, as the number of the smallest. */
function amount(
  noun: string,
  units: Readonly<Record<string, number>>,
  min: string,
  max: string,
  examples: string,
): Kind<number> {
  const read = (value: string) => {
    const [, number, unit = ""] = /^(\d+)([A-Za-z]+)$/.exec(value) ?? [];
    return Number(number) * (Object.hasOwn(units, unit) ? (units[unit] as number) : Number.NaN);
  };
  const [least, most] = [read(min), read(max)];
  return kind(`${noun} from ${min} to ${max}, such as ${examples}`, (value) => {
    const number = read(value);
    return number >= least && number <= most ? number : undefined;
  });
}

/** How long something may take, in milliseconds. */
export const duration = amount("a duration", times, "1ms", "60m", "500ms, 30s or 2m");

export const durationOrOff = kind(`0, or ${duration.allowed}`, (value) =>
  value === "0" ? 0 : orUndefined(duration, value),
);

/** How old something is, in milliseconds. The server takes no longer one either. */
export const age = amount("an age", times, "0s", "36525d", "30m, 12h or 90d");

/** A size in bytes. A row of Postgres ends at 1 GiB, and what it prints of one to a dump at half of it. */
export const size = amount("a size", sizes, "1KiB", "255MiB", "512KiB or 64MiB");

/** A number of bytes that is not held in memory. */
export const bytes = amount(
  "a number of bytes",
  { ...sizes, GiB: 1024 ** 3, TiB: 1024 ** 4 },
  "1B",
  "1024TiB",
  "512KiB or 10GiB",
);

/** A point in time: a date, or an age from now on backwards. */
export const time = kind(
  "a time such as 2026-01-31T12:00:00Z or an age such as 12h",
  (value): Date | undefined => {
    const ms = orUndefined(age, value);
    if (ms !== undefined) return new Date(Date.now() - ms);
    // Date.parse takes more: "7", an age without its unit, would be a day of the year 2001.
    const date = /^\d{4}-\d\d-\d\d/.test(value) ? Date.parse(value) : Number.NaN;
    return Number.isNaN(date) ? undefined : new Date(date);
  },
);

/** A JSON object, parsed. */
export const jsonObject = kind('a JSON object such as {"tenant":"acme"}', (value) => {
  try {
    const object: unknown = JSON.parse(value);
    if (typeof object === "object" && object !== null && !Array.isArray(object)) {
      return object as Record<string, unknown>;
    }
  } catch {}
  return undefined;
});

function orUndefined<T>(of: Kind<T>, value: string): T | undefined {
  try {
    return of.parse(value);
  } catch {
    return undefined;
  }
}
