/**
 * Whatever a graph asks of its checkpointer: each scenario is run on LangGraph's MemorySaver and on
 * ours, and everything that can be seen of it is the same, read by another process's saver too.
 */
import {
  Annotation,
  Command,
  DeltaChannel,
  END,
  entrypoint,
  interrupt,
  MemorySaver,
  Send,
  START,
  StateGraph,
  task,
  UntrackedValueChannel,
} from "@langchain/langgraph";
import * as checkpoint from "@langchain/langgraph-checkpoint";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { Server } from "../server/server.js";
import { createDatabase, type TestDatabase } from "../testing/postgres.js";
import { startTestServer } from "../testing/test_server.js";
import { keyring } from "./encryption_keys.js";
import { ConnectSaver } from "./saver.js";

let database: TestDatabase;
let server: Server;
const savers: ConnectSaver[] = [];
beforeAll(async () => {
  database = await createDatabase();
  server = await startTestServer(database.url);
});
afterAll(async () => {
  for (const saver of savers) await saver.end();
  await server?.drain();
  await database?.drop();
});

function connect(options: Parameters<typeof ConnectSaver.fromUrl>[1] = {}): ConnectSaver {
  const saver = ConnectSaver.fromUrl(server.url, options);
  savers.push(saver);
  return saver;
}

type Saver = checkpoint.BaseCheckpointSaver<number> | ConnectSaver;
/** What is used of a compiled graph here; the types of each are its own. */
interface Graph {
  invoke(input: unknown, config: object): Promise<unknown>;
  getState(config: object, options?: object): Promise<Snapshot>;
  getStateHistory(config: object): AsyncIterable<Snapshot>;
  updateState(config: object, values: unknown, asNode?: string): Promise<object>;
}
interface Snapshot {
  values: unknown;
  next: string[];
  config: object;
  metadata?: { source?: string; step?: number };
  tasks: { name: string; error?: unknown; interrupts: { value?: unknown }[]; state?: unknown }[];
}
const asGraph = (compiled: unknown) => compiled as Graph;

/** What does not differ from run to run, which ids and times do. */
const seen = ({ values, next, metadata, tasks }: Snapshot): unknown => ({
  values,
  next,
  source: metadata?.source,
  step: metadata?.step,
  tasks: tasks.map(({ name, error, interrupts, state }) => ({
    name,
    error: error === undefined ? undefined : String((error as Error).message ?? error),
    interrupts: interrupts.map(({ value }) => value),
    state: state && typeof state === "object" && "values" in state ? seen(state as Snapshot) : null,
  })),
});

/** Everything a graph tells of a thread. */
async function everything(graph: Graph, thread: object): Promise<unknown> {
  const history = [];
  for await (const snapshot of graph.getStateHistory(thread)) history.push(seen(snapshot));
  return { state: seen(await graph.getState(thread, { subgraphs: true })), history };
}

/** What a call came to. */
const outcome = (call: Promise<unknown>) =>
  call.then(
    (value) => withoutIds(value),
    (error: Error) => `${error.name}: ${error.message}`,
  );

function withoutIds(value: unknown): unknown {
  if (typeof value !== "object" || value === null || !("__interrupt__" in value)) return value;
  const asked = (value as { __interrupt__: { value: unknown }[] }).__interrupt__;
  return { ...value, __interrupt__: asked.map((each) => each.value) };
}

const appended = Annotation<string[]>({ reducer: (a, b) => [...a, ...b], default: () => [] });
const Log = Annotation.Root({ log: appended });
const Delta = Annotation.Root({
  log: () =>
    new DeltaChannel(
      (state: string[] | undefined, writes: string[][]) => [...(state ?? []), ...writes.flat()],
      { initialValueFactory: () => [] },
    ),
});

