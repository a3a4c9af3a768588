/** Workloads of whole graphs: what an agent pays, LangGraph's own work included. */
import { Annotation, END, START, StateGraph } from "@langchain/langgraph";
import type { Saver } from "./contenders.js";
import { expectSame, type Workload } from "./load.js";
import { createText } from "./text.js";

/** What one invoke of the three-node graph asks of its saver. */
const callsOfInvoke = { put: 5, putWrites: 4, getTuple: 1 };

/** An invoke of three nodes in a row, each of which writes 1 KB, on a thread of its own. */
export const invoke: Workload = {
  name: "invoke",
  operation: "an invoke of 3 nodes: 5 puts, 4 putWrites, 1 getTuple",
  async open({ saver, slots, name }) {
    const text = createText(1024);
    const write = () => text(1024);
    const graph = new StateGraph(
      Annotation.Root({
        topic: Annotation<string>,
        plan: Annotation<string>,
        draft: Annotation<string>,
        final: Annotation<string>,
      }),
    )
      .addNode("planner", () => ({ plan: write() }))
      .addNode("writer", () => ({ draft: write() }))
      .addNode("editor", () => ({ final: write() }))
      .addEdge(START, "planner")
      .addEdge("planner", "writer")
      .addEdge("writer", "editor")
      .addEdge("editor", END)
      .compile({ checkpointer: saver });
    const configOf = (threadId: string) => ({ configurable: { thread_id: threadId } });
    let count = 0;
    const last = new Map<string, unknown>();
    const invokeOnce = async (slot: number): Promise<undefined> => {
      const threadId = `${name}-${slot}-${count++}`;
      const state = await graph.invoke({ topic: write() }, configOf(threadId));
      last.set(`${slot}`, { threadId, state });
    };
    expectSame("an invoke's calls", await countCalls(saver, () => invokeOnce(0)), callsOfInvoke);
    return {
      slots: Array.from({ length: slots }, (_, slot) => () => invokeOnce(slot)),
      async verify() {
        for (const { threadId, state } of last.values() as Iterable<Record<string, string>>) {
          const found = await graph.getState(configOf(threadId!));
          expectSame("the state", found.values, state);
          expectSame("the next nodes", found.next, []);
        }
        return { checkpoints: count * callsOfInvoke.put };
      },
    };
  },
};

async function countCalls(saver: Saver, run: () => Promise<unknown>) {
  const counts = { put: 0, putWrites: 0, getTuple: 0 };
  for (const method of Object.keys(counts) as (keyof typeof counts)[]) {
    const original = saver[method].bind(saver) as (...args: unknown[]) => Promise<never>;
    saver[method] = (...args: unknown[]) => {
      counts[method] += 1;
      return original(...args);
    };
  }
  await run();
  // The methods of the class again.
  for (const method of Object.keys(counts) as (keyof typeof counts)[]) {
    delete (saver as Partial<Saver>)[method];
  }
  return counts;
}

interface Message {
  id: string;
  role: "user" | "assistant" | "tool";
  content: string;
}

/** A conversation ends at this many messages, and the slot begins another. */
const longest = 200;
/** Messages that a turn adds: the user's and nine steps of the agent loop. */
const turn = 10;
/** Characters of a message, so that it takes about 930 bytes as JSON. */
const messageLength = 860;

/**
 * A turn of a chat: the state is loaded, the user's message is added, agent and tools take nine
 * steps in turn. Threads grow from nothing to 200 messages and begin anew; with many in flight
 * they are spread evenly over all sizes, with one in flight a round is made of whole
 * conversations.
 */
export const chat: Workload = {
  name: "chat",
  operation: "a turn of 10 steps in a chat of up to 200 messages",
  slow: true,
  async open({ saver, slots, name }) {
    const text = createText(messageLength);
    let messageCount = 0;
    const write = (role: Message["role"]): Message => {
      return { id: `message-${messageCount++}`, role, content: text(messageLength) };
    };
    const append = (messages: Message[], more: Message[]) => [...messages, ...more];
    const graph = new StateGraph(
      Annotation.Root({
        messages: Annotation<Message[]>({ reducer: append, default: () => [] }),
      }),
    )
      .addNode("agent", () => ({ messages: [write("assistant")] }))
      .addNode("tools", () => ({ messages: [write("tool")] }))
      .addEdge(START, "agent")
      .addConditionalEdges("agent", ({ messages }) =>
        messages.length % turn === 0 ? END : "tools",
      )
      .addEdge("tools", "agent")
      .compile({ checkpointer: saver });

    let threadCount = 0;
    const chats = Array.from({ length: slots }, () => {
      let config = { configurable: { thread_id: "" } };
      let messages: Message[] = [];
      const begin = () => {
        config = { configurable: { thread_id: `${name}-${threadCount++}` } };
        messages = [];
      };
      begin();
      return {
        /** Puts a conversation of that length in place, untimed. */
        async start(length: number) {
          if (length === 0) return;
          const start = Array.from({ length }, () => write("assistant"));
          await graph.updateState(config, { messages: start }, "agent");
          messages = start;
        },
        async next(): Promise<undefined> {
          if (messages.length === longest) begin();
          const before = messages.length;
          const state = await graph.invoke({ messages: [write("user")] }, config);
          messages = state.messages;
          expectSame("the number of messages", messages.length, before + turn);
        },
        async verify() {
          const { values } = await graph.getState(config);
          expectSame("the messages", values.messages ?? [], messages);
        },
      };
    });
    const turns = longest / turn;
    for (const [slot, each] of chats.entries()) {
      await each.start(Math.floor((slot * turns) / slots) * turn);
    }
    return {
      slots: chats.map((each) => each.next),
      // Fewer slots than sizes: each goes through all of them.
      together: slots < turns ? turns : 1,
      async verify() {
        for (const each of chats) await each.verify();
        return {};
      },
    };
  },
};
