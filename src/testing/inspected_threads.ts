/** Threads to be looked at in a browser: real graphs, run until they ask, fail, fork or end. */
import { AIMessage, type BaseMessage, HumanMessage } from "@langchain/core/messages";
import { Annotation, Command, END, interrupt, START, StateGraph } from "@langchain/langgraph";
import type { BaseCheckpointSaver } from "@langchain/langgraph-checkpoint";
import { createSupport } from "../../examples/support/graph.js";

/** A picture of 2 by 2 points. */
const png = Buffer.from(
  "iVBORw0KGgoAAAANSUhEUgAAAAIAAAACCAIAAAD91JpzAAAAFElEQVR4nGP4z8Dw/z8DAwMDAwMADfAB/zZ5wLkAAAAASUVORK5CYII=",
  "base64",
);

/** What an agent may store to find out whether a page runs it. */
export const hostileText = `<img src=x onerror="globalThis.wasRun = true"><script>globalThis.wasRun = true</script>`;

export const ids = {
  chat: "support/ada-lovelace",
  question: "refund/order-1042",
  failed: "nightly/import-2026-11-26",
  nested: "research/quantum-batteries",
  values: "report/q4",
  hostile: `hostile/${hostileText}`,
} as const;

const configOf = (thread_id: string) => ({ configurable: { thread_id } });

/** A conversation of two turns, of which the second was also asked otherwise. */
async function chat(checkpointer: BaseCheckpointSaver): Promise<void> {
  const graph = createSupport(checkpointer);
  const config = configOf(ids.chat);
  const ask = (text: string) => ({ messages: [new HumanMessage(text)] });
  await graph.invoke(ask("Hi! Where is my order 1042?"), config);
  const { config: after } = await graph.getState(config);
  await graph.invoke(ask("Please send it to 12 St James's Square instead."), config);
  await graph.invoke(ask("Could it come earlier instead?"), after);
}

const Refund = Annotation.Root({
  order: Annotation<{ id: number; total: number; currency: string }>,
  decision: Annotation<string>,
});

/** Waits for a human. */
async function question(checkpointer: BaseCheckpointSaver): Promise<void> {
  const graph = new StateGraph(Refund)
    .addNode("collect", () => ({ order: { id: 1042, total: 129.9, currency: "EUR" } }))
    .addNode("approve", ({ order }) => ({
      decision: interrupt({
        question: `Refund ${order.total} ${order.currency} to Ada Lovelace for order ${order.id}?`,
        reason: "arrived broken",
      }) as string,
    }))
    .addNode("pay", () => ({}))
    .addEdge(START, "collect")
    .addEdge("collect", "approve")
    .addEdge("approve", "pay")
    .addEdge("pay", END)
    .compile({ checkpointer });
  await graph.invoke({}, configOf(ids.question));
}

/** Answers what `question` asks. */
export async function answerQuestion(checkpointer: BaseCheckpointSaver): Promise<void> {
  const graph = new StateGraph(Refund)
    .addNode("collect", () => ({}))
    .addNode("approve", () => ({ decision: interrupt("?") as string }))
    .addNode("pay", () => ({}))
    .addEdge(START, "collect")
    .addEdge("collect", "approve")
    .addEdge("approve", "pay")
    .addEdge("pay", END)
    .compile({ checkpointer });
  await graph.invoke(new Command({ resume: "yes" }), configOf(ids.question));
}

const Import = Annotation.Root({ rows: Annotation<number>, file: Annotation<string> });

async function failed(checkpointer: BaseCheckpointSaver): Promise<void> {
  const graph = new StateGraph(Import)
    .addNode("download", () => ({ file: "orders-2026-11-26.csv", rows: 48_211 }))
    .addNode("load", (): Promise<Partial<typeof Import.State>> => {
      throw new TypeError("line 30117: the column total is not a number");
    })
    .addEdge(START, "download")
    .addEdge("download", "load")
    .compile({ checkpointer });
  await graph.invoke({ file: "" }, configOf(ids.failed)).catch(() => {});
}

const Research = Annotation.Root({ topic: Annotation<string>, notes: Annotation<string[]> });

/** A graph with a graph in it. */
async function nested(checkpointer: BaseCheckpointSaver): Promise<void> {
  const reader = new StateGraph(Research)
    .addNode("search", () => ({ notes: ["three papers on superabsorption"] }))
    .addNode("read", ({ notes }) => ({ notes: [...notes, "charging scales with the square root"] }))
    .addEdge(START, "search")
    .addEdge("search", "read")
    .compile();
  const graph = new StateGraph(Research)
    .addNode("reader", reader)
    .addNode("write", ({ notes }) => ({ notes: [...notes, "a page of summary"] }))
    .addEdge(START, "reader")
    .addEdge("reader", "write")
    .compile({ checkpointer });
  await graph.invoke({ topic: "quantum batteries", notes: [] }, configOf(ids.nested));
}

const Report = Annotation.Root({
  prices: Annotation<Map<string, { net: number; gross: number }>>,
  tags: Annotation<Set<string>>,
  due: Annotation<string>,
  chart: Annotation<Uint8Array>,
  summary: Annotation<string>,
  settings: Annotation<Record<string, unknown>>,
});

/** Values of many kinds, of which the second step changes some. */
async function values(checkpointer: BaseCheckpointSaver): Promise<void> {
  const graph = new StateGraph(Report)
    .addNode("gather", () => ({
      prices: new Map([
        ["basic", { net: 10, gross: 11.9 }],
        ["pro", { net: 40, gross: 47.6 }],
      ]),
      tags: new Set(["draft", "internal"]),
      due: "2026-12-01T09:00:00.000Z",
      chart: new Uint8Array(png),
      summary: "Revenue grew by 4 % in the fourth quarter, mostly in the north.",
      settings: { locale: "en", retries: 3, nested: { deep: { deeper: ["a", "b", null, true] } } },
    }))
    .addNode("polish", () => ({
      tags: new Set(["internal", "approved"]),
      summary: "Revenue grew by 14 % in the fourth quarter, mostly in the north.",
      settings: { locale: "en", retries: 5, nested: { deep: { deeper: ["a", "c", null, true] } } },
    }))
    .addEdge(START, "gather")
    .addEdge("gather", "polish")
    .compile({ checkpointer });
  await graph.invoke({ summary: "" }, configOf(ids.values));
}

async function hostile(checkpointer: BaseCheckpointSaver): Promise<void> {
  const Hostile = Annotation.Root({
    messages: Annotation<BaseMessage[]>,
    [hostileText]: Annotation<unknown>,
  });
  const graph = new StateGraph(Hostile)
    .addNode("say", () => ({
      messages: [
        new AIMessage({
          content: hostileText,
          name: hostileText,
          tool_calls: [
            { name: hostileText, id: hostileText, args: { [hostileText]: hostileText } },
          ],
        }),
      ],
      [hostileText]: { [hostileText]: hostileText, __proto__: { polluted: true } },
    }))
    .addNode("ask", () => {
      interrupt(hostileText);
      return {};
    })
    .addEdge(START, "say")
    .addEdge("say", "ask")
    .compile({ checkpointer });
  const config = { ...configOf(ids.hostile), metadata: { [hostileText]: hostileText } };
  await graph.invoke({ messages: [new HumanMessage(hostileText)] }, config);
}

/** Runs them all, one after the other: the hostile one is the latest unless it is left out. */
export async function runThreads(
  checkpointer: BaseCheckpointSaver,
  withHostile = true,
): Promise<void> {
  for (const run of [failed, question, nested, values, chat]) await run(checkpointer);
  if (withHostile) await hostile(checkpointer);
}
