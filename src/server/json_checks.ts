/**
 * What a text of JSON may hold. Postgres parses it, and refuses what is none; here is looked at what
 * it would take and nobody could use, in one pass through the text.
 */
import { Buffer } from "node:buffer";
import { invalidArgument } from "../errors.js";
import { mostJsonBytes } from "../store/undeliverable.js";
import { mostParts } from "./message_size.js";
import { checkCharacters, limits } from "./text_checks.js";

/** How many digits numbers with exponents may have, beyond as many as the text is long. */
const mostDigits = 1024 * 1024;
/** A number told by an exponent of two digits or more, or what looks like one in a string. */
const exponent = /[:[,\s]-?\d+(?:\.\d+)?[eE][+-]?\d\d/;
/** The shortest text of as many versions as there may be, each of which is `"a":1,` or longer. */
const shortestVersions = limits.elements * 6;

/** What is told of a text. */
interface Measured {
  /** Of numbers with exponents, as they are written out. */
  digits: number;
  /** Of objects, all together. */
  members: number;
  /** Of arrays, all together, and as many again as there are objects and arrays without any. */
  elements: number;
  commas: number;
}

const nothing: Measured = { digits: 0, members: 0, elements: 0, commas: 0 };

/**
 * Checks an object that is stored. jsonb keeps 1e131071 in a few bytes and writes all its digits: 10,000
 * of them, in 169 KB, were 1.3 GB for whoever listed them.
 */
export function checkStoredJson(field: string, text: string): Measured {
  checkObject(field, text);
  if (text.length < shortestVersions && !exponent.test(text)) return nothing;
  const measured = measure(text);
  const { digits, members, commas } = measured;
  if (digits > mostDigits + text.length) {
    const message = `numbers with exponents must not have more than ${mostDigits} digits in all when written out`;
    throw invalidArgument(field, "OUT_OF_RANGE", message, mostDigits);
  }
  // With a space after each comma and colon.
  const printed = Buffer.byteLength(text) + digits + members + commas;
  if (printed > mostJsonBytes) {
    const message = `must not be longer than ${mostJsonBytes} bytes when Postgres writes it out`;
    throw invalidArgument(field, "TOO_LONG", message, mostJsonBytes);
  }
  return measured;
}

/**
 * Checks how many channels a checkpoint names, of each of which the value is looked for whenever it is
 * read: of a million that was 7 s, and of three such checkpoints half a minute for whoever listed.
 */
export function checkVersions(field: string, text: string, members: number): void {
  if (members <= limits.elements) return;
  if (members > mostParts) {
    const message = `must not have more than ${mostParts} members of objects in all`;
    throw invalidArgument(field, "TOO_MANY", message, mostParts);
  }
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
  const message = `must have at most ${mostFilterElements} elements of arrays in all`;
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
  let containers = 0;
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
        break;
      case colon:
        members++;
        break;
      case openBracket:
      case openBrace:
        containers++;
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
  // Each has one comma less than it has members or elements.
  return { digits, members, elements: commas + containers - members, commas };
}
