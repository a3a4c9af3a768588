/** Why a thread does not go on: the questions and errors that its tasks left. */
import {
  type Decoded,
  decodeValue,
  type Json,
  type PendingWrite,
  partsOfValue,
} from "checkpointd/client";
import { shorten } from "../words.js";
import { toText } from "./text.js";

export interface Reason {
  kind: "question" | "error";
  taskId: string;
  /** The node whose task it is; empty where the saver that wrote it tells none. */
  node: string;
  text: string;
}

/** Those among a checkpoint's writes, errors first. */
export function reasonsOf(writes: readonly PendingWrite[]): Reason[] {
  const reasons = writes.flatMap(({ channel, taskId, taskPath, value }): Reason[] => {
    const node = nodeOf(taskPath);
    if (channel === "__error__") {
      return [{ kind: "error", taskId, node, text: errorText(decodeValue(value)) }];
    }
    if (channel !== "__interrupt__") return [];
    return questionsOf(decodeValue(value)).map((each) => ({
      kind: "question",
      taskId,
      node,
      text: questionText(each),
    }));
  });
  return reasons.sort((a, b) => a.kind.localeCompare(b.kind));
}

/** The node of a task's path ("~__pregel_pull, approve"); empty of savers that tell none. */
export const nodeOf = (taskPath: string) => shorten(taskPath.split(", ").at(-1) ?? "", 80);

/** What an interrupt asks: LangGraph stores a list of interrupts, each with its value. */
export function questionsOf(value: Decoded): Decoded[] {
  if (value.kind === "json" && Array.isArray(value.value)) {
    return value.value.map((each) => {
      const isOne = typeof each === "object" && each !== null && !Array.isArray(each);
      return { kind: "json", value: isOne && "value" in each ? (each.value ?? null) : each };
    });
  }
  if (value.kind === "list") {
    return value.items.map((item) => {
      if (item.kind !== "object") return item;
      return item.fields.find(([key]) => key === "value")?.[1] ?? item;
    });
  }
  return [value];
}

/** The ids that answers to the interrupts among them are given under; empty of one without. */
export function interruptIdsOf(writes: readonly PendingWrite[]): string[] {
  return writes
    .filter(({ channel }) => channel === "__interrupt__")
    .flatMap(({ value }) => {
      const decoded = decodeValue(value);
      if (decoded.kind === "json") return [decoded.value].flat().map(fieldsOfJson);
      const items = decoded.kind === "list" ? decoded.items : [decoded];
      return items.map((item) => (item.kind === "object" ? Object.fromEntries(item.fields) : {}));
    })
    .map(({ id }) => {
      const plain = typeof id === "object" && id !== null && "value" in id ? id.value : id;
      return typeof plain === "string" ? plain : "";
    });
}

const fieldsOfJson = (value: Json): Record<string, unknown> =>
  typeof value === "object" && value !== null && !Array.isArray(value) ? value : {};

/** What is asked: of an object what it calls so, the rest of it stands among the tasks. */
function questionText(value: Decoded): string {
  const parts = partsOfValue(value);
  for (const key of ["question", "message", "prompt", "text", "description"]) {
    const said = parts?.isList === false ? parts.parts.get(key) : undefined;
    if (said?.kind === "json" && typeof said.value === "string" && said.value !== "") {
      return said.value;
    }
  }
  return toText(value);
}

/** What an error says: JavaScript stores its name and message, Python its representation. */
export function errorText(value: Decoded): string {
  const fields =
    value.kind === "json" && typeof value.value === "object" && !Array.isArray(value.value)
      ? (value.value ?? {})
      : value.kind === "object"
        ? Object.fromEntries(
            value.fields.flatMap(([key, inner]) =>
              inner.kind === "json" ? [[key, inner.value]] : [],
            ),
          )
        : {};
  const { message, name } = fields as Record<string, unknown>;
  if (typeof message !== "string") return toText(value);
  return typeof name === "string" && name !== "Error" ? `${name}: ${message}` : message;
}

/** Whether an error holds more than its text says. */
export function hasMoreThanText(value: Decoded): boolean {
  const parts = partsOfValue(value);
  if (!parts) return false;
  return parts.isList || [...parts.parts.keys()].some((key) => key !== "message" && key !== "name");
}
