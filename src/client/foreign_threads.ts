/** Whether a thread is of a graph. */
import { TASKS } from "@langchain/langgraph-checkpoint";
import type { ResumableGraph } from "./recover.js";
import type { ConnectSaver } from "./saver.js";
import type { Thread } from "./threads.js";

const INPUT = "__start__";

/**
 * Returns an error that says what the thread's checkpoint names and the graph does not have; nothing,
 * if the graph may run it. LangGraph would run such a thread without a word: it takes no notice of
 * nodes that it does not know, consumes what was for them, and marks the thread completed.
 *
 * Of a thread with the graph's name the nodes that wait count, and nothing else: it may have run
 * nodes that later versions of the graph lack. Of one without a name everything counts.
 */
export async function findForeign(
  saver: ConnectSaver,
  graph: ResumableGraph,
  thread: Thread,
): Promise<Error | undefined> {
  const { nodes, channels = {} } = graph;
  if (!nodes) return undefined;
  const unknown = new Set<string>();
  const lookFor = (kind: string, names: Iterable<string>, known: object) => {
    for (const name of names) if (!Object.hasOwn(known, name)) unknown.add(`${kind} "${name}"`);
  };
  const waiting = thread.pendingNodes;
  lookFor(
    "node",
    waiting.filter((name) => name !== TASKS && name !== INPUT),
    nodes,
  );
  // What was sent to which node is only in the values.
  const isNamed = thread.graph !== undefined;
  if (unknown.size === 0 && (!isNamed || waiting.includes(TASKS))) {
    const tuple = await saver.getTuple({ configurable: { thread_id: thread.threadId } });
    if (tuple === undefined) return undefined;
    const { checkpoint, pendingWrites = [] } = tuple;
    const { [TASKS]: sends, [INPUT]: input } = checkpoint.channel_values;
    lookFor("node", [...toNodes(sends), ...pendingWrites.flatMap(sentIn)], nodes);
    if (!isNamed) {
      const seen = Object.keys(checkpoint.versions_seen);
      lookFor(
        "node",
        seen.filter((name) => !name.startsWith("__")),
        nodes,
      );
      lookFor("channel", Object.keys(checkpoint.channel_versions), channels);
      if (waiting.includes(INPUT)) {
        const isState = typeof input === "object" && input !== null && !Array.isArray(input);
        if (!isState || !Object.hasOwn(nodes, INPUT)) unknown.add("its input");
        else lookFor("channel", Object.keys(input), channels);
      }
      if (waiting.length === 0) unknown.add("what waits in it");
    }
  }
  if (unknown.size === 0) return undefined;
  return new Error(
    `thread ${JSON.stringify(thread.threadId)} was left alone: the graph does not know ` +
      `${[...unknown].join(", ")}${isNamed ? "" : ", and the thread carries no graph's name"}`,
  );
}

const sentIn = ([, channel, value]: [string, string, unknown]) =>
  channel === TASKS ? toNodes([value]) : [];

/** The nodes that LangGraph's sends are for. */
function toNodes(sends: unknown): string[] {
  if (!Array.isArray(sends)) return [];
  return sends.flatMap((send) => (typeof send?.node === "string" ? [send.node] : []));
}