/** Five nodes at once, named against the order in which they are added. */
function fan(schema: typeof Log | typeof Delta, saver: Saver, extra: object = {}): Graph {
  // biome-ignore lint/suspicious/noExplicitAny: a graph's type holds the names of its nodes.
  const graph = new StateGraph(schema as typeof Log) as any;
  for (const name of ["e", "b", "d", "a", "c"]) {
    graph.addNode(name, () => ({ log: [name] }));
    graph.addEdge(START, name).addEdge(name, "join");
  }
  graph.addNode("join", ({ log }: { log: string[] }) => ({ log: [`joined ${log.length}`] }));
  return asGraph(graph.addEdge("join", END).compile({ checkpointer: saver, ...extra }));
}

/**
 * Before checkpoint 1.2 LangGraph had no order for what parallel nodes write to a delta channel:
 * what is compared then is what there is.
 */
const hasOrder = "compareWritesSortKeys" in checkpoint;
const comparable = (delta: boolean, result: unknown): unknown =>
  delta && !hasOrder
    ? JSON.parse(JSON.stringify(result), (key, value) => (key === "log" ? value.sort() : value))
    : result;

type Scenario = (saver: Saver, thread: object) => Promise<unknown>;
const scenarios: Record<string, Scenario> = {};

for (const durability of ["sync", "async", "exit"]) {
  for (const [kind, schema] of Object.entries({ values: Log, "a delta channel": Delta })) {
    scenarios[`durability ${durability}, ${kind} of parallel nodes`] = async (saver, thread) => {
      const config = { ...thread, durability };
      const live = [];
      // Each run by a graph of its own, as by another process.
      for (const input of ["one", "two", "three"]) {
        live.push(await fan(schema, saver).invoke({ log: [input] }, config));
      }
      const cold = await everything(fan(schema, saver), thread);
      return comparable(schema === Delta, { live, cold });
    };
  }

  scenarios[`durability ${durability}, a node that fails and goes on later`] = async (
    saver,
    thread,
  ) => {
    let broken = true;
    const graph = asGraph(
      new StateGraph(Log)
        .addNode("first", () => ({ log: ["first"] }))
        .addNode("beside", () => ({ log: ["beside"] }))
        .addNode("second", () => {
          if (broken) throw new Error("the printer is on fire");
          return { log: ["second"] };
        })
        .addEdge(START, "first")
        .addEdge("first", "second")
        .addEdge("first", "beside")
        .compile({ checkpointer: saver as never }),
    );
    const config = { ...thread, durability };
    const failed = await outcome(graph.invoke({ log: ["in"] }, config));
    const after = await everything(graph, thread);
    broken = false;
    return { failed, after, resumed: await outcome(graph.invoke(null, config)) };
  };
}

scenarios["interrupts of parallel nodes, answered one by one and by id"] = async (
  saver,
  thread,
) => {
  const graph = asGraph(
    new StateGraph(Log)
      .addNode("a", () => ({ log: [`a ${interrupt("a?")} ${interrupt("a again?")}`] }))
      .addNode("b", () => ({ log: [`b ${interrupt("b?")}`] }))
      .addNode("c", () => ({ log: ["c"] }))
      .addEdge(START, "a")
      .addEdge(START, "b")
      .addEdge(START, "c")
      .compile({ checkpointer: saver as never }),
  );
  const asked = await outcome(graph.invoke({ log: [] }, thread));
  const waiting = await everything(graph, thread);
  const ids = async () => {
    const { tasks } = await graph.getState(thread);
    return tasks.flatMap(({ interrupts }) => interrupts) as { id: string; value: string }[];
  };
  const first = (await ids()).find(({ value }) => value === "b?")?.id as string;
  const one = await outcome(graph.invoke(new Command({ resume: { [first]: "yes" } }), thread));
  const rest = [];
  while ((await ids()).length > 0) {
    const [{ id, value }] = (await ids()) as [{ id: string; value: string }];
    const resume = { [id]: `to ${value}` };
    rest.push(await outcome(graph.invoke(new Command({ resume }), thread)));
  }
  return { asked, waiting, one, rest, end: await everything(graph, thread) };
};

