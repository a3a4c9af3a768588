/**
 * Messages on a stream as the Connect protocol has them: a byte of flags, the length in four
 * bytes, the message. Used by both ends of a session.
 */
import { Pieces } from "./pieces.js";

/** The flag of the last message of a stream, which is JSON and may hold an error. */
export const endOfStream = 0b10;

/** How many bytes stand before a message. */
export const envelopeBytes = 5;

/** What stands before a message of that many bytes. */
export function envelope(flags: number, length: number): Buffer {
  const header = Buffer.allocUnsafe(envelopeBytes);
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
 * header of a message above `maxBytes`, and returns how many bytes it holds of what it has not
 * handed on. `onMessage` may return false to be given no more for now; the next chunk, an empty one
 * too, goes on.
 */
export function createEnvelopeReader(
  maxBytes: number,
  tooLarge: (length: number) => Error,
  onMessage: (flags: number, message: Uint8Array) => unknown,
): (chunk: Buffer) => number {
  const held = new Pieces();
  let needed = envelopeBytes;
  return (chunk) => {
    let rest = chunk;
    if (held.size > 0) {
      if (chunk.length > 0) held.add(chunk);
      if (held.size < needed) return held.size;
      rest = held.take();
    }
    needed = envelopeBytes;
    while (rest.length >= envelopeBytes) {
      const length = rest.readUInt32BE(1);
      if (length > maxBytes) throw tooLarge(length);
      if (rest.length < envelopeBytes + length) {
        needed = envelopeBytes + length;
        break;
      }
      const message = rest.subarray(envelopeBytes, envelopeBytes + length);
      const flags = rest[0] as number;
      rest = rest.subarray(envelopeBytes + length);
      if (onMessage(flags, message) === false) break;
    }
    if (rest.length > 0) held.add(rest);
    return held.size;
  };
}
