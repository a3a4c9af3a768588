/** A checkpoint's state for people to look at. */
import type { CheckpointTuple } from "../../gen/checkpointd/v1/checkpoint_pb.js";
import { type Decoded, decodeValue, type Json, maxDepth, tooDeep } from "./decode_value.js";
import { parseJson } from "./stored_json.js";

/**
 * The values of a checkpoint's channels by name, in order: those in its JSON, where Python agents keep
 * primitives, and those stored apart. What was left out or is unchanged is not among them.
 */
export function valuesOfTuple(tuple: CheckpointTuple): Map<string, Decoded> {
  const found: [string, Decoded][] = Object.entries(inlinedIn(tuple.checkpointJson)).map(
    ([channel, value]) => [channel, toDecoded(value as Json)],
  );
  for (const { channel, value } of tuple.blobs) found.push([channel, decodeValue(value)]);
  return new Map(found.sort(([a], [b]) => (a < b ? -1 : 1)));
}

/** JSON as it is; what is nested deeper than decodeValue goes would overflow the stack of whoever shows it. */
function toDecoded(value: Json): Decoded {
  let level: Json[] = [value];
  for (let depth = 0; level.length > 0; depth++) {
    if (depth > maxDepth) {
      const bytes = new TextEncoder().encode(JSON.stringify(value));
      return { kind: "unknown", type: "json", bytes, reason: tooDeep };
    }
    level = level.flatMap((each) =>
      typeof each === "object" && each !== null ? (Object.values(each) as Json[]) : [],
    );
  }
  return { kind: "json", value };
}

function inlinedIn(checkpointJson: string): object {
  try {
    const { channel_values } = parseJson(checkpointJson) as { channel_values?: unknown };
    if (typeof channel_values === "object" && channel_values !== null) return channel_values;
  } catch {
    // What a client stored that is no checkpoint has none.
  }
  return {};
}
