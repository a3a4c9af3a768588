/** `checkpointd threads diff`. */
import type { CheckpointTuple } from "../../gen/checkpointd/v1/checkpoint_pb.js";
import type { Calls } from "../client/calls.js";
import type { Decoded } from "../client/decode_value.js";
import { changesOfValue, isSameValue, itemsWithout, partsOfValue } from "../client/difference.js";
import { valuesOfTuple } from "../client/tuple_values.js";
import { define, UsageError } from "../settings/flags.js";
import { anyText } from "../settings/kinds.js";
import { hint, type Line, paint, print, printJson } from "./print.js";
import type { ThreadsCommand } from "./threads_command.js";
import { json, ns } from "./threads_flags.js";
import { showFlags } from "./threads_look.js";
import { toLine, toPlain } from "./value_text.js";

export const diffFlags = {
  checkpointId: showFlags.checkpointId,
  toId: define({
    flag: "to",
    kind: anyText,
    unset: "",
    help: "the id of the second thread's checkpoint; the latest unless given",
  }),
  checkpointNs: ns,
  json,
};

/** So many items of a list are shown that went, and that came. */
const mostItems = 50;

/** A channel of two states that holds other things. */
interface ChangedValue {
  channel: string;
  before: Decoded | undefined;
  after: Decoded | undefined;
}

/**
 * Tells what the state of the second thread has that the first has not, and the other way round; of one
 * thread alone what its checkpoint changed of its parent's.
 */
export async function runDiff(command: ThreadsCommand<typeof diffFlags>): Promise<number> {
  const [first = "", second] = command.words;
  const { checkpointId, toId, checkpointNs } = command.flags;
  if (second === undefined && toId !== "") {
    throw new UsageError("--to needs a second thread, which may be the same.");
  }
  const read = (threadId: string, id: string) =>
    readTuple(command.calls, threadId, checkpointNs, id);
  let before: CheckpointTuple | undefined = await read(first, checkpointId);
  let after = before;
  if (second !== undefined) after = await read(second, toId);
  else if (after.parentCheckpointId === undefined) before = undefined;
  else before = await read(first, after.parentCheckpointId);
  const changed = changedValues(before, after);
  if (command.flags.json) {
    for (const { channel, ...sides } of changed) {
      const plain = Object.entries(sides).map(([side, value]) => [side, value && toPlain(value)]);
      printJson({ channel, ...Object.fromEntries(plain) });
    }
    return 0;
  }
  for (const { channel, before, after } of changed) printChange(channel, before, after);
  if (changed.length === 0) hint("No channel differs.");
  return 0;
}

async function readTuple(
  calls: Calls,
  threadId: string,
  checkpointNs: string,
  checkpointId: string,
): Promise<CheckpointTuple> {
  const { tuple } = await calls.call((service, context) =>
    service.getTuple({ threadId, checkpointNs, checkpointId }, context),
  );
  if (tuple) return tuple;
  const name = JSON.stringify(threadId);
  throw new Error(
    checkpointId === "" ? `no thread ${name}` : `no checkpoint ${checkpointId} of thread ${name}`,
  );
}

function changedValues(before: CheckpointTuple | undefined, after: CheckpointTuple) {
  const [old, now] = [
    before ? valuesOfTuple(before) : new Map<string, Decoded>(),
    valuesOfTuple(after),
  ];
  const changed: ChangedValue[] = [];
  for (const channel of [...new Set([...old.keys(), ...now.keys()])].sort()) {
    // LangGraph's own tell what runs next.
    if (/^(branch:|join:|__)/.test(channel)) continue;
    const sides = { before: old.get(channel), after: now.get(channel) };
    if (!isSameValue(sides.before, sides.after)) changed.push({ channel, ...sides });
  }
  return changed;
}

function printChange(
  channel: string,
  before: Decoded | undefined,
  after: Decoded | undefined,
): void {
  print(paint("bold", channel));
  const [old, now] = [before && partsOfValue(before), after && partsOfValue(after)];
  // A list that was not there before, or is gone, is told item by item too.
  if ((old ?? now)?.isList && (now ?? old)?.isList) {
    const [from, to] = [[...(old?.parts.values() ?? [])], [...(now?.parts.values() ?? [])]];
    const isSet = /^list Set$/i.test((now ?? old)?.name ?? "");
    const [removed, added, same] = isSet ? differenceOfSets(from, to) : differenceOfLists(from, to);
    if (same > 0) print(paint("dim", `    ${same} as before`));
    printItems("red", "-", removed);
    printItems("green", "+", added);
    return;
  }
  for (const { path, before: was, after: is } of changesOfValue(before, after)) {
    const place = path.length > 0 ? `${path.join(".")}: ` : "";
    if (was) printSide("red", "-", [place, ...toLine(was)]);
    if (is) printSide("green", "+", [place, ...toLine(is)]);
  }
}

/** What went, what came, and how many are as they were. */
type ListDifference = [removed: Decoded[], added: Decoded[], same: number];

/** Lists grow at their end: what both begin with is as it was. */
function differenceOfLists(from: Decoded[], to: Decoded[]): ListDifference {
  let same = 0;
  while (same < from.length && same < to.length && isSameValue(from[same], to[same])) same++;
  return [from.slice(same), to.slice(same), same];
}

function differenceOfSets(from: Decoded[], to: Decoded[]): ListDifference {
  const removed = itemsWithout(from, to);
  return [removed, itemsWithout(to, from), from.length - removed.length];
}

function printItems(colour: "red" | "green", sign: string, items: Decoded[]): void {
  for (const item of items.slice(0, mostItems)) printSide(colour, sign, toLine(item));
  const rest = items.length - mostItems;
  if (rest > 0) print("  ", paint(colour, sign), " ", paint("dim", `… ${rest} more`));
}

const printSide = (colour: "red" | "green", sign: string, line: Line) =>
  print("  ", paint(colour, sign), " ", ...line);
