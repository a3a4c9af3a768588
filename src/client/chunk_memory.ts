import type { Buffer } from "node:buffer";
import { type Chunked, type SealingKey, seal, sealInChunks } from "./sealed_bytes.js";

/** From how many bytes on a value is worth it: what is below is always sent whole. */
const leastBytes = 16 * 1024;
/** A value may take no more of the room than this part. */
const largestPart = 1 / 8;

/** Remembers the values encrypted last, so that one that grew keeps the bytes it had. */
export class ChunkMemory {
  // The first is the one that was encrypted the longest ago.
  readonly #values = new Map<string, Chunked>();
  readonly #maxBytes: number;
  #bytes = 0;

  /** Zero remembers nothing, and encrypts all as a whole. */
  constructor(maxBytes: number) {
    this.#maxBytes = maxBytes;
  }

  /** The content, encrypted; in chunks where it may be extended later, which `name` names then. */
  seal(
    key: SealingKey,
    place: Uint8Array,
    series: Buffer,
    content: Buffer,
    name: string | undefined,
  ): Buffer {
    const { length } = content;
    if (name === undefined || length < leastBytes || length > this.#maxBytes * largestPart) {
      return seal(key, place, content);
    }
    const chunked = sealInChunks(key, place, series, content, this.#values.get(name));
    this.#forget(name);
    this.#values.set(name, chunked);
    this.#bytes += length;
    for (const oldest of this.#values.keys()) {
      if (this.#bytes <= this.#maxBytes) break;
      this.#forget(oldest);
    }
    return chunked.sealed;
  }

  #forget(name: string): void {
    this.#bytes -= this.#values.get(name)?.content.length ?? 0;
    this.#values.delete(name);
  }
}
