/**
 * Encrypted values, byte by byte, as docs/security.md has them: AES-256-GCM, whole or in chunks. What a
 * value is and where it belongs is its additional data, so that it can be read nowhere else.
 */
import { Buffer } from "node:buffer";
import { createCipheriv, createDecipheriv, type KeyObject, randomBytes } from "node:crypto";
import { isInChunks, isWhole, type SealedHeader, sealedVersion } from "../protocol/sealed.js";

/** The key of the thread, and its id. */
export interface SealingKey {
  keyId: string;
  key: KeyObject;
}

const algorithm = "aes-256-gcm";
const options = { authTagLength: 16 };
const nonceBytes = 12;
const tagBytes = 16;
/** Lengths say no more than this much: true and false, or null and a short text, look alike. */
const paddedTo = 32;

/**
 * The first chunk is small, as a list in msgpack has its length there, which changes when it grows.
 * The others: smaller ones cost more calls, larger ones are sent again more often.
 */
const headBytes = 64;
const chunkBytes = 4 * 1024;
/** What stands before a chunk and behind it. */
const chunkOverhead = nonceBytes + tagBytes;

/** Texts and bytes one after the other, each behind its length: no two lists give the same bytes. */
export function fields(...parts: readonly (string | Uint8Array)[]): Buffer {
  const pieces: Uint8Array[] = [];
  for (const part of parts) {
    const bytes = typeof part === "string" ? Buffer.from(part) : part;
    const length = Buffer.allocUnsafe(4);
    length.writeUInt32BE(bytes.length);
    pieces.push(length, bytes);
  }
  return Buffer.concat(pieces);
}

/** So many of them, from {@link fields}. Throws if there are fewer. */
export function readFields(bytes: Buffer, count: number): Buffer[] {
  let at = 0;
  return Array.from({ length: count }, () => {
    const start = at + 4;
    at = start + bytes.readUInt32BE(at);
    if (at > bytes.length) throw new RangeError("fields are missing");
    return bytes.subarray(start, at);
  });
}

/** A value and its serializer's type, as what is encrypted of them. */
export function toContent(type: string, data: Uint8Array): Buffer {
  const name = Buffer.from(type);
  const length = 2 + name.length + data.length + 1;
  const content = Buffer.alloc(Math.ceil(length / paddedTo) * paddedTo);
  content.writeUInt16BE(name.length);
  content.set(name, 2);
  content.set(data, 2 + name.length);
  content[length - 1] = 0x80;
  return content;
}

/** What {@link toContent} was given. */
export function fromContent(content: Buffer): { type: string; data: Buffer } {
  const start = 2 + content.readUInt16BE(0);
  const end = content.lastIndexOf(0x80);
  return { type: content.toString("utf8", 2, start), data: content.subarray(start, end) };
}

function toHeader(arrangement: number, keyId: string): Buffer {
  const id = Buffer.from(keyId);
  const header = Buffer.allocUnsafe(4 + id.length);
  header[0] = sealedVersion;
  header[1] = arrangement;
  header.writeUInt16BE(id.length, 2);
  header.set(id, 4);
  return header;
}

function encrypt(key: KeyObject, associated: Uint8Array, text: Uint8Array): Buffer[] {
  const nonce = randomBytes(nonceBytes);
  const cipher = createCipheriv(algorithm, key, nonce, options);
  cipher.setAAD(associated);
  const encrypted = cipher.update(text);
  cipher.final();
  return [nonce, encrypted, cipher.getAuthTag()];
}

/** Throws if it is not what was encrypted with this key and this associated data. */
function decrypt(key: KeyObject, associated: Uint8Array, sealed: Buffer): Buffer {
  if (sealed.length < chunkOverhead) throw new RangeError("too short");
  const decipher = createDecipheriv(algorithm, key, sealed.subarray(0, nonceBytes), options);
  decipher.setAAD(associated);
  decipher.setAuthTag(sealed.subarray(-tagBytes));
  const text = decipher.update(sealed.subarray(nonceBytes, -tagBytes));
  decipher.final();
  return text;
}

/** Encrypts a content as a whole. `place` says what it is and where it belongs. */
export function seal({ keyId, key }: SealingKey, place: Uint8Array, content: Uint8Array): Buffer {
  const header = toHeader(isWhole, keyId);
  return Buffer.concat([header, ...encrypt(key, fields(header, place), content)]);
}

