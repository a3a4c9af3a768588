/** `checkpointd threads history`. */
import type { ChannelBlob, CheckpointTuple } from "../../gen/checkpointd/v1/checkpoint_pb.js";
import { decodeValue } from "../client/decode_value.js";
import { readList } from "../client/read_list.js";
import { hintMore, printJson, printTable, shorten } from "./print.js";
import type { ThreadsCommand } from "./threads_command.js";
import { json, limit, ns } from "./threads_flags.js";
import { toLastLine } from "./value_text.js";

export const historyFlags = { checkpointNs: ns, limit, json };

/** Characters of what a channel holds now, and of all that a checkpoint changed. */
const valueCharacters = 60;
const changedCharacters = 200;

export async function runHistory(command: ThreadsCommand<typeof historyFlags>): Promise<number> {
  const [threadId = ""] = command.words;
  const { checkpointNs, limit } = command.flags;
  // One more than is shown: it is the parent of the last, and tells whether there are more.
  const tuples = readList(command.calls, { threadId, checkpointNs, limit: limit + 1 });
  let found = 0;
  const steps = async function* () {
    for await (const step of withParents(tuples)) if (found++ < limit) yield step;
  };
  if (command.flags.json) {
    for await (const step of steps()) printJson(toJson(step));
  } else {
    const headings = ["CHECKPOINT", "TIME (UTC)", "STEP", "SOURCE", "NODES", "CHANGED"];
    const columns = headings.map((heading) => ({ heading }));
    await printTable(columns, toRows(steps()));
  }
  if (found === 0) {
    const where = checkpointNs === "" ? "" : ` with the namespace ${JSON.stringify(checkpointNs)}`;
    throw new Error(`no thread ${JSON.stringify(threadId)}${where}`);
  }
  if (found > limit) hintMore(limit);
  return 0;
}

type Versions = Record<string, unknown>;

/** A checkpoint of the history. What it changed is known once its parent has come. */
interface Step {
  checkpointId: string;
  parentCheckpointId: string | undefined;
  metadata: Record<string, unknown>;
  time: string | undefined;
  versions: Versions;
  seen: Record<string, Versions>;
  /** What each channel holds, in a few words. */
  values: Map<string, string>;
  parent: Step | undefined;
}

/**
 * The steps in the list's order, each as soon as its parent has come, which is the next one but where
 * a thread was forked. One whose parent is not stored has none.
 */
async function* withParents(tuples: AsyncIterable<CheckpointTuple>): AsyncGenerator<Step> {
  const waiting: Step[] = [];
  // Tuples share the blobs that they have in common.
  const words = new WeakMap<ChannelBlob, string>();
  for await (const tuple of tuples) {
    const step = toStep(tuple, words);
    for (const child of waiting) {
      if (child.parentCheckpointId === step.checkpointId) child.parent = step;
    }
    waiting.push(step);
    while (waiting[0] && (waiting[0].parent || waiting[0].parentCheckpointId === undefined)) {
      yield waiting.shift() as Step;
    }
  }
  yield* waiting;
}

function toStep(tuple: CheckpointTuple, words: WeakMap<ChannelBlob, string>): Step {
  const { ts, channel_versions, versions_seen, channel_values } = JSON.parse(tuple.checkpointJson);
  const values = new Map<string, string>();
  for (const [channel, value] of Object.entries(channel_values ?? {})) {
    values.set(channel, shorten(JSON.stringify(value), valueCharacters));
  }
  for (const blob of tuple.blobs) {
    const text = words.get(blob) ?? toLastLine(decodeValue(blob.value), valueCharacters);
    words.set(blob, text);
    values.set(blob.channel, text);
  }
  return {
    checkpointId: tuple.key?.checkpointId ?? "",
    parentCheckpointId: tuple.parentCheckpointId,
    metadata: JSON.parse(tuple.metadataJson || "{}"),
    time: Number.isNaN(Date.parse(ts)) ? undefined : new Date(ts).toISOString(),
    versions: channel_versions ?? {},
    seen: versions_seen ?? {},
    values,
    parent: undefined,
  };
}

/** The nodes that ran before this checkpoint, and the channels that they and the input changed. */
function changesOf({ versions, seen, parent, parentCheckpointId }: Step) {
  if (!parent && parentCheckpointId !== undefined) return {};
  const before = parent ?? { versions: {} as Versions, seen: {} as Step["seen"] };
  const nodes = Object.keys(seen).filter((node) => {
    // A node has seen the versions of the channels that it ran for.
    const isSame = JSON.stringify(seen[node]) === JSON.stringify(before.seen[node] ?? {});
    return !isSame && !["__input__", "__interrupt__"].includes(node);
  });
  const changed = Object.keys(versions).filter((name) => versions[name] !== before.versions[name]);
  return { nodes: nodes.sort(), changed: changed.sort() };
}

function toJson(step: Step) {
  const { checkpointId, parentCheckpointId, time, metadata } = step;
  const { step: number, source } = metadata;
  const { nodes, changed } = changesOf(step);
  return {
    checkpointId,
    parentCheckpointId,
    time,
    step: number,
    source,
    nodes,
    changed,
    metadata,
  };
}

async function* toRows(steps: AsyncIterable<Step>): AsyncGenerator<string[]> {
  for await (const step of steps) {
    const { checkpointId, time = "", metadata, values } = step;
    const { nodes = [], changed = [] } = changesOf(step);
    // LangGraph's own channels tell what runs next, which the next checkpoint's nodes tell better;
    // but for the input's.
    const isShown = (name: string) =>
      name === "__start__" ? values.has(name) : !/^(branch:|__)/.test(name);
    const shown = changed
      .filter(isShown)
      .map((name) => (values.has(name) ? `${name}: ${values.get(name)}` : name));
    yield [
      checkpointId,
      time.slice(0, 19).replace("T", " "),
      String(metadata.step ?? ""),
      String(metadata.source ?? ""),
      nodes.join(" "),
      shorten(shown.join("; "), changedCharacters),
    ];
  }
}
