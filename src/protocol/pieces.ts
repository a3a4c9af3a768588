/** A piece of so few bytes is copied: a Buffer of its own costs a hundred or more. */
const smallBytes = 1024;
/** What small pieces are copied to, at the most. */
const blockBytes = 16 * 1024;

const noBlock = Buffer.alloc(0);

/** Bytes that come in pieces. Takes about as much memory as they are, however small the pieces. */
export class Pieces {
  /** How many bytes there are. */
  size = 0;
  #whole: Uint8Array[] = [];
  #block = noBlock;
  #used = 0;

  add(piece: Uint8Array): void {
    this.size += piece.length;
    // The first stays where it lies, for most often it is the only one.
    if (piece.length >= smallBytes || this.size === piece.length) {
      this.#endBlock();
      this.#whole.push(piece);
      return;
    }
    if (this.#used + piece.length > this.#block.length) {
      this.#endBlock();
      this.#block = Buffer.allocUnsafe(piece.length + Math.min(blockBytes, 2 * this.size));
    }
    this.#block.set(piece, this.#used);
    this.#used += piece.length;
  }

  /** Takes all of them out, as one. */
  take(): Buffer {
    this.#endBlock();
    const [first] = this.#whole;
    const all =
      first?.length === this.size
        ? Buffer.from(first.buffer, first.byteOffset, first.length)
        : Buffer.concat(this.#whole, this.size);
    this.#whole = [];
    this.size = 0;
    return all;
  }

  #endBlock(): void {
    if (this.#used > 0) this.#whole.push(this.#block.subarray(0, this.#used));
    this.#block = noBlock;
    this.#used = 0;
  }
}