scenarios["Send, one of which fails once, and a retry"] = async (saver, thread) => {
  let failures = 1;
  let flaky = 2;
  const graph = asGraph(
    new StateGraph(Log)
      .addNode("scene", (({ n }: { n: number }) => {
        if (n === 2 && failures-- > 0) throw new Error("scene 2");
        return { log: [`scene ${n}`] };
      }) as never)
      .addNode(
        "flaky",
        () => {
          if (flaky-- > 0) throw new Error("not yet");
          return { log: ["flaky"] };
        },
        {
          retryPolicy: {
            maxAttempts: 3,
            initialInterval: 1,
            maxInterval: 1,
            jitter: false,
            logWarning: false,
            retryOn: () => true,
          },
        },
      )
      .addConditionalEdges(START, () => [1, 2, 3].map((n) => new Send("scene", { n })), ["scene"])
      .addEdge("scene", "flaky")
      .compile({ checkpointer: saver as never }),
  );
  const failed = await outcome(graph.invoke({ log: ["in"] }, thread));
  const after = await everything(graph, thread);
  const resumed = await outcome(graph.invoke(null, thread));
  return { failed, after, resumed, end: await everything(graph, thread) };
};

scenarios["an error handler's node, and one that fails itself"] = async (saver, thread) => {
  let handlerFails = true;
  const graph = asGraph(
    new StateGraph(Log)
      .addNode(
        "work",
        () => {
          throw new Error("out of paper");
        },
        {
          errorHandler: ((_state: unknown, { error }: { error: Error }) => {
            if (handlerFails) throw new Error("no handler either");
            return new Command({ update: { log: [`handled ${error.message}`] }, goto: "after" });
          }) as never,
          ends: ["after"],
        },
      )
      .addNode("after", () => ({ log: ["after"] }))
      .addEdge(START, "work")
      .compile({ checkpointer: saver as never }),
  );
  const failed = await outcome(graph.invoke({ log: ["in"] }, thread));
  const after = await everything(graph, thread);
  handlerFails = false;
  const resumed = await outcome(graph.invoke(null, thread));
  return { failed, after, resumed, end: await everything(graph, thread) };
};

scenarios["a node's cache"] = async (saver, thread) => {
  let runs = 0;
  const graph = asGraph(
    new StateGraph(Log)
      .addNode("slow", () => ({ log: [`slow ${++runs}`] }), {
        cachePolicy: { keyFunc: () => "always the same" },
      })
      .addNode("after", () => ({ log: ["after"] }))
      .addEdge(START, "slow")
      .addEdge("slow", "after")
      .compile({ checkpointer: saver as never, cache: new checkpoint.InMemoryCache() }),
  );
  const live = [
    await graph.invoke({ log: ["one"] }, thread),
    await graph.invoke({ log: ["two"] }, thread),
  ];
  return { live, runs, end: await everything(graph, thread) };
};

scenarios["Command: goto, update, and to the parent"] = async (saver, thread) => {
  const child = new StateGraph(Log)
    .addNode(
      "inner",
      () => new Command({ graph: Command.PARENT, update: { log: ["inner"] }, goto: "last" }),
    )
    .addEdge(START, "inner")
    .compile();
  const graph = asGraph(
    new StateGraph(Log)
      .addNode("first", () => new Command({ update: { log: ["first"] }, goto: "child" }), {
        ends: ["child", "detour"],
      })
      .addNode("child", child, { ends: ["last"] })
      .addNode("last", () => ({ log: [`last ${interrupt("ok?")}`] }))
      .addNode("detour", () => ({ log: ["detour"] }))
      .addEdge(START, "first")
      .compile({ checkpointer: saver as never }),
  );
  const asked = await outcome(graph.invoke({ log: ["in"] }, thread));
  const steered = await outcome(
    graph.invoke(new Command({ update: { log: ["edited"] }, resume: "yes" }), thread),
  );
  const moved = await outcome(
    graph.invoke(new Command({ update: { log: ["again"] }, goto: "detour" }), thread),
  );
  return { asked, steered, moved, end: await everything(graph, thread) };
};

