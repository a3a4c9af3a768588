/** Delta channels, rebuilt from the writes of a checkpoint's ancestors. */
import {
  type CheckpointPendingWrite,
  type DeltaChannelHistory,
  type SerializerProtocol,
  TASKS,
} from "@langchain/langgraph-checkpoint";
import type { GetChannelHistoryResponse } from "../../gen/checkpointd/v1/thread_service_pb.js";
import type { Calls } from "./calls.js";
import { fromValue } from "./codec.js";
import type { Encryption } from "./encryption.js";

/** The checkpoint whose ancestors are walked: the latest of the namespace if the id is empty. */
export interface HistoryTarget {
  threadId: string;
  checkpointNs: string;
  checkpointId: string;
}

interface Walk {
  /** The writes of one ancestor each, nearest ancestor first. */
  blocks: CheckpointPendingWrite[][];
  seed?: { value: unknown };
}

/**
 * What LangGraph's base class returns from getDeltaChannelHistory: for each of `channels` the
 * writes of the target's ancestors, oldest first, down to the nearest ancestor that holds a
 * value, which is the seed. A target or ancestor that is not stored ends the walk.
 *
 * One call, whose answer is streamed; it is repeated from the start if it breaks off, and given up
 * when the signal aborts. Where values are encrypted they are decrypted, each ancestor as the parent of
 * the one before.
 */
export async function readDeltaHistory(
  calls: Calls,
  serde: SerializerProtocol,
  target: HistoryTarget,
  channels: string[],
  signal?: AbortSignal,
  encryption?: Encryption,
): Promise<Record<string, DeltaChannelHistory>> {
  if (channels.length === 0) return {};
  const walks = await calls.call(
    async (service, context) => {
      const walks = new Map<string, Walk>(channels.map((channel) => [channel, { blocks: [] }]));
      const names = [...walks.keys()];
      const request = { ...target, channels: names, withSeals: encryption !== undefined };
      const messages = service.getChannelHistory(request, context);
      const opened = encryption ? encryption.openHistory(target, names, messages) : messages;
      for await (const message of opened) {
        await collect(serde, message, walks);
      }
      return walks;
    },
    { signal },
  );
  return Object.fromEntries(
    Array.from(walks, ([channel, { blocks, seed }]) => {
      const history: DeltaChannelHistory = { writes: blocks.reverse().flat() };
      if (seed !== undefined) history.seed = seed.value;
      return [channel, history];
    }),
  );
}

async function collect(
  serde: SerializerProtocol,
  message: GetChannelHistoryResponse,
  walks: Map<string, Walk>,
): Promise<void> {
  const { writes } = message;
  const values = await Promise.all(writes.map((write) => fromValue(serde, write.value)));
  const blocks = new Map<string, CheckpointPendingWrite[]>();
  for (let i = 0; i < writes.length; i++) {
    const { taskId, channel } = writes[i]!;
    let block = blocks.get(channel);
    if (block === undefined) {
      block = [];
      blocks.set(channel, block);
      walks.get(channel)?.blocks.push(block);
    }
    block.push([taskId, channel, values[i]]);
  }
  // As in a tuple, a stored value goes before one in the JSON, and what was sent before both.
  const seeds = new Map<string, unknown>();
  for (const [channel, json] of Object.entries(message.inlineSeeds)) {
    seeds.set(channel, JSON.parse(json));
  }
  for (const blob of message.seeds) seeds.set(blob.channel, await fromValue(serde, blob.value));
  if (message.pendingSends.length > 0) {
    const sends = message.pendingSends.map((value) => fromValue(serde, value));
    seeds.set(TASKS, await Promise.all(sends));
  }
  for (const [channel, value] of seeds) {
    const walk = walks.get(channel);
    if (walk) walk.seed = { value };
  }
}
