/** Stored values for people to look at: what JavaScript's and Python's serializers wrote, as a tree. */
import { isSealed, readSealedHeader } from "../protocol/sealed.js";
import { Entries, Extension, readMsgpack } from "./msgpack.js";
import { parseJson } from "./stored_json.js";

/** What JSON can say. */
export type Json = null | boolean | number | string | Json[] | { [key: string]: Json };

/**
 * A value as a tree that a page or a terminal can show. All text in it is whatever an agent stored:
 * show it as text, never as HTML. No class is made of it and nothing of it is run.
 */
export type Decoded =
  /** No value: the channel was emptied, or held `undefined`. */
  | { kind: "none" }
  /** Plain JSON, all the way down. An integer that no double holds is a string of its digits. */
  | { kind: "json"; value: Json }
  | DecodedMessage
  /** A list or, with a name, a set or an object made of arguments, that holds more than JSON. */
  | { kind: "list"; name?: string; items: Decoded[] }
  /** An object, of the class `name` if there is one, that holds more than JSON. */
  | { kind: "object"; name?: string; fields: [key: string, value: Decoded][] }
  | { kind: "bytes"; bytes: Uint8Array }
  /** What nobody here can read: an encrypted or pickled value, a serializer of your own, damage. */
  | { kind: "unknown"; type: string; bytes: Uint8Array; reason: string };

/** One of LangChain's messages. */
export interface DecodedMessage {
  kind: "message";
  /** "human", "ai", "system", "tool", …; a ChatMessage's own role. */
  role: string;
  /**
   * What it says. Of content in blocks the text, and for each other block its type in brackets, but for
   * calls that are among `toolCalls`.
   */
  text: string;
  name?: string;
  id?: string;
  /** The call that a tool answers. */
  toolCallId?: string;
  toolCalls: { name: string; id?: string; args: Decoded }[];
  /** Everything else it has; `content` too where it is no string, or `content_blocks` in its place. */
  fields: [key: string, value: Decoded][];
}

/**
 * Decodes a stored value (a `Value` of a blob or a write), without LangGraph: JSON with LangChain's
 * constructors, as JavaScript agents write it; msgpack with Python's extensions; bytes and null. It
 * never throws: what cannot be read is `unknown`, with the reason (of what a saver encrypted,
 * `encrypted with key "…"`). Bytes are views of `data`.
 */
export function decodeValue(value: { type: string; data: Uint8Array } | undefined): Decoded {
  const { type, data } = value ?? { type: "empty", data: new Uint8Array() };
  if (isSealed(type)) {
    const header = readSealedHeader(data);
    const reason = header ? `encrypted with key "${header.keyId}"` : "encrypted, and damaged";
    return { kind: "unknown", type, bytes: data, reason };
  }
  try {
    switch (type) {
      case "empty":
        return { kind: "none" };
      case "null":
        return { kind: "json", value: null };
      case "bytes":
      case "bytearray":
        return { kind: "bytes", bytes: data };
      case "json":
        // LangGraph's serializer writes nothing at all for a function.
        if (data.length === 0) return { kind: "none" };
        return toDecoded(parseJson(new TextDecoder("utf-8", { fatal: true }).decode(data)), 0);
      case "msgpack":
        return toDecoded(readMsgpack(data, maxDepth), 0);
      default:
        return { kind: "unknown", type, bytes: data, reason: "a type of another serializer" };
    }
  } catch (error) {
    return { kind: "unknown", type, bytes: data, reason: (error as Error).message };
  }
}

/** What is nested deeper would overflow the stack of whoever shows it. */
export const maxDepth = 500;
export const tooDeep = `nested more than ${maxDepth} levels deep`;

