/** Checkpoints with their values, read when they are looked at, the last few kept. */
import {
  type CheckpointTuple,
  type Decoded,
  partsOfValue,
  valuesOfTuple,
} from "checkpointd/client";
import { useEffect, useState } from "preact/hooks";
import { checkpoints, type Failure, toFailure } from "../service.js";
import { toRecord } from "../words.js";

/** A checkpoint's state, decoded. */
export interface State {
  tuple: CheckpointTuple;
  /** The channels' values, those in the checkpoint's JSON too, by name. */
  values: Map<string, Decoded>;
  versions: Record<string, unknown>;
  seen: Record<string, unknown>;
}

/** Values of more bytes are read when they are asked for. */
const mostValueBytes = 1024 * 1024;

const mostKept = 12;
const kept = new Map<string, Promise<State | undefined>>();

/** Forgets what was read: it was for whoever had the key. */
export const forgetStates = () => kept.clear();

/** Reads a checkpoint. `stamp` is another where its writes may have changed. */
export function readState(
  threadId: string,
  checkpointNs: string,
  checkpointId: string,
  stamp = "",
): Promise<State | undefined> {
  const key = JSON.stringify([threadId, checkpointNs, checkpointId, stamp]);
  let reading = kept.get(key);
  if (!reading) {
    reading = readTuple(threadId, checkpointNs, checkpointId);
    reading.catch(() => kept.delete(key));
  }
  kept.delete(key);
  kept.set(key, reading);
  for (const old of kept.keys()) {
    if (kept.size <= mostKept) break;
    kept.delete(old);
  }
  return reading;
}

async function readTuple(threadId: string, checkpointNs: string, checkpointId: string) {
  const one = { threadId, checkpointNs, checkpointId, limit: 1, maxValueBytes: mostValueBytes };
  for await (const { tuple } of checkpoints.list(one)) if (tuple) return toState(tuple);
  return undefined;
}

function toState(tuple: CheckpointTuple): State {
  const { channel_versions, versions_seen } = toRecord(tuple.checkpointJson);
  return {
    tuple,
    values: valuesOfTuple(tuple),
    versions: (channel_versions ?? {}) as Record<string, unknown>,
    seen: (versions_seen ?? {}) as Record<string, unknown>,
  };
}

export interface Reading {
  state?: State;
  failure?: Failure;
  /** It is not stored, or no longer. */
  isGone?: boolean;
}

/** The state of a checkpoint; empty while it is read. No id: nothing is read. */
export function useCheckpoint(
  threadId: string,
  ns: string,
  id: string | undefined,
  stamp: string,
): Reading {
  const [reading, setReading] = useState<Reading & { of?: string }>({});
  // Graphs of one thread may have checkpoints of the same id.
  const of = id === undefined ? undefined : JSON.stringify([threadId, ns, id]);
  useEffect(() => {
    if (id === undefined || of === undefined) return;
    let isWanted = true;
    readState(threadId, ns, id, stamp).then(
      (state) => isWanted && setReading(state ? { of, state } : { of, isGone: true }),
      (error) => {
        const failure = toFailure(error);
        if (isWanted && failure) setReading({ of, failure });
      },
    );
    return () => {
      isWanted = false;
    };
  }, [threadId, ns, id, stamp]);
  return reading.of === of ? reading : {};
}

/** LangGraph's own channels, which tell what runs next and are no state of anybody's. */
export const isInternal = (channel: string) => /^(branch:|join:|__)/.test(channel);

/** The nodes that a checkpoint's tasks have sent work to (LangGraph's Send), which no channel starts. */
export function sentNodesOf({ values }: Pick<State, "values">): string[] {
  const sent = values.get("__pregel_tasks");
  const parts = sent && partsOfValue(sent);
  const nodes = [...(parts?.parts.values() ?? [])].map((each) => {
    const fields = partsOfValue(each);
    const node = fields?.isList === false ? fields.parts.get("node") : undefined;
    return node?.kind === "json" && typeof node.value === "string" ? node.value : "";
  });
  return [...new Set(nodes)].filter((node) => node !== "").sort();
}

/** The nodes that ran between the parent and this checkpoint, by what they have seen. */
export function nodesOf(
  { seen }: Pick<State, "seen">,
  parent: Pick<State, "seen"> | undefined,
): string[] {
  return Object.keys(seen)
    .filter((node) => {
      const before = parent?.seen[node] ?? {};
      return (
        JSON.stringify(seen[node]) !== JSON.stringify(before) &&
        !["__input__", "__interrupt__"].includes(node)
      );
    })
    .sort();
}
