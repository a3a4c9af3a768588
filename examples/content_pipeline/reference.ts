/** The run that every other run is compared with: one process, in memory, nobody interrupts. */

import { MemorySaver } from "@langchain/langgraph";
import { approve, createBrief, revise, whatIf } from "./brief.js";
import { answer, createPipeline, type Pipeline, type State } from "./graph.js";

/**
 * Takes the demo's decisions and its fork through the pipeline; returns how each branch ends, and
 * where each checkpoint comes from, newest first.
 */
export async function runUninterrupted() {
  const saver = new MemorySaver();
  // MemorySaver forgets a value's type and reads all as JSON; in a list, bytes are JSON as well.
  const { serde } = saver;
  saver.serde = {
    dumpsTyped: (value) => serde.dumpsTyped([value]),
    loadsTyped: async (type, bytes) => (await serde.loadsTyped(type, bytes))[0],
  };
  const pipeline = createPipeline({ checkpointer: saver });
  const config = { configurable: { thread_id: "reference" } };
  await pipeline.invoke({ brief: createBrief() }, config);
  await pipeline.invoke(answer(revise), config);
  await pipeline.invoke(answer(approve), config);
  const original = (await pipeline.getState(config)).values as State;
  const past = await firstApproval(pipeline, config);
  await pipeline.invoke(
    null,
    await pipeline.updateState(past, { decisions: [whatIf] }, "approval"),
  );
  const fork = (await pipeline.getState(config)).values as State;
  const history = [];
  for await (const { metadata } of saver.list(config))
    history.push([metadata?.source, metadata?.step]);
  return { original, fork, history };
}

/** The config of the oldest checkpoint of a thread that waits for an approval. */
export async function firstApproval(
  pipeline: Pipeline,
  thread: { configurable: { thread_id: string } },
) {
  let found: Awaited<ReturnType<Pipeline["getState"]>>["config"] | undefined;
  for await (const state of pipeline.getStateHistory(thread)) {
    if (state.next.includes("approval")) found = state.config;
  }
  if (!found) throw new Error("no checkpoint waits for an approval");
  return found;
}