/** A content that was encrypted in chunks, to be extended. */
export interface Chunked {
  keyId: string;
  key: KeyObject;
  series: Buffer;
  content: Buffer;
  sealed: Buffer;
}

/** How much of a value's end may change where another is added to a list: brackets, padding. */
const endBytes = 64;

/** Whether nothing of the content before is gone or altered but a few bytes at either end. */
const isGrown = (before: Buffer, content: Buffer): boolean =>
  content.length >= before.length &&
  before.compare(
    content,
    headBytes,
    before.length - endBytes,
    headBytes,
    before.length - endBytes,
  ) === 0;

/**
 * Encrypts a content in chunks, each with a nonce of its own, and a tag over all of them that belongs to
 * `place`. Where `before` is of the same key and series, and the content is that one grown, its chunks
 * are taken as they are, so that these bytes need not be sent again. Otherwise none is taken:
 * which parts of a value were altered is nobody's business.
 */
export function sealInChunks(
  { keyId, key }: SealingKey,
  place: Uint8Array,
  series: Buffer,
  content: Buffer,
  before?: Chunked,
): Chunked {
  const header = toHeader(isInChunks, keyId);
  const start = header.length + chunkOverhead;
  const isReused =
    before?.keyId === keyId &&
    before.key.equals(key) &&
    before.series.equals(series) &&
    isGrown(before.content, content);
  const reusedUpTo = isReused ? before.content.length - endBytes : 0;
  const chunks: Uint8Array[] = [];
  const tags: Uint8Array[] = [];
  for (const [index, from, to] of chunksOf(content.length)) {
    if (index > 0 && to <= reusedUpTo) {
      const at = start + from + index * chunkOverhead;
      const chunk = (before as Chunked).sealed.subarray(at, at + to - from + chunkOverhead);
      chunks.push(chunk);
      tags.push(chunk.subarray(0, nonceBytes), chunk.subarray(-tagBytes));
    } else {
      const chunk = encrypt(key, chunkPlace(series, index), content.subarray(from, to));
      chunks.push(...chunk);
      tags.push(chunk[0] as Buffer, chunk[2] as Buffer);
    }
  }
  const [nonce, , tag] = encrypt(key, listPlace(header, place, tags), Buffer.alloc(0));
  const sealed = Buffer.concat([header, nonce as Buffer, tag as Buffer, ...chunks]);
  return { keyId, key, series, content, sealed };
}

/** Decrypts a content. Throws if any of it is not what was encrypted for this place. */
export function open(
  key: KeyObject,
  place: Uint8Array,
  series: Buffer | undefined,
  sealed: Buffer,
  { arrangement, end }: SealedHeader,
): Buffer {
  const header = sealed.subarray(0, end);
  if (arrangement === isWhole) return decrypt(key, fields(header, place), sealed.subarray(end));
  if (series === undefined) throw new RangeError("only channel values are in chunks");
  const start = end + chunkOverhead;
  const chunks: Buffer[] = [];
  for (let at = start; at < sealed.length; ) {
    const length = (chunks.length === 0 ? headBytes : chunkBytes) + chunkOverhead;
    chunks.push(sealed.subarray(at, at + length));
    at += length;
  }
  // All of them are known to be those of this value before one is decrypted.
  const tags = chunks.flatMap((it) => [it.subarray(0, nonceBytes), it.subarray(-tagBytes)]);
  decrypt(key, listPlace(header, place, tags), sealed.subarray(end, start));
  return Buffer.concat(chunks.map((chunk, i) => decrypt(key, chunkPlace(series, i), chunk)));
}

function* chunksOf(length: number): Generator<[index: number, from: number, to: number]> {
  for (let index = 0, from = 0; from < length; index++) {
    const to = Math.min(length, from + (index === 0 ? headBytes : chunkBytes));
    yield [index, from, to];
    from = to;
  }
}

function chunkPlace(series: Buffer, index: number): Buffer {
  const number = Buffer.allocUnsafe(4);
  number.writeUInt32BE(index);
  return fields("chunk", series, number);
}

/** The nonces and tags say which chunks there are, how many and in which order. */
const listPlace = (header: Buffer, place: Uint8Array, tags: readonly Uint8Array[]) =>
  fields(header, place, Buffer.concat(tags));