function toDecoded(value: unknown, depth: number): Decoded {
  if (depth > maxDepth) throw new Error(tooDeep);
  const below = (inner: unknown) => toDecoded(inner, depth + 1);
  switch (typeof value) {
    case "bigint":
      return { kind: "json", value: String(value) };
    case "number":
      return { kind: "json", value: Number.isFinite(value) ? value : String(value) };
    case "string":
    case "boolean":
      return { kind: "json", value };
  }
  if (value === null) return { kind: "json", value: null };
  if (value instanceof Uint8Array) return { kind: "bytes", bytes: value };
  if (Array.isArray(value)) return toList(value.map(below));
  if (value instanceof Extension) return toExtension(value, depth);
  if (value instanceof Entries) {
    return toObject(value.entries.map(([key, inner]) => [keyText(key, depth), below(inner)]));
  }
  const record = value as Record<string, unknown>;
  const made = toMade(record);
  if (made) return toConstructed(made, depth);
  if (record.lc === 2 && record.type === "undefined") return { kind: "none" };
  if (record.lc === 2 && record.type === "delta_snapshot") return below(record.value);
  const entries = Object.entries(record);
  // LangChain's mark of data that only looks like one of its objects: not read as one.
  const [[key, escaped] = ["", undefined]] = entries;
  if (entries.length === 1 && key === "__lc_escaped__") {
    return { kind: "json", value: escaped as Json };
  }
  return toObject(entries.map(([name, inner]) => [name, below(inner)]));
}

/** Something that a constructor was called for. */
interface Made {
  /** Python's module, or the names before the class's joined by dots. */
  module: string;
  name: string;
  args: unknown[];
  fields: [key: string, value: unknown][];
}

/** What a record of LangChain (`lc` 1) or of LangGraph's serializer (2) made; undefined of others. */
function toMade({ lc, type, id, args, kwargs }: Record<string, unknown>): Made | undefined {
  if ((lc !== 1 && lc !== 2) || type !== "constructor" || !Array.isArray(id)) return undefined;
  return {
    module: id.slice(0, -1).join("."),
    name: String(id.at(-1)),
    args: Array.isArray(args) ? args : [],
    fields: typeof kwargs === "object" && kwargs !== null ? Object.entries(kwargs) : [],
  };
}

/** The codes of LangGraph's Python serializer (langgraph/checkpoint/serde/jsonplus.py). */
const code = { kwArgs: 2, pydanticV1: 4, pydanticV2: 5, posArgs: 1, ndarray: 6, snapshot: 7 };

function toExtension({ code: is, data }: Extension, depth: number): Decoded {
  const inner = readMsgpack(data, maxDepth - depth);
  if (is === code.snapshot) return toDecoded(inner, depth + 1);
  if (!Array.isArray(inner) || is < 0 || is > code.snapshot) {
    throw new Error(`an extension of msgpack that LangGraph does not write (${is})`);
  }
  if (is === code.ndarray) {
    const fields = ["dtype", "shape", "order", "data"].map((key, i): [string, unknown] => [
      key,
      inner[i],
    ]);
    return toConstructed({ module: "numpy", name: "ndarray", args: [], fields }, depth);
  }
  const [module, name, arg] = inner;
  const made: Made = { module: String(module), name: String(name), args: [], fields: [] };
  const hasFields = is === code.kwArgs || is === code.pydanticV1 || is === code.pydanticV2;
  if (hasFields && arg instanceof Entries) {
    made.fields = arg.entries.map(([key, value]) => [keyText(key, depth), value]);
  } else {
    made.args = is === code.posArgs && Array.isArray(arg) ? arg : [arg];
  }
  return toConstructed(made, depth);
}

const collections = new Set(["Set", "set", "frozenset", "deque"]);

function toConstructed(made: Made, depth: number): Decoded {
  const { module, name, args, fields } = made;
  const below = (inner: unknown) => toDecoded(inner, depth + 1);
  if (/Message(Chunk)?$/.test(name) && /(^|\.)messages?(\.|$)/.test(module)) {
    return toMessage(name, fields, below);
  }
  const [first, second] = args;
  switch (name) {
    case "Uint8Array":
      if (Array.isArray(first)) return { kind: "bytes", bytes: Uint8Array.from(first) };
      break;
    case "RegExp":
      return { kind: "json", value: `/${first}/${second ?? ""}` };
    case "Map":
      if (Array.isArray(first) && first.every((entry) => Array.isArray(entry))) {
        const entries = first.map(([key, value]) => [keyText(key, depth), below(value)]);
        return { kind: "object", name, fields: entries as [string, Decoded][] };
      }
      break;
    case "datetime":
      if (typeof first === "string") return { kind: "json", value: first };
      break;
    case "date":
      if (args.length === 3 && args.every(Number.isInteger)) {
        const [year, month, day] = args.map((part) => String(part).padStart(2, "0"));
        return { kind: "json", value: `${year?.padStart(4, "0")}-${month}-${day}` };
      }
      break;
    case "UUID":
      if (typeof first === "string" && /^[\da-f]{32}$/.test(first)) {
        const text = first.replace(/^(.{8})(.{4})(.{4})(.{4})/, "$1-$2-$3-$4-");
        return { kind: "json", value: text };
      }
      break;
  }
  if (collections.has(name) && Array.isArray(first)) {
    return { kind: "list", name, items: first.map(below) };
  }
  if (fields.length === 0 && args.length > 0) {
    return { kind: "list", name, items: args.map(below) };
  }
  return { kind: "object", name, fields: fields.map(([key, value]) => [key, below(value)]) };
}

