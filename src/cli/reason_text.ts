/** Why a thread does not go on, in a line. */
import type { Thread } from "../client/threads.js";
import { shorten } from "./print.js";

/** A question or an error; `name` is the node that has it, if that is known. */
export interface ReasonText {
  kind: "asks" | "error";
  name: string | undefined;
  text: string;
}

/** The errors of a thread that was read with its reasons, then its questions, each at most so long. */
export function reasonTexts({ errors = [], interrupts = [] }: Thread, length: number) {
  const inLine = (text: string) => shorten(text.replaceAll(/\s+/g, " ").trim(), length);
  return [
    ...errors.map(({ name, unread, error }): ReasonText => {
      return { kind: "error", name, text: inLine(unread ? `<${unread}>` : errorText(error)) };
    }),
    ...interrupts.map(({ name, unread, value }): ReasonText => {
      return { kind: "asks", name, text: inLine(unread ? `<${unread}>` : questionText(value)) };
    }),
  ];
}

/** The first of them for a table, and how many more there are; empty where there is none. */
export function toReasonCell(thread: Thread, length: number): string {
  const [first, ...more] = reasonTexts(thread, length);
  if (!first) return "";
  return `${first.kind}: ${first.text}${more.length > 0 ? ` (+${more.length})` : ""}`;
}

/** JavaScript's LangGraph stores an error's name and message, Python's its representation. */
function errorText(error: unknown): string {
  const { message, name } = fieldsOf(error);
  if (typeof message !== "string") return plainText(error);
  return typeof name === "string" && name !== "Error" ? `${name}: ${message}` : message;
}

/** What is asked: of an object what it calls so. */
function questionText(value: unknown): string {
  const fields = fieldsOf(value);
  for (const key of ["question", "message", "prompt", "text", "description"]) {
    const said = fields[key];
    if (typeof said === "string" && said !== "") return said;
  }
  return plainText(value);
}

const plainText = (value: unknown) =>
  typeof value === "string" ? value : (JSON.stringify(value) ?? "nothing");

const fieldsOf = (value: unknown) =>
  (typeof value === "object" && value !== null ? value : {}) as Record<string, unknown>;
