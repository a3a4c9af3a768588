/** The one reader of command lines: flags, then the environment, then defaults. */
import { parseArgs } from "node:util";
import { didYouMean } from "../protocol/nearest.js";
import { type Kind, Refusal } from "./kinds.js";

/** A wrong command line. The message is for the person who typed it. */
export class UsageError extends Error {
  override readonly name = "UsageError";
}

/** A flag and what else gives its value. */
export interface Flag<Value> {
  /** The flag without its dashes. */
  readonly flag: string;
  /** The environment variable that gives the value where no flag does. */
  readonly env: string | undefined;
  readonly kind: Kind<Value>;
  /** The value as text where neither is given; undefined where `unset` stands for it. */
  readonly fallback: string | undefined;
  /** The value where nothing is given and there is no fallback. */
  readonly unset: Value | undefined;
  /** What it is for, a phrase without a full stop. */
  readonly help: string;
}

/** Flags by the name that their value has in the code. */
export type Flags = Readonly<Record<string, Flag<unknown>>>;

/** The values that flags give, by the same names. */
export type Values<F extends Flags> = {
  [Name in keyof F]: F[Name] extends Flag<infer Value> ? Value : never;
};

/** Defines a flag, with the text it has by default or with what its absence means. */
export function define<T, Unset = never>(
  given: { flag: string; env?: string; kind: Kind<T>; help: string } & (
    | { fallback: string }
    | { unset: Unset }
  ),
): Flag<T | Unset> {
  return { env: undefined, fallback: undefined, unset: undefined, ...given };
}

/** The words that a command takes beside its flags. */
export interface Words {
  least: number;
  most: number;
  /** A line that shows them: "Usage: checkpointd …". */
  usage: string;
}

/**
 * Reads a command line.
 *
 * @param words the words the command takes beside its flags; by default none
 * @throws UsageError for an unknown flag, a missing or wrong value, or a wrong number of words
 */
export function readFlags<F extends Flags>(
  flags: F,
  args: readonly string[],
  env: Readonly<Record<string, string | undefined>>,
  words?: Words,
): { values: Values<F>; words: string[] } {
  const byFlag = new Map(Object.entries(flags).map(([name, { flag }]) => [flag, name]));
  const read = (name: string, text: string, source: string, earlier?: unknown) => {
    try {
      return (flags[name] as Flag<unknown>).kind.parse(text, earlier);
    } catch (error) {
      if (error instanceof Refusal) throw new UsageError(`${source} ${error.message}`);
      throw error;
    }
  };
  const { tokens } = parseArgs({
    args: [...args],
    options: Object.fromEntries(
      Object.values(flags).map(({ flag, kind }) => [
        flag,
        { type: kind.alone === undefined ? "string" : "boolean" },
      ]),
    ),
    allowPositionals: true,
    strict: false,
    tokens: true,
  });
  const values = new Map<string, unknown>();
  const given: string[] = [];
  for (const token of tokens) {
    if (token.kind === "option-terminator") continue;
    if (token.kind === "positional") {
      given.push(token.value);
      if (given.length > (words?.most ?? 0)) {
        throw new UsageError(join(`Unexpected argument "${token.value}".`, words?.usage));
      }
      continue;
    }
    const { rawName, value } = token;
    const negates = token.name.startsWith("no-") && !byFlag.has(token.name);
    const name = byFlag.get(negates ? token.name.slice(3) : token.name);
    const kind = name === undefined ? undefined : flags[name]?.kind;
    if (name === undefined || !kind || (negates && kind.negated === undefined)) {
      throw new UsageError(unknownFlag(rawName, flags));
    }
    if (negates && value !== undefined) throw new UsageError(`${rawName} takes no value.`);
    const text = negates ? kind.negated : (value ?? kind.alone);
    // What follows is rather the next flag than the value; "--flag=--value" is not mistaken.
    if (text === undefined || (token.inlineValue === false && text.startsWith("--"))) {
      throw new UsageError(`${rawName} needs a value: ${kind.allowed}.`);
    }
    values.set(name, read(name, text, rawName, values.get(name)));
  }
  if (given.length < (words?.least ?? 0)) throw new UsageError(words?.usage);
  for (const [name, flag] of Object.entries(flags)) {
    if (values.has(name)) continue;
    const text = flag.env === undefined ? undefined : env[flag.env];
    if (text) values.set(name, read(name, text, flag.env as string));
    else if (flag.fallback === undefined) values.set(name, flag.unset);
    else values.set(name, read(name, flag.fallback, "the default"));
  }
  return { values: Object.fromEntries(values) as Values<F>, words: given };
}

/** @throws UsageError that says what was meant, for a command that is not known. */
export function unknownCommand(typed: string, known: readonly string[], parent = ""): never {
  const otherwise = ` Commands are ${known.join(", ")}.`;
  if (typed.startsWith("-")) {
    throw new UsageError(`The command comes before its flags, such as ${typed}.${otherwise}`);
  }
  const hint = didYouMean(typed, known, { prefix: parent, otherwise });
  throw new UsageError(`Unknown command "${parent}${typed}".${hint}`);
}

function unknownFlag(flag: string, flags: Flags): string {
  const known = Object.values(flags).map((each) => each.flag);
  const negated = Object.values(flags).flatMap((each) =>
    each.kind.negated === undefined ? [] : [`no-${each.flag}`],
  );
  const hint = didYouMean(flag.replace(/^-+/, ""), [...known, ...negated], {
    prefix: "--",
    otherwise: ` Allowed are ${known.map((name) => `--${name}`).join(", ")}.`,
  });
  return `Unknown flag ${flag}.${hint}`;
}

const join = (sentence: string, next: string | undefined) =>
  next === undefined ? sentence : `${sentence} ${next}`;
