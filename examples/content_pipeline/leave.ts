/** Threads that the demo leaves for people to look at, in a service that goes on. */

import { ConnectSaver } from "../../src/index.js";
import { conversations, leaveConversations } from "../support/threads.js";
import { createBrief } from "./brief.js";
import { say } from "./checks.js";
import { createPipeline, GRAPH } from "./graph.js";

/** What begins the ids of all that the demo stores. */
const PREFIX = "demo/";

const campaigns = {
  done: `${PREFIX}content-pipeline/hearth-mini`,
  waiting: `${PREFIX}content-pipeline/next`,
} as const;

/**
 * Holds the conversations anew, and copies the campaign `thread`, which ends twice, beside one that waits
 * for its human. Touches no thread but these four, whose state of an earlier time is deleted.
 */
export async function leaveThreads(url: string, thread: string): Promise<void> {
  const saver = ConnectSaver.fromUrl(url, { graph: GRAPH });
  try {
    for (const left of Object.values(campaigns)) await saver.deleteThread(left);
    await saver.threads.copy(thread, campaigns.done);
    const waiting = { configurable: { thread_id: campaigns.waiting } };
    await createPipeline({ checkpointer: saver }).invoke({ brief: createBrief() }, waiting);
  } finally {
    await saver.end();
  }
  // Last, so that they are the latest.
  await leaveConversations(url);
}

/** Says what there is to see, how it goes away, and the page's address in the last line. */
export function sayWhatIsLeft(url: string, goesOn: boolean): void {
  say("\nFour threads are left to look at:");
  for (const [thread, what] of [
    [conversations.waiting, "a conversation that waits for an answer, and its fork"],
    [conversations.failed, "one whose tool failed"],
    [campaigns.waiting, "a campaign that waits for its human"],
    [campaigns.done, "the campaign of this demo, which ends twice"],
  ] as const) {
    say(`   ${thread.padEnd(36)}${what}`);
  }
  if (goesOn) {
    const at = url === "http://127.0.0.1:8080" ? "" : ` --url ${url}`;
    say("This deletes them:");
    say(`   node dist/src/cli/main.js threads prune --delete --prefix ${PREFIX}${at}`);
  } else {
    say("They go, with the service, when Enter is pressed.");
  }
  if (url.startsWith("http")) say(`\nOpen ${url.replace(/\/*$/, "/")}`);
}