function toMessage(
  className: string,
  fields: [key: string, value: unknown][],
  below: (value: unknown) => Decoded,
): DecodedMessage {
  const message: DecodedMessage = {
    kind: "message",
    role: className.replace(/Message(Chunk)?$/, "").toLowerCase(),
    text: "",
    toolCalls: [],
    fields: [],
  };
  let blocks: unknown;
  for (const [key, value] of fields) {
    const isText = typeof value === "string";
    if (key === "content" && isText) message.text = value;
    else if (key === "content" || key === "content_blocks") {
      // JavaScript writes `content_blocks` alone of a message that was made of them.
      if (Array.isArray(value) && value.length > 0) blocks = value;
      message.fields.push([key, below(value)]);
    } else if (key === "name" && isText) message.name = value;
    else if (key === "id" && isText) message.id = value;
    else if (key === "tool_call_id" && isText) message.toolCallId = value;
    else if (key === "role" && isText && className.startsWith("Chat")) message.role = value;
    else if (key === "tool_calls" && Array.isArray(value)) {
      message.toolCalls = value.map((call) => toToolCall(call, below));
    } else if (key === "type" || ((key === "name" || key === "id") && value === null)) {
      // The class says it, or it has none.
    } else message.fields.push([key, below(value)]);
  }
  if (message.text === "") message.text = blocksText(blocks, message.toolCalls);
  return message;
}

function toToolCall(call: unknown, below: (value: unknown) => Decoded) {
  const { name, id, args } = toRecord(call);
  return {
    name: String(name ?? ""),
    ...(typeof id === "string" ? { id } : {}),
    args: below(args ?? null),
  };
}

/** The text of content in blocks: theirs, and of a block without text its type. */
function blocksText(content: unknown, calls: DecodedMessage["toolCalls"]): string {
  if (!Array.isArray(content)) return "";
  return content
    .map((block) => {
      if (typeof block === "string") return block;
      const { type, text, id } = toRecord(block);
      const isCall = type === "tool_call" || type === "tool_use";
      if (isCall && calls.some((call) => call.id === id)) return "";
      return typeof text === "string" ? text : `[${String(type ?? "block")}]`;
    })
    .join("");
}

/** A record of JSON or a map of msgpack, by its keys. */
function toRecord(value: unknown): Record<string, unknown> {
  if (value instanceof Entries) {
    return Object.fromEntries(value.entries.map(([key, inner]) => [String(key), inner]));
  }
  return typeof value === "object" && value !== null ? (value as Record<string, unknown>) : {};
}

/** A key as text; one that is no scalar, as Python allows, by what it is. */
function keyText(key: unknown, depth: number): string {
  if (typeof key === "string") return key;
  if (typeof key !== "object" || key === null) return String(key);
  const decoded = toDecoded(key, depth + 1);
  return decoded.kind === "json" ? JSON.stringify(decoded.value) : `<${decoded.kind}>`;
}

type JsonNode = Extract<Decoded, { kind: "json" }>;
const isJson = (decoded: Decoded): decoded is JsonNode => decoded.kind === "json";

/** A list, which is plain JSON where all of it is. */
function toList(items: Decoded[]): Decoded {
  if (!items.every(isJson)) return { kind: "list", items };
  return { kind: "json", value: items.map(({ value }) => value) };
}

/** An object, which is plain JSON where all of it is. fromEntries makes `__proto__` a key like others. */
function toObject(fields: [key: string, value: Decoded][]): Decoded {
  const plain: [string, Json][] = [];
  for (const [key, decoded] of fields) {
    if (!isJson(decoded)) return { kind: "object", fields };
    plain.push([key, decoded.value]);
  }
  return { kind: "json", value: Object.fromEntries(plain) };
}
