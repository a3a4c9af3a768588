/** A value on a line. */
import type { Decoded, Json } from "checkpointd/client";
import { toSize } from "../words.js";

/** What is longer is cut before it is made into text. */
const most = 500;

/** A value in some words, as text that may be cut. */
export function toText(value: Decoded): string {
  switch (value.kind) {
    case "none":
      return "no value";
    case "json":
      return typeof value.value === "string" ? value.value : jsonText(value.value);
    case "message":
      return `${value.role}: ${value.text}`;
    case "list":
      return `${value.name ?? ""}[${joined(value.items.map((item) => () => toText(item)))}]`;
    case "object": {
      const parts = value.fields.map(
        ([key, inner]) =>
          () =>
            `${key}: ${toText(inner)}`,
      );
      return `${value.name ? `${value.name} ` : ""}{${joined(parts)}}`;
    }
    case "bytes":
      return `${toSize(value.bytes.length)} of bytes`;
    case "unknown":
      return `${value.type}, ${toSize(value.bytes.length)}: ${value.reason}`;
  }
}

/** JSON of which no more is written than is shown. */
function jsonText(value: Json): string {
  if (Array.isArray(value)) return `[${joined(value.map((item) => () => jsonText(item)))}]`;
  if (typeof value === "object" && value !== null) {
    const parts = Object.entries(value).map(
      ([key, inner]) =>
        () =>
          `${key}: ${jsonText(inner)}`,
    );
    return `{${joined(parts)}}`;
  }
  return typeof value === "string" ? JSON.stringify(value.slice(0, most)) : String(value);
}

function joined(parts: (() => string)[]): string {
  let text = "";
  for (const part of parts) {
    if (text.length > most) return `${text}…`;
    text += `${text === "" ? "" : ", "}${part()}`;
  }
  return text;
}
