/** Which thread a checkpoint's values are those of, where threads are copied. */
import { EncryptionError } from "./encryption_error.js";
import { originOf, remember, type ThreadOrigin } from "./encryption_keys.js";

/** Names a checkpoint, or the latest of its namespace where the id is empty. */
export interface Place {
  threadId: string;
  checkpointNs: string;
  checkpointId: string;
}

/** Decides whether a thread stored as `from` may be read as `to`. */
export type AcceptCopies = boolean | ((from: string, to: string) => boolean);

/** As many checkpoints are remembered. */
const mostPlaces = 10_000;

/**
 * A thread's values belong to the name under which it was begun, and so do those that are added to a
 * copy of it: a checkpoint names values that its ancestors stored. Where copies are not accepted that
 * name is always the thread's, and nothing has to be known.
 */
export class ThreadOrigins {
  readonly #accept: AcceptCopies;
  readonly #read: (place: Place) => Promise<ThreadOrigin | undefined>;
  readonly #known = new Map<string, ThreadOrigin>();

  /** `read` tells the origin of a stored checkpoint, after it remembered it; undefined without one. */
  constructor(accept: AcceptCopies, read: (place: Place) => Promise<ThreadOrigin | undefined>) {
    this.#accept = accept;
    this.#read = read;
  }

  /** Throws an EncryptionError unless what was stored as the origin's thread may be read as this one. */
  check({ name }: ThreadOrigin, threadId: string): void {
    if (name === threadId) return;
    const accept = this.#accept;
    if (typeof accept === "function" ? accept(name, threadId) === true : accept) return;
    throw new EncryptionError(
      "COPIED",
      `thread ${JSON.stringify(threadId)} was stored as ${JSON.stringify(name)}: it is a copy, was ` +
        "imported under another name, or somebody renamed it in the database; " +
        "encryption.acceptCopies says what may be read",
    );
  }

  /** To be told of each checkpoint that is read or stored. */
  remember(place: Place, origin: ThreadOrigin): void {
    if (this.#accept !== false) remember(this.#known, nameOf(place), origin, mostPlaces);
  }

  /** That of a checkpoint that follows this one, or that begins its namespace where the id is empty. */
  async after(parent: Place): Promise<ThreadOrigin> {
    if (this.#accept === false || parent.checkpointId === "") return originOf(parent.threadId);
    return (
      this.#known.get(nameOf(parent)) ?? (await this.#read(parent)) ?? originOf(parent.threadId)
    );
  }

  /** That of a checkpoint that is stored, or is about to be. */
  async at(place: Place): Promise<ThreadOrigin> {
    if (this.#accept === false) return originOf(place.threadId);
    const known = this.#known.get(nameOf(place)) ?? (await this.#read(place));
    // LangGraph stores a task's writes before the task's checkpoint, whose parent is the latest then.
    const latest = known ?? (await this.#read({ ...place, checkpointId: "" }));
    return latest ?? originOf(place.threadId);
  }
}

const nameOf = ({ threadId, checkpointNs, checkpointId }: Place): string =>
  JSON.stringify([threadId, checkpointNs, checkpointId]);
