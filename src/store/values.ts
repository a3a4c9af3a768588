/** Several byte strings as one bytea parameter and where each lies in it. */
export interface PackedBytes {
  /** All bytes, one after the other. */
  packed: Uint8Array;
  /** Where each begins, counted from 1 as SQL's substring does; null for an absent one. */
  offsets: (number | null)[];
  /** How many bytes each has; null for an absent one, which substring turns into NULL. */
  lengths: (number | null)[];
}

/**
 * Joins byte strings for one parameter. An array of bytea would be escaped twice by
 * postgres.js, and a parameter per blob would make a different statement for every count.
 */
export function packBytes(parts: readonly (Uint8Array | undefined)[]): PackedBytes {
  const offsets: (number | null)[] = [];
  const lengths: (number | null)[] = [];
  const present: Uint8Array[] = [];
  let size = 0;
  for (const part of parts) {
    offsets.push(part ? size + 1 : null);
    lengths.push(part ? part.length : null);
    if (part) {
      present.push(part);
      size += part.length;
    }
  }
  const packed = present.length === 1 ? (present[0] as Uint8Array) : Buffer.concat(present, size);
  return { packed, offsets, lengths };
}
