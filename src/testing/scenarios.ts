/** Graphs that leave a thread in every state it can be in, for tests of what the tables tell. */
import {
  Annotation,
  Command,
  END,
  entrypoint,
  interrupt,
  Send,
  START,
  StateGraph,
  task,
} from "@langchain/langgraph";
import type { BaseCheckpointSaver } from "@langchain/langgraph-checkpoint";

export type Durability = "async" | "sync" | "exit";

/** What LangGraph's compiled graphs have in common, as far as these tests use it. */
export interface Graph {
  invoke(input: unknown, config: object): Promise<unknown>;
  getState(config: object): Promise<{
    tasks: { name: string; error?: unknown; interrupts: unknown[] }[];
    config: object;
  }>;
  updateState(config: object, values: unknown, asNode?: string): Promise<unknown>;
  getStateHistory(config: object): AsyncIterable<{ config: object; next: string[] }>;
}

export interface Scenario {
  name: string;
  build(checkpointer: BaseCheckpointSaver): Graph;
  /** Runs the thread; whatever it throws is part of the scenario. */
  run(graph: Graph, config: object): Promise<unknown>;
}

const State = Annotation.Root({
  log: Annotation<string[]>({ reducer: (a, b) => a.concat(b), default: () => [] }),
  n: Annotation<number>({ reducer: (_, b) => b, default: () => 0 }),
});

/** Milliseconds each node takes, for workers that are killed. */
export const pace = { ms: 0 };

const work = (name: string) => async () => {
  if (pace.ms > 0) await new Promise((resolve) => setTimeout(resolve, Math.random() * pace.ms));
  return { log: [name] };
};
const fail = async () => {
  await work("fail")();
  throw new Error("as asked");
};
const ask = (name: string) => async () => {
  const answer = interrupt(`${name}?`);
  await work(name)();
  return { log: [`${name}:${answer}`] };
};
const start = (graph: Graph, config: object) => graph.invoke({ log: ["in"] }, config);

type Builder = StateGraph<typeof State, typeof State.State, typeof State.Update, string>;
const builder = () => new StateGraph(State) as unknown as Builder;
const compile = (graph: Builder, checkpointer: BaseCheckpointSaver, more = {}) =>
  graph.compile({ checkpointer, ...more }) as unknown as Graph;

const linear = () =>
  builder()
    .addNode("a", work("a"))
    .addNode("b", work("b"))
    .addNode("c", work("c"))
    .addEdge(START, "a")
    .addEdge("a", "b")
    .addEdge("b", "c")
    .addEdge("c", END);

const fanOut = (c: () => Promise<object>, defer = false) =>
  builder()
    .addNode("a", work("a"))
    .addNode("b", work("b"))
    .addNode("c", c as never)
    .addNode("slow", work("slow"))
    .addNode("join", work("join"), { defer })
    .addEdge(START, "a")
    .addEdge("a", "b")
    .addEdge("a", "c")
    .addEdge("b", "slow")
    .addEdge(["slow", "c"], "join")
    .addEdge("join", END);

const inner = (node: () => Promise<object>) =>
  builder()
    .addNode("deep", work("deep"))
    .addNode("deeper", node as never)
    .addEdge(START, "deep")
    .addEdge("deep", "deeper")
    .compile();

const outer = (node: () => Promise<object>) =>
  builder()
    .addNode("before", work("before"))
    .addNode("sub", inner(node) as never)
    .addNode("after", work("after"))
    .addEdge(START, "before")
    .addEdge("before", "sub")
    .addEdge("sub", "after");