for (const own of [undefined, true, false]) {
  scenarios[`a subgraph whose checkpointer is ${own}, run twice, interrupted inside`] = async (
    saver,
    thread,
  ) => {
    const child = new StateGraph(Log)
      .addNode("step", () => ({ log: ["step"] }))
      .addNode("ask", ({ log }) => ({
        log: [own === false ? "not asked" : `${interrupt(`${log.length}?`)}`],
      }))
      .addEdge(START, "step")
      .addEdge("step", "ask")
      .compile(own === undefined ? {} : { checkpointer: own });
    const graph = asGraph(
      new StateGraph(Log)
        .addNode("child", child)
        .addNode("after", () => ({ log: ["after"] }))
        .addEdge(START, "child")
        .addEdge("child", "after")
        .compile({ checkpointer: saver as never }),
    );
    const all = [];
    for (const input of ["one", "two"]) {
      all.push(await outcome(graph.invoke({ log: [input] }, thread)));
      all.push(await everything(graph, thread));
      const state = await graph.getState(thread, { subgraphs: true });
      if (state.next.length === 0) continue;
      all.push(await outcome(graph.invoke(new Command({ resume: `yes to ${input}` }), thread)));
      all.push(await everything(graph, thread));
    }
    return all;
  };
}

scenarios["forks, edits and a replay"] = async (saver, thread) => {
  const graph = asGraph(
    new StateGraph(Log)
      .addNode("a", () => ({ log: ["a"] }))
      .addNode("b", () => ({ log: ["b"] }))
      .addEdge(START, "a")
      .addEdge("a", "b")
      .compile({ checkpointer: saver as never }),
  );
  await graph.invoke({ log: ["in"] }, thread);
  const history: Snapshot[] = [];
  for await (const snapshot of graph.getStateHistory(thread)) history.push(snapshot);
  const beforeB = history.find(({ next }) => next[0] === "b") as Snapshot;
  const replayed = await graph.invoke(null, beforeB.config);
  const edited = await graph.updateState(beforeB.config, { log: ["edited"] }, "a");
  const fork = await graph.invoke(null, edited);
  await graph.updateState(thread, { log: ["appended"] }, "b");
  const old = await graph.getState(beforeB.config);
  return { replayed, fork, old: seen(old), end: await everything(graph, thread) };
};

scenarios["values that are not tracked"] = async (saver, thread) => {
  const State = Annotation.Root({
    log: appended,
    handle: () => new UntrackedValueChannel<{ open: () => string }>(),
  });
  const graph = asGraph(
    new StateGraph(State)
      .addNode("a", () => ({ log: ["a"], handle: { open: () => "opened" } }))
      .addNode("b", ({ handle }) => ({ log: [handle?.open?.() ?? "gone"] }))
      .addEdge(START, "a")
      .addEdge("a", "b")
      .compile({ checkpointer: saver as never, interruptBefore: ["b"] }),
  );
  await graph.invoke({ log: ["in"] }, thread);
  const paused = await everything(graph, thread);
  return { paused, end: await outcome(graph.invoke(null, thread)) };
};

scenarios["a function with tasks, interrupted and called again"] = async (saver, thread) => {
  let runs = 0;
  const work = task("work", async (n: number) => `${n} worked ${++runs}`);
  const graph = entrypoint({ name: "flow", checkpointer: saver as never }, async (n: number) => {
    const done = await work(n);
    const answer = interrupt(`${done}?`);
    return entrypoint.final({ value: `${done} ${answer}`, save: n });
  });
  const all = [];
  for (const n of [1, 2]) {
    all.push(await outcome(graph.invoke(n as never, thread)));
    all.push(await outcome(graph.invoke(new Command({ resume: "yes" }) as never, thread)));
  }
  return { all, end: await everything(asGraph(graph), thread) };
};

const keys = keyring("k", { k: new Uint8Array(32) });
describe.each([
  ["on sessions", { session: true }],
  ["without sessions", { session: false }],
  ["encrypted", { encryption: { keys } }],
  ["encrypted, where threads may be copies", { encryption: { keys, acceptCopies: true } }],
])("%s", (how, options) => {
  it.each(Object.entries(scenarios))("%s", async (name, run) => {
    const thread = { configurable: { thread_id: `${name} ${how}` } };
    const expected = await run(new MemorySaver(), thread);
    expect(await run(connect(options), thread)).toEqual(expected);
  });
});
