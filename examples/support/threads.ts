/** Conversations to look at: one that was asked otherwise and waits for a human, and one that failed. */

import { HumanMessage } from "@langchain/core/messages";
import { ConnectSaver } from "../../src/index.js";
import { createSupport, GRAPH } from "./graph.js";

/** The threads that {@link leaveConversations} leaves, and what there is to see. */
export const conversations = {
  failed: "demo/support/charles-babbage",
  waiting: "demo/support/ada-lovelace",
} as const;

/** Holds them anew on the service at `url`; nothing of an earlier time is left in them. */
export async function leaveConversations(url: string): Promise<void> {
  const saver = ConnectSaver.fromUrl(url, { graph: GRAPH });
  const graph = createSupport(saver);
  const ask = (text: string) => ({ messages: [new HumanMessage(text)] });
  const configOf = (thread_id: string) => ({ configurable: { thread_id } });
  try {
    for (const thread of Object.values(conversations)) await saver.deleteThread(thread);

    const babbage = configOf(conversations.failed);
    // It is the tool's error that is to be seen.
    await graph.invoke(ask("Where is my order 2718?"), babbage).catch(() => {});

    const ada = configOf(conversations.waiting);
    await graph.invoke(ask("Hi! Where is my order 1042?"), ada);
    const { config: answered } = await graph.getState(ada);
    await graph.invoke(ask("Please send it to 12 St James's Square instead."), ada);
    // The same thread from its past: what if she had written this instead?
    const broken = "It came, but the glass is broken. Can I have my money back?";
    await graph.invoke(ask(broken), answered);
  } finally {
    await saver.end();
  }
}
