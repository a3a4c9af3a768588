/**
 * Messages on a stream as the Connect protocol has them: a byte of flags, the length in four
 * bytes, the message. Used by both ends of a session.
 */

/** The flag of the last message of a stream, which is JSON and may hold an error. */
export const endOfStream = 0b10;

/** How many bytes stand before a message. */
export const envelopeBytes = 5;

/** What stands before a message of that many bytes. */
export function envelope(flags: number, length: number): Buffer {
  const header = Buffer.allocUnsafe(5);
  header[0] = flags;
  header.writeUInt32BE(length, 1);
  return header;
}

/** A value or message of so many bytes or more is sent from where it lies instead of being copied. */
export const largeBytes = 8 * 1024;

/** The same bytes in fewer chunks: small ones are joined, as each costs Node more than its bytes. */
export function joinSmall(chunks: readonly Uint8Array[]): Uint8Array[] {
  const joined: Uint8Array[] = [];
  let small: Uint8Array[] = [];
  const join = () => {
    if (small.length > 0) joined.push(Buffer.concat(small));
    small = [];
  };
  for (const chunk of chunks) {
    if (chunk.length < largeBytes) {
      small.push(chunk);
    } else {
      join();
      joined.push(chunk);
    }
  }
  join();
  return joined;
}

/**
 * Returns a function that takes the stream's chunks and calls `onMessage` for each complete
 * message, whose bytes are a view of the chunk. It throws what `tooLarge` returns at the
 * header of a message above `maxBytes`, and returns how many bytes it holds of a message that is
 * not complete.
 */
export function createEnvelopeReader(
  maxBytes: number,
  tooLarge: (length: number) => Error,
  onMessage: (flags: number, message: Uint8Array) => void,
): (chunk: Buffer) => number {
  let held: Buffer[] = [];
  let size = 0;
  let needed = 5;
  return (chunk) => {
    held.push(chunk);
    size += chunk.length;
    if (size < needed) return size;
    let rest = held.length === 1 ? chunk : Buffer.concat(held, size);
    needed = 5;
    while (rest.length >= 5) {
      const length = rest.readUInt32BE(1);
      if (length > maxBytes) throw tooLarge(length);
      if (rest.length < 5 + length) {
        needed = 5 + length;
        break;
      }
      onMessage(rest[0] as number, rest.subarray(5, 5 + length));
      rest = rest.subarray(5 + length);
    }
    held = rest.length > 0 ? [rest] : [];
    size = rest.length;
    return size;
  };
}
