/**
 * How much there is in a message, told before it is decoded. An encoded message may be small and its
 * objects large: 64 KB that are inflated to two-byte fields took 35 s and 4.8 GB, and the process.
 */
import { isUtf8 } from "node:buffer";
import { type DescField, type DescMessage, ScalarType } from "@bufbuild/protobuf";
import { Code, ConnectError } from "@connectrpc/connect";
import { CheckpointdError, invalidArgument } from "../errors.js";

/**
 * Fields, list elements and JSON values of one message. The largest that is meant, a put of 100,000
 * channels, has 700,000.
 */
export const mostParts = 1_000_000;

/** Deeper than any message of ours, and shallow enough for a decoder that calls itself. */
const mostNested = 32;

/** What has to be known of a field: how it is encoded, and what is in its bytes. */
interface Field {
  /** Its type on the wire. A list of numbers may have them one by one, or in one field of type 2. */
  wire: number;
  content: Shape | "numbers" | "text" | "bytes" | undefined;
}
interface Shape {
  schema: DescMessage;
  fields: Map<number, Field>;
}
const shapes = new Map<DescMessage, Shape>();

function shapeOf(schema: DescMessage): Shape {
  const known = shapes.get(schema);
  if (known) return known;
  const shape: Shape = { schema, fields: new Map() };
  // Before its fields are looked at: one of them may be of the same type.
  shapes.set(schema, shape);
  for (const field of schema.fields) shape.fields.set(field.number, toField(field));
  return shape;
}

function toField(field: DescField): Field {
  if (field.message) return { wire: 2, content: shapeOf(field.message) };
  if (field.scalar === ScalarType.STRING) return { wire: 2, content: "text" };
  if (field.scalar === ScalarType.BYTES) return { wire: 2, content: "bytes" };
  return {
    wire: wireOf(field.scalar),
    content: field.fieldKind === "list" ? "numbers" : undefined,
  };
}

function wireOf(scalar: ScalarType | undefined): number {
  switch (scalar) {
    case ScalarType.FIXED64:
    case ScalarType.SFIXED64:
    case ScalarType.DOUBLE:
      return 1;
    case ScalarType.FIXED32:
    case ScalarType.SFIXED32:
    case ScalarType.FLOAT:
      return 5;
    default:
      return 0;
  }
}

/** Throws INVALID_ARGUMENT if it is no message, and TOO_MANY if there is too much in it. */
export function checkBinarySize(schema: DescMessage, bytes: Uint8Array): void {
  new Scan(bytes).message(shapeOf(schema), bytes.length, 0);
}

class Scan {
  #at = 0;
  #parts = 0;
  /** The fields that lead to where it is. */
  readonly #path: [DescMessage, number][] = [];

  constructor(readonly bytes: Uint8Array) {}

  message({ schema, fields }: Shape, end: number, depth: number): void {
    if (depth > mostNested) throw malformed("messages are nested too deeply");
    while (this.#at < end) {
      const tag = this.#number(end, 5);
      const number = Math.floor(tag / 8);
      const wire = tag % 8;
      if (number === 0) throw malformed("a field has the number 0");
      this.#path[depth] = [schema, number];
      this.#count(1);
      const field = fields.get(number);
      const content = field?.content;
      // The decoder reads a field as what it is, whatever it is said to be, and then all after it.
      if (field && wire !== field.wire && !(wire === 2 && content === "numbers")) {
        throw malformed("a field has another type");
      }
      switch (wire) {
        case 0:
          this.#number(end);
          break;
        case 1:
          this.#skip(8, end);
          break;
        case 5:
          this.#skip(4, end);
          break;
        case 2: {
          const length = this.#number(end, 5);
          const from = this.#at;
          this.#skip(length, end);
          if (content === "numbers") this.#numbers(from, field?.wire as number);
          else if (content === "text") this.#checkText(from);
          else if (typeof content === "object") {
            this.#at = from;
            this.message(content, from + length, depth + 1);
            this.#path.length = depth + 1;
          }
          break;
        }
        default:
          // Groups, which no field of ours is and a decoder skips one within the other.
          throw malformed("a field has a type that is not used");
      }
    }
  }

  #count(parts: number): void {
    this.#parts += parts;
    if (this.#parts > mostParts) throw tooMany(this.#list());
  }

  #checkText(from: number): void {
    if (!isUtf8(this.bytes.subarray(from, this.#at))) throw malformed("a text is not UTF-8");
  }

  /** The list that it is in, as it is written in a request. */
  #list(): string | undefined {
    for (const [schema, number] of this.#path) {
      const field = schema.fields.find((each) => each.number === number);
      if (field?.fieldKind === "list") return field.name;
    }
    return undefined;
  }

  #skip(length: number, end: number): void {
    this.#at += length;
    if (this.#at > end) throw malformed("it is cut off");
  }

  /** Many in one field. A decoder that comes to the end within one reads on behind it. */
  #numbers(from: number, wire: number): void {
    const end = this.#at;
    this.#at = from;
    while (this.#at < end) {
      if (wire === 0) this.#number(end);
      else this.#skip(wire === 1 ? 8 : 4, end);
      this.#count(1);
    }
  }

  /** A varint; one above 2^53 is not exact. A tag or a length is one of 32 bits. */
  #number(end: number, mostBytes = 10): number {
    let value = 0;
    let factor = 1;
    for (let i = 0; i < mostBytes; i++) {
      if (this.#at >= end) throw malformed("it is cut off");
      const byte = this.bytes[this.#at++] as number;
      value += (byte & 0x7f) * factor;
      factor *= 128;
      if (byte >= 0x80) continue;
      if (mostBytes === 5 && value >= 2 ** 32) break;
      return value;
    }
    throw malformed("a number is too long");
  }
}

const quote = 0x22;
const backslash = 0x5c;

/** Throws TOO_MANY if there is too much in a text of JSON. Whether it is one, its reader tells. */
export function checkJsonSize(bytes: Uint8Array): void {
  let parts = 0;
  for (let at = 0; at < bytes.length; at++) {
    switch (bytes[at]) {
      case quote:
        at = endOfString(bytes, at);
        break;
      case 0x2c: // ,
      case 0x5b: // [
      case 0x7b: // {
        if (++parts > mostParts) throw tooMany();
    }
  }
}

/** Where a string ends that begins there. */
function endOfString(bytes: Uint8Array, from: number): number {
  for (let at = from + 1; at < bytes.length; ) {
    for (const near = at + 64; at < near; at++) {
      if (bytes[at] === backslash) at++;
      else if (bytes[at] === quote) return at;
    }
    // A long value is passed over in few steps, since base64 has no backslash. It is too much for
    // short ones, or for escaped quotes, of which a text can have 30 million.
    const next = bytes.indexOf(quote, at);
    if (next < 0) break;
    if (!isEscaped(bytes, next)) return next;
    at = next + 1;
  }
  return bytes.length;
}

function isEscaped(bytes: Uint8Array, at: number): boolean {
  let before = at - 1;
  while (bytes[before] === backslash) before--;
  return (at - before) % 2 === 0;
}

function malformed(what: string): ConnectError {
  return new ConnectError(`the message cannot be read: ${what}`, Code.InvalidArgument);
}

function tooMany(field?: string): CheckpointdError {
  const limit = mostParts;
  const message = `a message must not have more than ${limit} fields, elements and values in all`;
  if (field !== undefined) return invalidArgument(field, "TOO_MANY", message, limit);
  return new CheckpointdError("invalid_argument", message, { reason: "TOO_MANY", limit });
}
