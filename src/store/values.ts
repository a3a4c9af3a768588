import { Buffer, isUtf8 } from "node:buffer";

/** Several byte strings as two parameters and where each lies in them. */
export interface PackedBytes {
  /** Those that are text, one after the other. */
  texts: string;
  /** The others, one after the other. */
  bytes: Uint8Array;
  /**
   * Where each begins, counted from 1 as SQL's substring does and in bytes: in `texts`, or, as
   * a negative number, in `bytes`. Null for an absent one.
   */
  starts: (number | null)[];
  /** How many bytes each has; null for an absent one. */
  lengths: (number | null)[];
}

/**
 * Joins byte strings for the parameters of one statement. An array of bytea would be escaped
 * twice by postgres.js, and a parameter per blob would make a different statement for every
 * count. Bytes reach Postgres as hexadecimal text, two for one; most values are JSON, which
 * can travel as it is.
 */
export function packBytes(parts: readonly (Uint8Array | undefined)[]): PackedBytes {
  const starts: (number | null)[] = [];
  const lengths: (number | null)[] = [];
  const texts: Uint8Array[] = [];
  const others: Uint8Array[] = [];
  let textSize = 0;
  let otherSize = 0;
  for (const part of parts) {
    if (!part) {
      starts.push(null);
    } else if (isText(part)) {
      starts.push(textSize + 1);
      texts.push(part);
      textSize += part.length;
    } else {
      starts.push(-otherSize - 1);
      others.push(part);
      otherSize += part.length;
    }
    lengths.push(part ? part.length : null);
  }
  return {
    texts: Buffer.concat(texts, textSize).toString("utf8"),
    bytes: others.length === 1 ? (others[0] as Uint8Array) : Buffer.concat(others, otherSize),
    starts,
    lengths,
  };
}

/**
 * The SQL for one packed value, given the names of its start and length, where `unpack` is
 * joined. Null where they are null.
 */
export const unpacked = `case when start > 0 then substring(texts from start for length)
    else substring(bytes from -start for length) end`;

/** A relation of one row that holds both parameters as bytes, to be cross joined. */
export function unpack(texts: string, bytes: string): string {
  // offset 0 keeps the planner from converting all texts again for every row.
  return `(select convert_to(${texts}::text, 'UTF8') as texts, ${bytes}::bytea as bytes offset 0) as packed`;
}

/** A statement that has a parameter for each value has at most so many values. */
export const mostSingleValues = 8;

/**
 * Makes parameters of values, for a statement that has one for each: all as text if all are text,
 * otherwise all as bytes. An absent value is null.
 */
export function toSingleValues(values: readonly (Uint8Array | undefined)[]): {
  areTexts: boolean;
  values: (string | Uint8Array | null)[];
} {
  const areTexts = values.every((value) => value === undefined || isText(value));
  return {
    areTexts,
    values: values.map((value) => {
      if (value === undefined) return null;
      return areTexts ? asBuffer(value).toString("utf8") : value;
    }),
  };
}

/** Whether Postgres takes it as text. */
function isText(bytes: Uint8Array): boolean {
  // A Buffer's includes is memchr, a Uint8Array's a loop.
  return isUtf8(bytes) && !asBuffer(bytes).includes(0);
}

function asBuffer({ buffer, byteOffset, length }: Uint8Array): Buffer {
  return Buffer.from(buffer, byteOffset, length);
}
