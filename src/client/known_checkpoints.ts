import type { ThreadOrigin } from "./encryption_keys.js";

/** Names a checkpoint, or the latest of its namespace where the id is empty. */
export interface Place {
  threadId: string;
  checkpointNs: string;
  checkpointId: string;
}

/** What there is to know of a checkpoint when another one is stored after it. */
export interface KnownCheckpoint {
  origin: ThreadOrigin;
  /** The channels whose values are stored apart, and their versions. */
  valued: ReadonlyMap<string, string>;
  /** Those whose values are in its JSON alone, as Python has them. */
  inlined: readonly string[];
}

/** So many checkpoints and channels of theirs are remembered. */
const most = 100_000;

/** Remembers the checkpoints that were read or stored last. */
export class KnownCheckpoints {
  // The first is the one that was met the longest ago.
  readonly #known = new Map<string, KnownCheckpoint>();
  #size = 0;

  get(place: Place): KnownCheckpoint | undefined {
    return this.#known.get(nameOf(place));
  }

  set(place: Place, known: KnownCheckpoint): void {
    const name = nameOf(place);
    this.#forget(name);
    this.#known.set(name, known);
    this.#size += sizeOf(known);
    for (const oldest of this.#known.keys()) {
      if (this.#size <= most) break;
      this.#forget(oldest);
    }
  }

  #forget(name: string): void {
    const known = this.#known.get(name);
    if (known) this.#size -= sizeOf(known);
    this.#known.delete(name);
  }
}

const sizeOf = ({ valued, inlined }: KnownCheckpoint) => 10 + valued.size + inlined.length;

const nameOf = ({ threadId, checkpointNs, checkpointId }: Place): string =>
  JSON.stringify([threadId, checkpointNs, checkpointId]);
