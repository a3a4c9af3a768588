/** Writes protobuf messages by hand, in their envelopes. */
import { Buffer } from "node:buffer";
import type { MessageInitShape } from "@bufbuild/protobuf";
import type { ChannelBlobSchema, ValueSchema } from "../../gen/checkpointd/v1/checkpoint_pb.js";
import { largeBytes } from "./envelope.js";

type Value = MessageInitShape<typeof ValueSchema>;
type Blob = MessageInitShape<typeof ChannelBlobSchema>;

/** More than a character of UTF-16 ever takes in UTF-8, and more than a tag and a length take. */
export const perCharacter = 3;
export const perField = 8;

/** Writes a message from its end to its beginning: the length of a part is known when it stands. */
export class Writer {
  /** Bytes written so far. */
  size = 0;
  readonly #buffer: Buffer;
  /** What is written and not yet in `chunks` lies between the two. */
  #at: number;
  #end: number;
  /** The last first. */
  readonly #chunks: Uint8Array[] = [];

  constructor(bound: number) {
    this.#buffer = Buffer.allocUnsafe(bound);
    this.#at = bound;
    this.#end = bound;
  }

  text(field: number, text = ""): void {
    if (text === "") return;
    const length = Buffer.byteLength(text);
    this.#at -= length;
    this.#buffer.write(text, this.#at, length);
    this.size += length;
    this.#lengthDelimited(field, length);
  }

  /** A text that is sent even where it is empty. */
  presentText(field: number, text: string): void {
    if (text === "") this.#lengthDelimited(field, 0);
    else this.text(field, text);
  }

  number(field: number, value: number): void {
    if (value === 0) return;
    this.#varint(value);
    this.#byte(field << 3);
  }

  value(field: number, { type, data }: Value): void {
    const end = this.size;
    if (data !== undefined && data.length > 0) {
      if (data.length < largeBytes) {
        this.#at -= data.length;
        this.#buffer.set(data, this.#at);
      } else {
        this.#cut();
        this.#chunks.push(data);
      }
      this.size += data.length;
      this.#lengthDelimited(2, data.length);
    }
    this.text(1, type);
    this.length(field, end);
  }

  /** The channels' values, which requests and answers have alike. */
  blobs(field: number, blobs: readonly Blob[]): void {
    for (let i = blobs.length - 1; i >= 0; i--) {
      const { channel, version, value } = blobs[i]!;
      const end = this.size;
      if (value) this.value(3, value);
      this.text(2, version);
      this.text(1, channel);
      this.length(field, end);
    }
  }

  /** Heads the part that was written since `size` was `end`. */
  length(field: number, end: number): void {
    this.#lengthDelimited(field, this.size - end);
  }

  /**
   * Makes what was written since `size` was `end` the operation with that number, and returns all in
   * its envelope.
   */
  finish(operation: number, id: number, timeoutMs: number, end = 0): Uint8Array[] {
    this.length(operation, end);
    this.number(2, timeoutMs);
    this.number(1, id);
    const { size } = this;
    this.#at -= 5;
    this.#buffer[this.#at] = 0;
    this.#buffer.writeUInt32BE(size, this.#at + 1);
    this.#cut();
    return this.#chunks.reverse();
  }

  #lengthDelimited(field: number, length: number): void {
    this.#varint(length);
    // From 16 on the number takes two bytes, which only fields beside the operation have.
    if (field > 15) this.#varint((field << 3) | 2);
    else this.#byte((field << 3) | 2);
  }

  #byte(byte: number): void {
    this.#at--;
    this.#buffer[this.#at] = byte;
    this.size++;
  }

  /** An int32 or uint32; a negative one takes ten bytes, as if it had 64 bits. */
  #varint(value: number): void {
    const isNegative = value < 0;
    let length = 1;
    for (let rest = value >>> 7; rest > 0; rest >>>= 7) length++;
    if (isNegative) length = 10;
    this.#at -= length;
    this.size += length;
    let rest = value >>> 0;
    for (let i = 0; i < length; i++) {
      const isLast = i === length - 1;
      // The sign fills bits 32 to 63.
      const bits =
        i < 4 ? rest & 0x7f : isNegative ? (i === 4 ? rest | 0x70 : isLast ? 1 : 0x7f) : rest;
      this.#buffer[this.#at + i] = isLast ? bits : bits | 0x80;
      rest >>>= 7;
    }
  }

  #cut(): void {
    if (this.#at < this.#end) this.#chunks.push(this.#buffer.subarray(this.#at, this.#end));
    this.#end = this.#at;
  }
}
