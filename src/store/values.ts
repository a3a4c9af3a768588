import { Buffer } from "node:buffer";

/** Several byte strings as one parameter and where each lies in it. */
export interface PackedBytes {
  /** One after the other. */
  bytes: Uint8Array;
  /** Where each begins, counted from 1 as SQL's substring does; null for an absent one. */
  starts: (number | null)[];
  /** How many bytes each has; null for an absent one. */
  lengths: (number | null)[];
}

/**
 * Joins byte strings for one parameter of a statement. An array of bytea would be text, two digits a
 * byte, and a parameter per blob would make a different statement for every count.
 */
export function packBytes(parts: readonly (Uint8Array | undefined)[]): PackedBytes {
  const starts: (number | null)[] = [];
  const lengths: (number | null)[] = [];
  const present: Uint8Array[] = [];
  let size = 0;
  for (const part of parts) {
    starts.push(part ? size + 1 : null);
    lengths.push(part ? part.length : null);
    if (!part) continue;
    present.push(part);
    size += part.length;
  }
  const [only] = present;
  const bytes = only && present.length === 1 ? only : Buffer.concat(present, size);
  return { bytes, starts, lengths };
}

/**
 * The SQL for one packed value, given the names of its start and length, where `unpack` is
 * joined. Null where they are null.
 */
export const unpacked = "substring(bytes from start for length)";

/** A relation of one row that holds the parameter, to be cross joined. */
export function unpack(bytes: string): string {
  return `(select ${bytes}::bytea as bytes offset 0) as packed`;
}

/** A statement that has a parameter for each value has at most so many values. */
export const mostSingleValues = 8;
