/** Workloads that read a long thread: list, and the history of a delta channel. */
import { expectSame, type Workload } from "./load.js";
import { sqlText, textOf } from "./text.js";

const threadId = "history";
const channels = ["messages", "plan", "draft", "review", "final"];

/** The version of a channel at a step: the first changes at each, the others take turns. */
function versionAt(channel: number, step: number): number {
  return channel === 0 ? step + 1 : Math.floor((step + 4 - channel) / 4) + 1;
}

const idAt = (step: number) => `1f000000-0000-6000-8000-${`${step}`.padStart(12, "0")}`;
const sqlId = (step: string) => `'1f000000-0000-6000-8000-' || lpad((${step})::text, 12, '0')`;

/** Rows of a thread of `count` checkpoints as LangGraph stores them, 5 values and 1 write each. */
function seedThread(count: number, delta: boolean): string[] {
  const last = count - 1;
  const names = delta ? channels.slice(0, 1) : channels;
  const sqlVersion = (channel: number, step: string) =>
    channel === 0 ? `${step} + 1` : `(${step} + 4 - ${channel}) / 4 + 1`;
  const versions = names.map((name, index) => `'${name}', ${sqlVersion(index, "step")}`);
  if (delta) versions.push("'items', step + 1");
  const statements = [
    `insert into checkpoints
       (thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, checkpoint, metadata)
     select '${threadId}', '', ${sqlId("step")},
       case when step > 0 then ${sqlId("step - 1")} end,
       jsonb_build_object(
         'v', 4, 'id', ${sqlId("step")}, 'ts', '2026-01-01T00:00:00.000Z', 'versions_seen',
         jsonb_build_object('agent', jsonb_build_object('messages', step)),
         'channel_versions', jsonb_build_object(${versions.join(", ")})),
       jsonb_build_object('source', 'loop', 'step', step, 'parents', '{}'::jsonb)
     from generate_series(0, ${last}) as step`,
    `insert into checkpoint_writes
       (thread_id, checkpoint_ns, checkpoint_id, task_id, idx, channel, type, blob)
     select '${threadId}', '', ${sqlId("step")}, 'task-' || step, 0, 'items', 'json',
       convert_to('"' || ${sqlText("'items:' || step")} || '"', 'UTF8')
     from generate_series(0, ${last}) as step`,
  ];
  for (const [index, name] of names.entries()) {
    statements.push(
      `insert into checkpoint_blobs (thread_id, checkpoint_ns, channel, version, type, blob)
       select '${threadId}', '', '${name}', version, 'json',
         convert_to('"' || ${sqlText(`'${name}:' || version`)} || '"', 'UTF8')
       from generate_series(1, ${versionAt(index, last)}) as version`,
    );
  }
  if (delta) {
    // The first checkpoint has the channel's value; the others have none, only writes.
    statements.push(
      `insert into checkpoint_blobs (thread_id, checkpoint_ns, channel, version, type, blob)
       select '${threadId}', '', 'items', version,
         case version when 1 then 'json' else 'empty' end,
         case version when 1 then convert_to('"seed"', 'UTF8') end
       from generate_series(1, ${count}) as version`,
    );
  }
  return statements;
}

const warmUpTuples = 1000;

function listWorkload(count: number): Workload {
  return {
    name: `list-${count}`,
    operation: `a list of ${count.toLocaleString("en")} checkpoints, 5 × 1 KB and 1 write each`,
    tuples: count,
    slow: count > warmUpTuples,
    seed: seedThread(count, false),
    async open({ saver, slots }) {
      // As a graph's getStateHistory asks: thread and namespace.
      const config = { configurable: { thread_id: threadId, checkpoint_ns: "" } };
      const limited = (limit: number) => (limit < count ? { limit } : {});
      const list = async (limit = count) => {
        const started = performance.now();
        let first: number | undefined;
        let step = count;
        for await (const { checkpoint, pendingWrites } of saver.list(config, limited(limit))) {
          first ??= performance.now() - started;
          step -= 1;
          const values = Object.keys(checkpoint.channel_values).length;
          if (checkpoint.id !== idAt(step) || values !== 5 || pendingWrites?.length !== 1) {
            throw new Error(`the list has ${checkpoint.id} in place of ${idAt(step)}, complete`);
          }
        }
        expectSame("the number of tuples", count - step, limit);
        return first;
      };
      return {
        slots: Array.from({ length: slots }, () => () => list()),
        ...(count > warmUpTuples && { warmUp: () => list(warmUpTuples) }),
        async verify() {
          let step = count;
          for await (const { checkpoint, pendingWrites } of saver.list(config, { limit: 20 })) {
            step -= 1;
            for (const [index, name] of channels.entries()) {
              const expected = textOf(`${name}:${versionAt(index, step)}`);
              expectSame(name, checkpoint.channel_values[name], expected);
            }
            const write = [`task-${step}`, "items", textOf(`items:${step}`)];
            expectSame("the write", pendingWrites, [write]);
          }
          return { checkpoints: count };
        },
      };
    },
  };
}

/** Lists of 10, of 1,000 and of 10,000 checkpoints. */
export const lists = [10, 1000, 10_000].map(listWorkload);

const ancestors = 1000;

/** What a delta channel's state is rebuilt from: the writes of 1,000 ancestors. */
export const delta: Workload = {
  name: `delta-${ancestors}`,
  operation: `getDeltaChannelHistory over ${ancestors.toLocaleString("en")} ancestors`,
  slow: true,
  seed: seedThread(ancestors + 1, true),
  async open({ saver, slots }) {
    const config = { configurable: { thread_id: threadId } };
    const read = () => saver.getDeltaChannelHistory({ config, channels: ["items"] });
    return {
      slots: Array.from({ length: slots }, () => async () => {
        const { items } = await read();
        expectSame("the number of writes", items?.writes.length, ancestors);
        return undefined;
      }),
      async verify() {
        const { items } = await read();
        expectSame("the value they build on", items?.seed, "seed");
        for (const [step, write] of items!.writes.entries()) {
          expectSame("a write", write, [`task-${step}`, "items", textOf(`items:${step}`)]);
        }
        return { checkpoints: ancestors + 1 };
      },
    };
  },
};
