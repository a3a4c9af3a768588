/** Decoded values as a person reads them in a terminal, and as --json prints them. */
import type { Value } from "../../gen/checkpointd/v1/checkpoint_pb.js";
import { type Decoded, type DecodedMessage, decodeValue } from "../client/decode_value.js";
import { isSealed } from "../protocol/sealed.js";
import { type Line, paint, shorten, toSize } from "./print.js";

/** So many characters of a value are shown, and of each message. */
const shownCharacters = 400;
/** So many messages of a list are shown, the last ones. */
const shownMessages = 50;

/**
 * A value in lines: a list with messages has one for each, "human: …", anything else is one line,
 * shortened.
 */
export function toLines(decoded: Decoded): Line[] {
  const items = decoded.kind === "list" ? decoded.items : [];
  if (!items.some(({ kind }) => kind === "message")) return [toLine(decoded)];
  const before = items.length - shownMessages;
  return [
    ...(before > 0 ? [[paint("dim", `… ${before} before`)]] : []),
    ...items.slice(-shownMessages).map((item) => toLine(item)),
  ];
}

/** A value in one line, shortened. */
export function toLine(decoded: Decoded): Line {
  if (decoded.kind === "message") {
    const text = shorten(spoken(decoded), shownCharacters);
    return [paint("cyan", `${speaker(decoded)}:`), ` ${text}`];
  }
  const text = shorten(toText(decoded), shownCharacters);
  return [["none", "bytes", "unknown"].includes(decoded.kind) ? paint("dim", text) : text];
}

/** The last of what a value holds, in one line without colours: of a conversation the last message. */
export function toLastLine(decoded: Decoded, length: number): string {
  const last = decoded.kind === "list" ? decoded.items.at(-1) : undefined;
  return shorten(toText(last?.kind === "message" ? last : decoded), length);
}

/** A value as JSON: a message by role and text, objects by their fields, of bytes how many. */
export function toPlain(decoded: Decoded): unknown {
  switch (decoded.kind) {
    case "none":
      return null;
    case "json":
      return decoded.value;
    case "list":
      return decoded.items.map(toPlain);
    case "object":
      return Object.fromEntries(decoded.fields.map(([key, value]) => [key, toPlain(value)]));
    case "bytes":
      return { type: "bytes", bytes: decoded.bytes.length };
    case "unknown":
      return { type: decoded.type, bytes: decoded.bytes.length, reason: decoded.reason };
    case "message": {
      const { role, text, name, id, toolCallId, toolCalls, fields } = decoded;
      const parts: Record<string, unknown> = { role, text, name, id, toolCallId };
      if (toolCalls.length > 0) {
        parts.toolCalls = toolCalls.map((call) => ({ ...call, args: toPlain(call.args) }));
      }
      const others = fields.filter(([key]) => !Object.hasOwn(parts, key));
      return {
        ...parts,
        ...Object.fromEntries(others.map(([key, value]) => [key, toPlain(value)])),
      };
    }
  }
}

/** A stored value as {@link toPlain} has it. Throws why, where nobody here can read it. */
export function toReadable(value: Value | undefined): unknown {
  const decoded = decodeValue(value);
  if (decoded.kind === "unknown") throw new Error(decoded.reason);
  return toPlain(decoded);
}

const speaker = ({ role, name }: DecodedMessage) => (name === undefined ? role : `${role} ${name}`);

/** What a message says, on one line, and the tools it calls. */
function spoken({ text, toolCalls }: DecodedMessage): string {
  const calls = toolCalls.map(({ name, args }) => `→ ${name}(${toText(args)})`);
  return [text.replaceAll(/\s+/g, " ").trim(), ...calls].filter((part) => part !== "").join(" ");
}

function toText(decoded: Decoded): string {
  switch (decoded.kind) {
    case "none":
      return "<nothing>";
    case "json":
      return JSON.stringify(decoded.value);
    case "message":
      return `${speaker(decoded)}: ${spoken(decoded)}`;
    case "list": {
      const items = decoded.items.map(toText).join(", ");
      return decoded.name === undefined ? `[${items}]` : `${decoded.name}(${items})`;
    }
    case "object": {
      const fields = decoded.fields.map(([key, value]) => `${key}: ${toText(value)}`).join(", ");
      return `${decoded.name === undefined ? "" : `${decoded.name} `}{${fields}}`;
    }
    case "bytes":
      return `<bytes, ${toSize(decoded.bytes.length)}>`;
    case "unknown": {
      const size = toSize(decoded.bytes.length);
      if (isSealed(decoded.type)) return `<${decoded.reason}, ${size}>`;
      return `<${decoded.type}, ${size}, not read: ${decoded.reason}>`;
    }
  }
}
