/**
 * A worker to kill: `begin` runs new threads, `recover` resumes what others left. Every node says
 * in the table `journal` when it begins and ends, and who runs it.
 * Arguments: the mode, the service's URL, the database's URL, the worker's name, threads or 0.
 */
import { Annotation, END, START, StateGraph } from "@langchain/langgraph";
import pg from "pg";
import { ConnectSaver, recoverThreads } from "../index.js";

const [mode, url = "", databaseUrl, worker = "", threads] = process.argv.slice(2);
const pool = new pg.Pool({ connectionString: databaseUrl, max: 2 });
const saver = ConnectSaver.fromUrl(url, { graph: "journey" });

export const nodes = ["plan", "fetch", "write", "check", "send"];

const State = Annotation.Root({
  done: Annotation<string[]>({ reducer: (a, b) => a.concat(b), default: () => [] }),
});

const note = (thread: string, node: string, what: string) =>
  pool.query("insert into journal (thread, node, worker, what) values ($1, $2, $3, $4)", [
    thread,
    node,
    worker,
    what,
  ]);

const step =
  (node: string) => async (_: unknown, config: { configurable?: { thread_id?: string } }) => {
    const thread = config.configurable?.thread_id ?? "";
    await note(thread, node, "begin");
    await new Promise((resolve) => setTimeout(resolve, 10 + Math.random() * 30));
    await note(thread, node, "end");
    return { done: [node] };
  };

const graph = new StateGraph(State)
  .addNode("plan", step("plan"))
  .addNode("fetch", step("fetch"))
  .addNode("write", step("write"))
  .addNode("check", step("check"))
  .addNode("send", step("send"))
  .addEdge(START, "plan")
  .addEdge("plan", "fetch")
  .addEdge("plan", "write")
  .addEdge(["fetch", "write"], "check")
  .addEdge("check", "send")
  .addEdge("send", END)
  .compile({ checkpointer: saver });

console.log("started");
if (mode === "begin") {
  const runs = Array.from({ length: Number(threads) }, (_, i) =>
    graph.invoke({ done: [] }, { configurable: { thread_id: `thread-${i}` }, durability: "sync" }),
  );
  await Promise.all(runs);
} else {
  await recoverThreads(saver, graph, {
    owner: worker,
    concurrency: 3,
    leaseMs: 1_000,
    graceMs: 0,
    pollMs: 50,
    config: { durability: "sync" } as never,
  });
}
