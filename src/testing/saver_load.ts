import { setTimeout as sleep } from "node:timers/promises";
import { uuid6 } from "@langchain/langgraph-checkpoint";
import { expect } from "vitest";
import type { ConnectSaver } from "../index.js";

/** Of a checkpoint whose put and writes were acknowledged: its id, and what it and its write hold. */
export interface Acknowledged {
  id: string;
  text: string;
}

/** Savers that put, write and read, and take leases, each on threads of its own. */
export class SaverLoad {
  /** Of each thread what was acknowledged, the first first. */
  readonly acknowledged = new Map<string, Acknowledged[]>();
  /** Calls that were answered. */
  calls = 0;
  readonly #failures: unknown[] = [];
  #isOver = false;
  readonly #running: Promise<unknown>;

  constructor(readonly savers: readonly ConnectSaver[]) {
    this.#running = Promise.all(savers.map((saver, index) => this.#run(saver, `t${index}`)));
  }

  /** Goes on until so many more calls were answered. */
  async pass(calls: number): Promise<void> {
    const wanted = this.calls + calls;
    while (this.calls < wanted && this.#failures.length === 0) await sleep(20);
    expect(this.#failures).toEqual([]);
  }

  /** Ends it. Fails if one of its calls has. */
  async stop(): Promise<void> {
    this.#isOver = true;
    await this.#running;
    expect(this.#failures).toEqual([]);
  }

  /** All that was acknowledged so far. */
  snapshot(): Map<string, Acknowledged[]> {
    return structuredClone(this.acknowledged);
  }

  /** Reads through a saver that all of it is there: what was stored later may be there as well. */
  async check(saver: ConnectSaver, acknowledged: ReadonlyMap<string, Acknowledged[]>) {
    for (const [thread, told] of acknowledged) {
      const found: Acknowledged[] = [];
      for await (const tuple of saver.list({ configurable: { thread_id: thread } })) {
        const { text, messages } = tuple.checkpoint.channel_values as Record<string, string>;
        expect(messages?.endsWith(text as string)).toBe(true);
        // The last put may have been dumped before its writes.
        const { id } = tuple.checkpoint;
        if (told.some((each) => each.id === id)) {
          expect(tuple.pendingWrites).toEqual([["task", "text", `${text} written`]]);
        }
        found.push({ id, text: text as string });
      }
      const first = found.toReversed().slice(0, told.length);
      expect(first, thread).toEqual(told);
    }
  }

  async #run(saver: ConnectSaver, name: string): Promise<void> {
    const call = async <T>(promise: Promise<T>) => {
      const answer = await promise;
      this.calls++;
      return answer;
    };
    try {
      for (let n = 0; !this.#isOver; n++) {
        const thread = `${name}-${n}`;
        const told: Acknowledged[] = [];
        this.acknowledged.set(thread, told);
        let versions: Record<string, number> = {};
        // Long enough to be sent as what is new of it.
        let messages = `${thread} `.padEnd(20_000, "lorem ipsum ");
        for (let step = 0; step < 6 && !this.#isOver; step++) {
          const id = uuid6(step);
          const text = `${thread} ${step}`;
          messages += text;
          versions = {
            text: saver.getNextVersion(versions.text),
            messages: saver.getNextVersion(versions.messages),
          };
          const at = await call(
            saver.put(
              {
                configurable: {
                  thread_id: thread,
                  checkpoint_ns: "",
                  ...(told.at(-1) ? { checkpoint_id: told.at(-1)?.id } : {}),
                },
              },
              {
                v: 4,
                id,
                ts: new Date().toISOString(),
                channel_values: { text, messages },
                channel_versions: versions,
                versions_seen: {},
              },
              { source: "loop", step, parents: {} },
              versions,
            ),
          );
          await call(saver.putWrites(at, [["text", `${text} written`]], "task"));
          told.push({ id, text });
          const read = await call(saver.getTuple({ configurable: { thread_id: thread } }));
          expect(read?.checkpoint.id).toBe(id);
          expect(read?.checkpoint.channel_values).toEqual({ text, messages });
        }
        const [held] = await call(
          saver.threads.claim({ threadId: thread, owner: name, leaseMs: 30_000, graceMs: 0 }),
        );
        if (held) await call(saver.threads.release(thread, held.token));
      }
    } catch (error) {
      this.#failures.push(error);
    }
  }
}
