/**
 * Whether what LangGraph's serializer wrote can be read again. It writes any object of LangChain's by
 * its class's name, and reads only those whose class LangChain exports: a message of a class of one's
 * own, or a model from a package of its own, would make the thread unreadable, with every saver.
 */
import { Buffer } from "node:buffer";
import type { SerializerProtocol } from "@langchain/langgraph-checkpoint";

/** How such an object begins; within a text its quotes would be escaped. */
const beginning = Buffer.from('"lc":1,"type":"constructor","id":[');
const endOfId = "]".charCodeAt(0);

/** Classes that were read: there are few, but a value may look like an object of any. */
const readable = new Set<string>();
const mostReadable = 1_000;

/** The classes named in JSON of which it is not known that they can be read; 0.3 µs an object. */
export function findClasses(json: Uint8Array): string[] {
  const bytes = Buffer.from(json.buffer, json.byteOffset, json.byteLength);
  const unknown = new Set<string>();
  // Most are of the class of the one before, which is told by its bytes.
  let last = bytes.subarray(0, 0);
  for (let at = bytes.indexOf(beginning); at >= 0; at = bytes.indexOf(beginning, at)) {
    const start = at + beginning.length;
    at = start + last.length;
    if (last.length > 0 && last.compare(bytes, start, Math.min(at, bytes.length)) === 0) continue;
    at = bytes.indexOf(endOfId, start) + 1;
    if (at === 0) break;
    last = bytes.subarray(start, at);
    const id = last.toString("latin1", 0, last.length - 1);
    if (!readable.has(id)) unknown.add(id);
  }
  return [...unknown];
}

/** Reads JSON with those classes. Returns why that is not possible, or nothing. */
export async function whyUnreadable(
  serde: SerializerProtocol,
  json: Uint8Array,
  classes: readonly string[],
): Promise<string | undefined> {
  try {
    await serde.loadsTyped("json", json);
  } catch {
    // What was thrown holds the whole value.
    const names = classes.map((id) => id.replaceAll('"', "").replaceAll(",", "/"));
    return `LangChain could not read it again: it does not know ${names.join(" or ")}`;
  }
  if (readable.size >= mostReadable) readable.clear();
  for (const id of classes) readable.add(id);
  return undefined;
}