export const scenarios: Scenario[] = [
  { name: "linear", build: (saver) => compile(linear(), saver), run: start },
  {
    name: "conditional edges",
    build: (saver) =>
      compile(
        builder()
          .addNode("a", work("a"))
          .addNode("left", work("left"))
          .addNode("right", work("right"))
          .addEdge(START, "a")
          .addConditionalEdges("a", () => ["left", "right"])
          .addConditionalEdges("left", () => END),
        saver,
      ),
    run: start,
  },
  { name: "fan-out and join", build: (saver) => compile(fanOut(work("c")), saver), run: start },
  {
    name: "join of three, names beyond ASCII",
    build: (saver) =>
      compile(
        builder()
          .addNode("à", work("à"))
          .addNode("ß", work("ß"))
          .addNode("日本", work("日本"))
          .addNode("after", work("after"))
          .addEdge(START, "à")
          .addEdge("à", "ß")
          .addEdge("à", "日本")
          .addEdge(["à", "ß", "日本"], "after"),
        saver,
      ),
    run: start,
  },
  {
    name: "deferred join",
    build: (saver) => compile(fanOut(work("c"), true), saver),
    run: start,
  },
  {
    name: "sends",
    build: (saver) =>
      compile(
        builder()
          .addNode("plan", work("plan"))
          .addNode("each", work("each"))
          .addNode("sum", work("sum"))
          .addEdge(START, "plan")
          .addConditionalEdges("plan", () => [1, 2, 3].map((n) => new Send("each", { n })))
          .addEdge("each", "sum"),
        saver,
      ),
    run: start,
  },
  {
    name: "loop",
    build: (saver) =>
      compile(
        builder()
          .addNode("step", async ({ n }) => ({ ...(await work("step")()), n: n + 1 }))
          .addEdge(START, "step")
          .addConditionalEdges("step", ({ n }) => (n < 4 ? "step" : END)),
        saver,
      ),
    run: start,
  },
  { name: "error", build: (saver) => compile(fanOut(fail), saver), run: start },
  {
    name: "error, then tried again and well",
    build: (saver) => {
      let tries = 0;
      const node = async () => {
        if (++tries % 2 === 1) throw new Error("once");
        return { log: ["c"] };
      };
      return compile(fanOut(node), saver);
    },
    run: async (graph, config) => {
      await start(graph, config).catch(() => {});
      await graph.invoke(null, config);
    },
  },
  { name: "interrupt", build: (saver) => compile(fanOut(ask("c")), saver), run: start },
  {
    name: "interrupt, answered",
    build: (saver) => compile(fanOut(ask("c")), saver),
    run: async (graph, config) => {
      await start(graph, config);
      await graph.invoke(new Command({ resume: "yes" }), config);
    },
  },
  {
    name: "two interrupts in one node, one answered",
    build: (saver) =>
      compile(
        builder()
          .addNode("both", async () => ({ log: [`${interrupt("1?")}${interrupt("2?")}`] }))
          .addEdge(START, "both"),
        saver,
      ),
    run: async (graph, config) => {
      await start(graph, config);
      await graph.invoke(new Command({ resume: "first" }), config);
    },
  },
  { name: "subgraph", build: (saver) => compile(outer(work("deeper")), saver), run: start },
  { name: "subgraph with an error", build: (saver) => compile(outer(fail), saver), run: start },
  {
    name: "subgraph with an interrupt",
    build: (saver) => compile(outer(ask("deeper")), saver),
    run: start,
  },
  {
    name: "Command: goto and update",
    build: (saver) =>
      compile(
        builder()
          .addNode(
            "a",
            (async () => new Command({ goto: "c", update: await work("a")() })) as never,
            {
              ends: ["b", "c"],
            },
          )
          .addNode("b", work("b"))
          .addNode("c", work("c"))
          .addEdge(START, "a"),
        saver,
      ),
    run: start,
  },
  {
    name: "Command from outside: goto",
    build: (saver) => compile(linear(), saver),
    run: async (graph, config) => {
      await start(graph, config);
      await graph.invoke(new Command({ goto: "b", update: { log: ["again"] } }), config);
    },
  },
  {
    name: "updateState as a node",
    build: (saver) => compile(linear(), saver),
    run: async (graph, config) => {
      await start(graph, config);
      await graph.updateState(config, { log: ["edited"] }, "a");
    },
  },
  {
    name: "fork of an old checkpoint",
    build: (saver) => compile(linear(), saver),
    run: async (graph, config) => {
      await start(graph, config);
      const old: object[] = [];
      for await (const each of graph.getStateHistory(config)) old.push(each.config);
      const fork = await graph.updateState(old[2] as object, { log: ["forked"] });
      await graph.invoke(null, fork as object);
    },
  },
  {
    name: "a second input",
    build: (saver) => compile(linear(), saver),
    run: async (graph, config) => {
      await start(graph, config);
      await start(graph, config);
    },
  },
  {
    name: "pause before a node",
    build: (saver) => compile(linear(), saver, { interruptBefore: ["b"] }),
    run: start,
  },
  {
    name: "pause after a node",
    build: (saver) => compile(linear(), saver, { interruptAfter: ["a"] }),
    run: start,
  },
  {
    name: "functional",
    build: (saver) => {
      const one = task("one", async (n: number) => n + 1);
      const two = task("two", async (n: number) => n * 2);
      return entrypoint({ checkpointer: saver, name: "flow" }, async (n: number) =>
        two(await one(n)),
      ) as unknown as Graph;
    },
    run: (graph, config) => graph.invoke(3, config),
  },
];
