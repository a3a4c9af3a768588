/** Which thread a checkpoint's values are those of, where threads are copied. */
import { EncryptionError } from "./encryption_error.js";
import { originOf, type ThreadOrigin } from "./encryption_keys.js";
import type { KnownCheckpoint, Place } from "./known_checkpoints.js";

/** Decides whether a thread stored as `from` may be read as `to`. */
export type AcceptCopies = boolean | ((from: string, to: string) => boolean);

/**
 * A thread's values belong to the name under which it was begun, and so do those that are added to a
 * copy of it: a checkpoint names values that its ancestors stored. Where copies are not accepted that
 * name is always the thread's, and nothing has to be known.
 */
export class ThreadOrigins {
  readonly #accept: AcceptCopies;
  readonly #find: (place: Place) => Promise<KnownCheckpoint | undefined>;

  /** `find` tells of a checkpoint that is stored, or about to be; undefined without one. */
  constructor(accept: AcceptCopies, find: (place: Place) => Promise<KnownCheckpoint | undefined>) {
    this.#accept = accept;
    this.#find = find;
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

  /** That of a checkpoint that follows this one, or that begins its namespace where the id is empty. */
  async after(parent: Place): Promise<ThreadOrigin> {
    if (this.#accept === false || parent.checkpointId === "") return originOf(parent.threadId);
    return (await this.#find(parent))?.origin ?? originOf(parent.threadId);
  }

  /** That of a checkpoint that is stored, or is about to be. */
  async at(place: Place): Promise<ThreadOrigin> {
    if (this.#accept === false) return originOf(place.threadId);
    // LangGraph stores a task's writes before the task's checkpoint, whose parent is the latest then.
    const known = (await this.#find(place)) ?? (await this.#find({ ...place, checkpointId: "" }));
    return known?.origin ?? originOf(place.threadId);
  }
}
