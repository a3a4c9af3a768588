/** What a tenant may store. */
import { CheckpointdError } from "../errors.js";
import type { Log } from "../log.js";
import type { Db } from "../store/db.js";
import { storedBytes } from "../store/stored_bytes.js";
import { describeCause } from "./call_log.js";

/** How long a count holds; what is written meanwhile is added to it. */
const countMs = 60_000;

/**
 * Refuses what would be stored beyond a limit. What is stored is counted from time to time, with
 * nothing that waits for it, so a tenant gets beyond its limit by what it writes until the first count
 * after the server's start. What it deletes counts at the next.
 */
export class Quota {
  limit = Number.POSITIVE_INFINITY;
  #stored = 0;
  #countedAt = Number.NEGATIVE_INFINITY;
  #counting = false;
  /** What was written since the count began that is under way, which may not have it. */
  #meanwhile = 0;

  constructor(
    readonly db: Db,
    readonly log: Log,
  ) {}

  /** What was stored when it was last counted, and was written since; undefined where it was not counted. */
  get stored(): number | undefined {
    return this.#countedAt === Number.NEGATIVE_INFINITY ? undefined : this.#stored;
  }

  get isLimited(): boolean {
    return this.limit !== Number.POSITIVE_INFINITY;
  }

  /**
   * Stores so many bytes, and what `more` finds in the answer that was not known before. Throws
   * QUOTA_REACHED, having stored nothing, where there is no room for them.
   */
  async store<Answer>(
    bytes: number,
    run: () => Promise<Answer>,
    more: (answer: Answer) => number,
  ): Promise<Answer> {
    this.#take(bytes);
    const countedAt = this.#countedAt;
    try {
      const answer = await run();
      this.#add(more(answer));
      return answer;
    } catch (error) {
      // Else what is refused would take the room of others. A count that came between does not have it.
      if (countedAt === this.#countedAt) this.#add(-bytes);
      throw error;
    }
  }

  #take(bytes: number): void {
    if (performance.now() - this.#countedAt > countMs) void this.#count();
    if (this.#stored + bytes > this.limit) {
      throw new CheckpointdError(
        "resource_exhausted",
        `the tenant stores as much as it may, ${this.limit} bytes: delete or prune threads, or have its limit raised`,
        { reason: "QUOTA_REACHED", limit: this.limit },
      );
    }
    this.#add(bytes);
  }

  #add(bytes: number): void {
    this.#stored += bytes;
    this.#meanwhile += bytes;
  }

  async #count(): Promise<void> {
    if (this.#counting) return;
    this.#counting = true;
    this.#meanwhile = 0;
    try {
      this.#stored = (await storedBytes(this.db)) + this.#meanwhile;
    } catch (error) {
      this.log.warn({ error: describeCause(error) }, "what a tenant stores could not be counted");
    } finally {
      this.#countedAt = performance.now();
      this.#counting = false;
    }
  }
}
