/** Workloads of single calls: put, putWrites, getTuple, and puts of large blobs. */
import { randomUUID } from "node:crypto";
import type { RunnableConfig } from "@langchain/core/runnables";
import { type Checkpoint, emptyCheckpoint, uuid6 } from "@langchain/langgraph-checkpoint";
import type { Saver } from "./contenders.js";
import { expectSame, type Workload } from "./load.js";
import { createText } from "./text.js";

const channels = ["messages", "plan", "draft", "review", "final"];

function configOf(threadId: string, checkpointId?: string): RunnableConfig {
  const id = checkpointId === undefined ? {} : { checkpoint_id: checkpointId };
  return { configurable: { thread_id: threadId, checkpoint_ns: "", ...id } };
}

/** Puts checkpoints of one thread, each with new values in all of its channels. */
class Thread {
  #last: Checkpoint | undefined;
  #versions: Record<string, number> = {};
  #step = -1;

  constructor(
    readonly saver: Saver,
    readonly threadId: string,
    readonly channels: readonly string[],
    readonly text: () => string,
  ) {}

  async put(): Promise<void> {
    const previous = this.#last;
    const versions: Record<string, number> = {};
    const values: Record<string, unknown> = {};
    for (const channel of this.channels) {
      versions[channel] = this.saver.getNextVersion(this.#versions[channel]);
      values[channel] = this.text();
    }
    this.#step += 1;
    const checkpoint: Checkpoint = {
      ...emptyCheckpoint(),
      id: uuid6(this.#step),
      channel_values: values,
      channel_versions: versions,
      versions_seen: { agent: this.#versions },
    };
    const metadata = { source: "loop" as const, step: this.#step, parents: {} };
    await this.saver.put(configOf(this.threadId, previous?.id), checkpoint, metadata, versions);
    this.#last = checkpoint;
    this.#versions = versions;
  }

  get latest(): Checkpoint {
    return this.#last!;
  }

  get puts(): number {
    return this.#step + 1;
  }

  async verify(): Promise<void> {
    if (this.puts === 0) return;
    const tuple = await this.saver.getTuple(configOf(this.threadId));
    const { id, channel_values } = this.latest;
    expectSame("the latest checkpoint", tuple?.checkpoint.id, id);
    for (const channel of this.channels) {
      const found = tuple?.checkpoint.channel_values[channel];
      expectSame(channel, found, channel_values[channel]);
    }
  }
}

function putWorkload(name: string, operation: string, names: string[], size: number): Workload {
  return {
    name,
    operation,
    async open({ saver, slots, name: prefix }) {
      const text = createText(size);
      const threads = Array.from(
        { length: slots },
        (_, slot) => new Thread(saver, `${prefix}-${slot}`, names, () => text(size)),
      );
      return {
        slots: threads.map((thread) => () => thread.put() as Promise<undefined>),
        async verify() {
          for (const thread of threads) await thread.verify();
          const puts = threads.reduce((sum, thread) => sum + thread.puts, 0);
          return { checkpoints: puts, checkpoint_blobs: puts * names.length };
        },
      };
    },
  };
}

/** A put of five new values of 1 KB. */
export const put = putWorkload("put", "a put of 5 × 1 KB", channels, 1024);

/** A put of one new value of 1 MB. */
export const blob1 = putWorkload("blob-1mb", "a put of 1 MB", ["document"], 1_000_000);

/** A put of one new value of 16 MB. */
export const blob16 = putWorkload("blob-16mb", "a put of 16 MB", ["document"], 16_000_000);

/** Sixteen tasks write after a checkpoint, then others after the next one. */
const tasksPerCheckpoint = 16;

/** A putWrites of one task's three values. */
export const putWrites: Workload = {
  name: "putWrites",
  operation: "a putWrites of 3 rows of 1 KB",
  async open({ saver, slots, name }) {
    const text = createText(1024);
    let rows = 0;
    const tasks = Array.from({ length: slots }, (_, slot) => {
      const thread = new Thread(saver, `${name}-${slot}`, ["messages"], () => text(1024));
      let checkpointId = uuid6(0);
      let written: [taskId: string, channel: string, value: string][] = [];
      let taskCount = 0;
      return {
        async write(): Promise<undefined> {
          if (taskCount++ % tasksPerCheckpoint === 0) {
            checkpointId = uuid6(0);
            written = [];
          }
          const taskId = randomUUID();
          const writes = channels
            .slice(0, 3)
            .map((channel): [string, string] => [channel, text(1024)]);
          await saver.putWrites(configOf(thread.threadId, checkpointId), writes, taskId);
          for (const [channel, value] of writes) written.push([taskId, channel, value]);
          rows += writes.length;
        },
        async verify() {
          // Writes may come before their checkpoint, and are read with it.
          const checkpoint = { ...emptyCheckpoint(), id: checkpointId };
          const metadata = { source: "loop" as const, step: 0, parents: {} };
          await saver.put(configOf(thread.threadId), checkpoint, metadata, {});
          const tuple = await saver.getTuple(configOf(thread.threadId));
          // By task, in which savers differ; the sort is stable: a task's own stay in order.
          const sort = (rows: readonly (readonly unknown[])[] | undefined) =>
            rows?.toSorted(([a], [b]) => (a! < b! ? -1 : a! > b! ? 1 : 0));
          expectSame("the pending writes", sort(tuple?.pendingWrites), sort(written));
        },
      };
    });
    return {
      slots: tasks.map((task) => task.write),
      async verify() {
        for (const task of tasks) await task.verify();
        return { checkpoint_writes: rows, checkpoints: slots };
      },
    };
  },
};

/** Threads each process reads, and the checkpoints of each. */
const threadCount = 64;
const depth = 3;

/** A getTuple of a thread's latest checkpoint. */
export const getTuple: Workload = {
  name: "getTuple",
  operation: "a getTuple of the latest: 5 × 1 KB and 3 writes",
  async open({ saver, slots, name }) {
    const text = createText(1024);
    const expected = new Map<Thread, [string, string, string][]>();
    for (let index = 0; index < threadCount; index += 1) {
      const thread = new Thread(saver, `${name}-${index}`, channels, () => text(1024));
      for (let step = 0; step < depth; step += 1) await thread.put();
      const taskId = randomUUID();
      const writes = channels.slice(0, 3).map((channel): [string, string] => [channel, text(1024)]);
      await saver.putWrites(configOf(thread.threadId, thread.latest.id), writes, taskId);
      expected.set(
        thread,
        writes.map(([channel, value]) => [taskId, channel, value]),
      );
    }
    const threads = [...expected.keys()];
    let next = 0;
    const read = async (): Promise<undefined> => {
      const thread = threads[next++ % threadCount]!;
      const tuple = await saver.getTuple(configOf(thread.threadId));
      expectSame("the latest checkpoint", tuple?.checkpoint.id, thread.latest.id);
      if (tuple?.pendingWrites?.length !== 3) throw new Error("the writes are not there");
    };
    return {
      slots: Array.from({ length: slots }, () => read),
      async verify() {
        for (const [thread, writes] of expected) {
          await thread.verify();
          const tuple = await saver.getTuple(configOf(thread.threadId));
          expectSame("the pending writes", tuple?.pendingWrites, writes);
        }
        const puts = threadCount * depth;
        return {
          checkpoints: puts,
          checkpoint_blobs: puts * channels.length,
          checkpoint_writes: threadCount * 3,
        };
      },
    };
  },
};
