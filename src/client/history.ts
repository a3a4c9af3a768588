/** The walk that rebuilds delta channels from the writes of a checkpoint's ancestors. */
import type {
  CheckpointPendingWrite,
  DeltaChannelHistory,
  SerializerProtocol,
} from "@langchain/langgraph-checkpoint";
import { TASKS } from "@langchain/langgraph-checkpoint";
import type { CheckpointTuple } from "../../gen/checkpointd/v1/checkpoint_pb.js";
import { ListView } from "../../gen/checkpointd/v1/checkpoint_service_pb.js";
import type { Calls, ListInit } from "./calls.js";
import { fromPendingSends, fromValue } from "./codec.js";

/** The checkpoint whose ancestors are walked: the latest of the namespace without an id. */
export interface HistoryTarget {
  threadId: string;
  checkpointNs: string;
  checkpointId: string | undefined;
}

interface Walk {
  /** The writes of one ancestor each, nearest ancestor first. */
  blocks: CheckpointPendingWrite[][];
  seed?: { value: unknown };
}

// Opening a stream again costs about as much as receiving this many small tuples.
const LONGEST_DETOUR = 16;
// The longest id the service takes, in bytes.
const LONGEST_ID = 128;

/**
 * What LangGraph's base class returns from getDeltaChannelHistory: for each of `channels` the
 * writes of the target's ancestors, oldest first, down to the nearest ancestor that holds a
 * value, which is the seed. A target or ancestor that is not stored ends the walk.
 *
 * Cost: one short call for the target's parent, then one stream that begins at the parent and
 * is cancelled when every channel has its seed, instead of a call per ancestor. Only the
 * channels asked for are decoded, but each ancestor travels whole, and so do the checkpoints of
 * other branches that lie between two ancestors, until a detour of 16 of them: then the stream
 * is opened again at the ancestor. So it is where an id is greater than its child's.
 */
export async function readDeltaHistory(
  calls: Calls,
  serde: SerializerProtocol,
  target: HistoryTarget,
  channels: string[],
): Promise<Record<string, DeltaChannelHistory>> {
  const walks = new Map<string, Walk>(channels.map((channel) => [channel, { blocks: [] }]));
  if (channels.length > 0) await walkAncestors(calls, serde, target, walks);
  return Object.fromEntries(
    Array.from(walks, ([channel, { blocks, seed }]) => {
      const history: DeltaChannelHistory = { writes: blocks.reverse().flat() };
      if (seed !== undefined) history.seed = seed.value;
      return [channel, history];
    }),
  );
}

async function walkAncestors(
  calls: Calls,
  serde: SerializerProtocol,
  target: HistoryTarget,
  walks: Map<string, Walk>,
): Promise<void> {
  const { threadId, checkpointNs, checkpointId } = target;
  const scope = { threadId, checkpointNs };
  const unseeded = new Map(walks);
  const seen = new Set<string>();
  let wanted = await parentOf(calls, checkpointId ? { ...scope, checkpointId } : scope);

  while (wanted !== undefined && unseeded.size > 0) {
    let detour = 0;
    let found = false;
    for await (const tuple of calls.list({ ...scope, ...atOrBelow(wanted) })) {
      const id = tuple.key!.checkpointId;
      if (id === wanted) {
        await collect(serde, tuple, unseeded);
        seen.add(id);
        wanted = tuple.parentCheckpointId || undefined;
        detour = 0;
        found = true;
        // A parent seen before makes a circle, which no graph writes but any client can.
        if (wanted === undefined || seen.has(wanted) || unseeded.size === 0) return;
        if (!isBelow(wanted, id)) break;
      } else if (isBelow(id, wanted)) {
        return; // The stream has passed the place: the ancestor is not stored.
      } else if (++detour === LONGEST_DETOUR) {
        break;
      }
    }
    if (!found) return; // Nothing at or below the ancestor is stored.
  }
}

async function parentOf(calls: Calls, target: ListInit): Promise<string | undefined> {
  const request = { ...target, limit: 1, view: ListView.METADATA };
  for await (const tuple of calls.list(request)) return tuple.parentCheckpointId || undefined;
  return undefined;
}

// A stream that begins with `id`. The contract has only "smaller than", and no id lies between
// one and itself with U+0001 appended: NUL is not allowed. For an id that cannot grow, just it.
function atOrBelow(id: string): ListInit {
  return Buffer.byteLength(id) < LONGEST_ID
    ? { beforeCheckpointId: `${id}\u0001` }
    : { checkpointId: id };
}

// The service's order is that of the bytes; JavaScript's < differs above U+FFFF.
function isBelow(a: string, b: string): boolean {
  return Buffer.compare(Buffer.from(a), Buffer.from(b)) < 0;
}

async function collect(
  serde: SerializerProtocol,
  tuple: CheckpointTuple,
  unseeded: Map<string, Walk>,
): Promise<void> {
  const writes = tuple.pendingWrites.filter((write) => unseeded.has(write.channel));
  // By task id as the base class compares it, which need not be how the database does; the
  // sort is stable, so the order of idx within a task stays.
  writes.sort((a, b) => (a.taskId < b.taskId ? -1 : a.taskId > b.taskId ? 1 : 0));
  const values = await Promise.all(writes.map((write) => fromValue(serde, write.value)));
  const blocks = new Map<string, CheckpointPendingWrite[]>();
  for (let i = 0; i < writes.length; i++) {
    const { taskId, channel } = writes[i]!;
    let block = blocks.get(channel);
    if (block === undefined) {
      block = [];
      blocks.set(channel, block);
      unseeded.get(channel)!.blocks.push(block);
    }
    block.push([taskId, channel, values[i]]);
  }
  const inlined = inlinedValues(tuple.checkpointJson);
  for (const [channel, walk] of unseeded) {
    const seed = await seedOf(serde, tuple, inlined, channel);
    if (seed === undefined) continue;
    walk.seed = seed;
    unseeded.delete(channel);
  }
}

async function seedOf(
  serde: SerializerProtocol,
  tuple: CheckpointTuple,
  inlined: Record<string, unknown>,
  channel: string,
): Promise<{ value: unknown } | undefined> {
  if (channel === TASKS && tuple.pendingSends.length > 0) {
    return { value: await fromPendingSends(serde, tuple) };
  }
  const blob = tuple.blobs.find((each) => each.channel === channel);
  if (blob !== undefined && blob.value?.type !== "empty") {
    return { value: await fromValue(serde, blob.value) };
  }
  return Object.hasOwn(inlined, channel) ? { value: inlined[channel] } : undefined;
}

// Only Python agents keep values in the JSON; for the others it is not worth parsing.
function inlinedValues(checkpointJson: string): Record<string, unknown> {
  if (!checkpointJson.includes('"channel_values"')) return {};
  return JSON.parse(checkpointJson).channel_values ?? {};
}
