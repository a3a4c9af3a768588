/**
 * One worker: a process of its own that takes one thread of the pipeline one run further.
 *
 *   node worker.js start                      begin the thread with the demo's brief
 *   node worker.js resume '{"verdict": …}'    answer the human's interrupt
 *   node worker.js continue [checkpoint_id]   go on where the thread, or a fork of it, stands
 *   node worker.js recover                    finish what a worker that was killed left of it
 *
 * Options: `--url` of the service, `--thread`, `--journal` (a file to which every execution of a
 * node is appended, one JSON line each), `--name` of the worker in it, and `--hang-at` a scene,
 * whose visual prompt then never answers. Started by `fork()`, the result goes to the parent,
 * structured-cloned; started by hand, to stdout. Exit code 0: the run ended or waits for a human.
 */

import { inspect, parseArgs } from "node:util";
import { INTERRUPT } from "@langchain/langgraph";
import { ConnectSaver, recoverThreads } from "../../src/index.js";
import { createBrief, type Decision } from "./brief.js";
import { answer, createPipeline, GRAPH, type Pipeline } from "./graph.js";
import { appendLine } from "./journal.js";

/** What a worker hands to its parent: the state in its memory, and the interrupt it met. */
export interface WorkerResult {
  values: Record<string, unknown>;
  interrupt?: unknown;
}

const { values: options, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    url: { type: "string", default: "http://127.0.0.1:8080" },
    thread: { type: "string", default: "launch" },
    journal: { type: "string" },
    name: { type: "string", default: `worker ${process.pid}` },
    "hang-at": { type: "string" },
  },
});

// A worker whose parent is gone must not hang on.
if (process.send) process.once("disconnect", () => process.exit());

const saver = ConnectSaver.fromUrl(options.url, { graph: GRAPH });
const pipeline = createPipeline({
  checkpointer: saver,
  record: (step) => {
    const { journal, name: worker } = options;
    if (journal) appendLine(journal, { worker, ...step });
  },
  beforeScene: async (sceneId) => {
    if (sceneId === options["hang-at"]) await new Promise(() => setInterval(() => {}, 1000));
  },
});

const [command, argument] = positionals;
const checkpoint = command === "continue" && argument ? { checkpoint_id: argument } : {};
const config = { configurable: { thread_id: options.thread, ...checkpoint } };
const state = command === "recover" ? await recover() : await pipeline.invoke(input(), config);
const { [INTERRUPT]: interrupts, ...values } = state as typeof state & {
  [INTERRUPT]?: { value?: unknown }[];
};
const result: WorkerResult = { values, interrupt: interrupts?.[0]?.value };
await saver.end();

if (process.send) process.send(result, () => process.disconnect());
else console.log(inspect(result, { depth: 4 }));

/**
 * As a recovery worker does for all threads of the graph, here for one. No grace: the demo knows that
 * the worker before is dead.
 */
async function recover() {
  const summary = await recoverThreads(saver, pipeline, { prefix: options.thread, graceMs: 0 });
  if (summary.resumed !== 1) throw new Error(`nothing was recovered: ${inspect(summary)}`);
  return (await pipeline.getState(config)).values;
}

function input(): Parameters<Pipeline["invoke"]>[0] {
  switch (command) {
    case "start":
      return { brief: createBrief() };
    case "resume":
      return answer(JSON.parse(argument ?? "") as Decision);
    case "continue":
      return null;
    default:
      throw new Error(`start, resume, continue or recover is expected, not ${command}`);
  }
}
