/**
 * What a text of JSON may hold. Postgres parses it, and refuses what is none; here is looked at what
 * it would take and nobody could use, in one pass through the text.
 */
import { Buffer } from "node:buffer";
import { invalidArgument } from "../errors.js";
import { mostJsonLevels } from "../store/undeliverable.js";
import { checkCharacters, limits } from "./text_checks.js";

/** Digits that the exponents of a text may stand for in all. */
const mostDigits = 1024 * 1024;
/** Elements and members of a text. Postgres takes 32 bytes for each while it reads them. */
const mostParts = 4 * 1024 * 1024;
/** A number told by an exponent of two digits or more, or what looks like one in a string. */
const exponent = /[:[,\s]-?\d+(?:\.\d+)?[eE][+-]?\d\d/;
/** A text so short, without such numbers, keeps to all that is looked for. */
const shortText = 2 * mostJsonLevels;

/** What is told of a text. */
interface Measured {
  /** Of numbers with exponents, as they are written out. */
  digits: number;
  /** Of objects, all together. */
  members: number;
  /** Of arrays, without the first of each. */
  elements: number;
  commas: number;
  /** How deep it goes. */
  levels: number;
  /** The bytes that Postgres prints of it, at the most. */
  printed: number;
}

/**
 * Checks an object that is stored. jsonb keeps 1e131071 in a few bytes and writes all its digits: 10,000
 * of them, in 169 KB, were 1.3 GB for whoever listed them. And it takes 16,000 levels, of which its own
 * operators take half.
 */
export function checkStoredJson(
  field: string,
  text: string,
): Pick<Measured, "members" | "printed"> {
  checkObject(field, text);
  if (text.length < shortText && !exponent.test(text)) {
    return { members: 0, printed: 4 * text.length };
  }
  const measured = measure(text);
  const { digits, members, commas, levels } = measured;
  if (levels > mostJsonLevels) {
    const message = `must not be nested more than ${mostJsonLevels} levels deep`;
    throw invalidArgument(field, "INVALID_JSON", message, mostJsonLevels);
  }
  if (members + commas > mostParts) {
    const message = `must not have more than ${mostParts} elements and keys in all`;
    throw invalidArgument(field, "TOO_MANY", message, mostParts);
  }
  if (digits > mostDigits) {
    const message = `numbers with exponents must not have more than ${mostDigits} digits in all when written out`;
    throw invalidArgument(field, "OUT_OF_RANGE", message, mostDigits);
  }
  return measured;
}

/**
 * Checks how many channels a checkpoint names, of each of which the value is looked for whenever it is
 * read: of a million that was 7 s, and of three such checkpoints half a minute for whoever listed.
 */
export function checkVersions(field: string, text: string, members: number): void {
  if (members <= limits.elements) return;
  const versions = Object.keys(versionsOf(text) ?? {}).length;
  if (versions <= limits.elements) return;
  const message = `must have at most ${limits.elements} channel_versions, has ${versions}`;
  throw invalidArgument(field, "TOO_MANY", message, limits.elements);
}

function versionsOf(text: string): object | undefined {
  try {
    return JSON.parse(text).channel_versions;
  } catch {
    // Postgres finds the same.
    return undefined;
  }
}

/**
 * Elements of arrays in a filter. Postgres compares each with all that an array of the metadata has, and
 * can not be stopped meanwhile: 20,000 and 200,000 took a processor for a minute, whoever had gone.
 */
const mostFilterElements = 32;

/** Checks an object that metadata is to contain. */
export function checkFilterJson(field: string, text: string): void {
  if (Buffer.byteLength(text) > limits.name) {
    throw invalidArgument(field, "TOO_LONG", `must be at most ${limits.name} bytes`, limits.name);
  }
  checkObject(field, text);
  if (measure(text).elements <= mostFilterElements) return;
  const message = `must have at most ${mostFilterElements} elements of arrays in all, not counting the first of each`;
  throw invalidArgument(field, "TOO_MANY", message, mostFilterElements);
}

/** Only what costs nothing to see. */
function checkObject(field: string, text: string): void {
  checkCharacters(field, text);
  if (!/^\s*\{/.test(text)) {
    throw invalidArgument(field, "NOT_A_JSON_OBJECT", "must be a JSON object");
  }
}

const quote = 0x22;
const backslash = 0x5c;
const comma = 0x2c;
const colon = 0x3a;
const letterE = 0x65;
const openBracket = 0x5b;
const openBrace = 0x7b;
const closeBracket = 0x5d;
const closeBrace = 0x7d;
const space = 0x20;
const zero = 0x30;

const isDigit = (character: number) => character >= zero && character < zero + 10;

/**
 * Not by regular expressions: one tried each escaped quote of a string without an end as the beginning of
 * another, and 120 KB stopped the process for 12 s.
 */
function measure(text: string): Measured {
  let digits = 0;
  let members = 0;
  let commas = 0;
  let objects = 0;
  let level = 0;
  let levels = 0;
  let spaces = 0;
  for (let at = 0; at < text.length; at++) {
    switch (text.charCodeAt(at)) {
      case quote:
        for (at++; at < text.length; at++) {
          const character = text.charCodeAt(at);
          if (character === backslash) at++;
          else if (character === quote) break;
        }
        break;
      case comma:
        commas++;
        // Postgres prints one; what it printed has it.
        if (text.charCodeAt(at + 1) !== space) spaces++;
        break;
      case colon:
        members++;
        if (text.charCodeAt(at + 1) !== space) spaces++;
        break;
      case openBrace:
      case openBracket:
        if (text.charCodeAt(at) === openBrace) objects++;
        if (++level > levels) levels = level;
        break;
      case closeBracket:
      case closeBrace:
        level--;
        break;
      // Of true and false too, where no number follows.
      case letterE:
      case letterE - 0x20: {
        let power = 0;
        if (text[at + 1] === "+" || text[at + 1] === "-") at++;
        for (; isDigit(text.charCodeAt(at + 1)); at++) {
          power = power * 10 + text.charCodeAt(at + 1) - zero;
        }
        digits += power;
      }
    }
  }
  // An object has a comma less than it has members.
  const elements = commas - (members - objects);
  const printed = Buffer.byteLength(text) + spaces + digits;
  return { digits, members, elements, commas, levels, printed };
}
