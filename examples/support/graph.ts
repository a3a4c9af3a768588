/**
 * A shop's support agent, on LangGraph: the agent calls tools until it has an answer, and a human decides
 * before money goes out. What a model would say is scripted, so none is called: it looks at what was asked
 * last and at what the tools answered since.
 */

import { AIMessage, type BaseMessage, ToolMessage } from "@langchain/core/messages";
import type { BaseCheckpointSaver } from "@langchain/langgraph";
import { END, interrupt, MessagesAnnotation, START, StateGraph } from "@langchain/langgraph";

/** The graph's name. */
export const GRAPH = "support";

type State = typeof MessagesAnnotation.State;

/** What the shop knows. Of the other orders its carrier does not answer. */
const orders: Record<number, { customer: string; total: string; status: string; eta: string }> = {
  1042: {
    customer: "Ada Lovelace",
    total: "129.90 EUR",
    status: "shipped",
    eta: "2026-11-27T09:00Z",
  },
};

/** How it answers a question of one kind: the tool it calls first, and what it says then. */
interface Turn {
  isAsked: RegExp;
  thought?: string;
  call: (order: number, asked: string) => { name: string; args: Record<string, unknown> };
  answer: (found: string) => string;
}

const turns: Turn[] = [
  {
    isAsked: /money back|refund/i,
    thought: "I am sorry about that. A refund needs a colleague's yes, which I am asking for.",
    call: (order, asked) => ({ name: "refund_order", args: { order, reason: asked } }),
    answer: (found) =>
      found.startsWith("approved")
        ? "It is approved: the money is on its way, and arrives within three working days."
        : "My colleagues cannot refund it as it is. Would a replacement help you?",
  },
  {
    isAsked: /where/i,
    call: (order) => ({ name: "look_up_order", args: { order, fields: ["status", "eta"] } }),
    answer: () =>
      "Order 1042 left our warehouse on Tuesday and arrives on Friday, between 9 and 12.",
  },
  {
    isAsked: /earlier/i,
    call: (order) => ({ name: "change_delivery", args: { order, slot: "earliest" } }),
    answer: () => "I have kept the address, and asked the carrier for an earlier slot on Thursday.",
  },
  {
    isAsked: /./s,
    call: (order, asked) => ({
      name: "change_delivery",
      args: { order, address: /to (.+?)(?: instead)?[.?!]*$/.exec(asked)?.[1] ?? asked },
    }),
    answer: () => "Done: it goes to that address now. Delivery is still on Friday.",
  },
];

const textOf = (message: BaseMessage | undefined) => String(message?.content ?? "");

function agent({ messages }: State) {
  const humans = messages.filter((each) => each.getType() === "human").map(textOf);
  const asked = humans.at(-1) ?? "";
  const turn = turns.find(({ isAsked }) => isAsked.test(asked)) as Turn;
  const last = messages.at(-1);
  if (last?.getType() === "tool") {
    return { messages: [new AIMessage(turn.answer(textOf(last)))] };
  }
  const order = Number(/\b\d{4}\b/.exec(humans.join("\n"))?.[0]);
  // Numbered by what was said before, as a graph that resumes elsewhere has nothing else.
  const id = `call_${messages.filter((each) => each.getType() === "tool").length + 1}`;
  const call = { id, ...turn.call(order, asked) };
  return { messages: [new AIMessage({ content: turn.thought ?? "", tool_calls: [call] })] };
}

const callOf = ({ messages }: State) => (messages.at(-1) as AIMessage).tool_calls?.[0];

function answerOf(call: ReturnType<typeof callOf>, content: string) {
  return {
    messages: [new ToolMessage({ content, name: call?.name ?? "", tool_call_id: call?.id ?? "" })],
  };
}

function tools(state: State) {
  const call = callOf(state);
  const { order } = (call?.args ?? {}) as { order: number };
  const known = orders[order];
  if (!known) throw new Error(`the carrier answered 503 to GET /parcels/${order}, three times`);
  const { status, eta } = known;
  return answerOf(call, JSON.stringify({ order, status, eta }));
}

/** Waits until a human has decided: "yes", or why not. */
function approve(state: State) {
  const call = callOf(state);
  const { order, reason } = (call?.args ?? {}) as { order: number; reason: string };
  const { customer, total } = orders[order] ?? { customer: "a stranger", total: "nothing" };
  const question = `Refund ${total} to ${customer} for order ${order}?`;
  const verdict: unknown = interrupt({ question, reason, answers: ["yes", "no"] });
  return answerOf(call, verdict === "yes" ? "approved" : `declined: ${String(verdict)}`);
}

/** Compiles the graph over `checkpointer`. State lives in the thread only, none in the graph. */
export function createSupport(checkpointer: BaseCheckpointSaver) {
  const afterAgent = (state: State) => {
    const call = callOf(state);
    if (!call) return END;
    return call.name === "refund_order" ? "approve" : "tools";
  };
  return new StateGraph(MessagesAnnotation)
    .addNode("agent", agent)
    .addNode("tools", tools)
    .addNode("approve", approve)
    .addEdge(START, "agent")
    .addConditionalEdges("agent", afterAgent, ["tools", "approve", END])
    .addEdge("tools", "agent")
    .addEdge("approve", "agent")
    .compile({ checkpointer });
}
