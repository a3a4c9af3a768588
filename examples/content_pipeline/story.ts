/** The story the demo tells, one function a chapter; each checks what it claims. */

import { setTimeout as sleep } from "node:timers/promises";
import type { CheckpointTuple } from "@langchain/langgraph";
import { ConnectSaver } from "../../src/index.js";
import { approve, createBrief, revise, whatIf } from "./brief.js";
import { asStored, expectEqual, say } from "./checks.js";
import { createPipeline, GRAPH, type State } from "./graph.js";
import { count, readJournal } from "./journal.js";
import { startWorker } from "./processes.js";
import { firstApproval, runUninterrupted } from "./reference.js";
import type { WorkerResult } from "./worker.js";

/** The scene that hangs when worker 3 is killed. */
const HANGING = { id: "crust", title: "The loaf sings" };

type Stage = ReturnType<typeof createStage>;

/** What the chapters share: a saver of this process, and workers in theirs, on one thread. */
function createStage(url: string, journal: string, thread: string) {
  const saver = ConnectSaver.fromUrl(url, { graph: GRAPH });
  const pipeline = createPipeline({ checkpointer: saver });
  const config = { configurable: { thread_id: thread } };
  const common = ["--url", url, "--thread", thread, "--journal", journal];
  const start = (name: string, ...args: string[]) =>
    startWorker([...common, "--name", name, ...args]);
  /** Runs a worker to its end, which must be a good one. */
  const finish = async (name: string, ...args: string[]): Promise<WorkerResult> => {
    const { code, signal, result, stderr } = await start(name, ...args).ended;
    if (code === 0 && result) return result;
    throw new Error(`${name} ended with code ${code}, signal ${signal}:\n${stderr}`);
  };
  /** The thread's state as this process reads it, checked against the memory of the worker. */
  const readBack = async (name: string, { values: remembered }: WorkerResult): Promise<State> => {
    const { values } = await pipeline.getState(config);
    const what = `this process reads the state that ${name} had in memory, value for value`;
    expectEqual(what, values, asStored(remembered));
    return values as State;
  };
  return { saver, pipeline, config, journal, start, finish, readBack };
}

/**
 * Tells the whole story on the service at `url`, with the workers' journal in the file `journal`.
 * Throws at the first thing that is not so. Leaves none of its threads behind; `leave`, if it is given, is
 * waited for while its thread is there, and may copy it.
 */
export async function tellStory(
  url: string,
  journal: string,
  leave?: (url: string, thread: string) => Promise<void>,
): Promise<void> {
  const thread = `demo/hearth-mini-${crypto.randomUUID().slice(0, 8)}`;
  const neighbour = `${thread}-neighbour`;
  const stage = createStage(url, journal, thread);
  try {
    say("Launching the Hearth Mini, a bread oven: a content pipeline on checkpointd");
    say(`service ${new URL(url).host}, thread ${thread}`);
    const reference = await runUninterrupted();
    await pauseForHuman(stage);
    const revised = await reviseInAnotherProcess(stage);
    await killInTheMiddle(stage, revised.draft.scenes.length);
    const finished = await finishWhatIsLeft(stage, reference.original);
    await forkThePast(stage, finished, reference.fork);
    await streamHistory(stage, reference.history);
    lookAtTypes(finished);
    if (leave) await leave(url, thread);
    await deleteThread(stage, neighbour);
  } finally {
    // A service that is not ours must not keep our threads, whatever happened.
    await Promise.allSettled([thread, neighbour].map((id) => stage.saver.deleteThread(id)));
    await stage.saver.end();
  }
}

async function pauseForHuman(stage: Stage): Promise<void> {
  say("\n1. Worker 1 drafts until a human has to decide, and exits");
  const result = await stage.finish("worker 1", "start");
  await sayDrafts(stage, 1);
  const state = await stage.readBack("worker 1", result);
  const scores = state.critiques.map((critique) => critique.score);
  expectEqual("the critique sent two drafts back and let the third pass", scores, [40, 75, 100]);
  expectEqual("the thread waits for the human, with its question", result.interrupt, {
    question: "Does this campaign go out?",
    headline: state.draft.headline,
    score: 100,
    opensWith: "The cold kitchen",
  });
}

async function reviseInAnotherProcess(stage: Stage): Promise<State> {
  say("\n2. Worker 2, another process, brings the answer: revise");
  say(`   ${revise.by}: “${revise.note}”`);
  const result = await stage.finish("worker 2", "resume", JSON.stringify(revise));
  await sayDrafts(stage, 4);
  const state = await stage.readBack("worker 2", result);
  expectEqual("the film now opens with her scene", state.draft.scenes[0]?.id, revise.leadWith);
  expectEqual("one decision is on record", state.decisions, [revise]);
  const { schedule } = result.values.draft as State["draft"];
  expectEqual(
    "a Date of worker 2 is its ISO text here (LangGraph's JSON, with any saver)",
    [schedule.get("newsletter"), state.draft.schedule.get("newsletter")],
    [new Date("2026-02-26T09:00:00.000Z"), "2026-02-26T09:00:00.000Z"],
  );
  return state;
}

async function killInTheMiddle(stage: Stage, scenes: number): Promise<void> {
  say("\n3. Worker 3 brings the approval and is killed in the middle of a step");
  say(`   ${approve.by}: “${approve.note}”`);
  const hang = ["--hang-at", HANGING.id];
  const worker = stage.start("worker 3", ...hang, "resume", JSON.stringify(approve));
  let over = false;
  void worker.ended.then(() => {
    over = true;
  });
  let stored = new Set<string>();
  while (stored.size < scenes - 1 && !over) {
    await sleep(50);
    const { pendingWrites = [] } = (await stage.saver.getTuple(stage.config)) ?? {};
    const visuals = pendingWrites.filter(([, channel]) => channel === "visuals");
    stored = new Set(visuals.map(([taskId]) => taskId));
  }
  say(`   the service holds the writes of ${stored.size} scenes: SIGKILL to ${worker.pid}`);
  worker.kill();
  const { signal, stderr } = await worker.ended;
  expectEqual("worker 3 died of SIGKILL, not by itself", [signal, stderr], ["SIGKILL", ""]);
  const lines = readJournal(stage.journal, "worker 3");
  const begun = count(lines, "visual_prompt", "start");
  const done = lines.filter((line) => line.node === "visual_prompt" && line.event === "done");
  expectEqual(`it had begun ${scenes} scenes at once`, begun, scenes);
  expectEqual(
    `${scenes - 1} were done and stored, “${HANGING.title}” was not`,
    [stored.size, done.length, done.some((line) => line.subject === HANGING.id)],
    [scenes - 1, scenes - 1, false],
  );
}

async function finishWhatIsLeft(stage: Stage, reference: State): Promise<State> {
  say("\n4. Worker 4 recovers what was left, under a lease");
  const result = await stage.finish("worker 4", "recover");
  const ran = readJournal(stage.journal, "worker 4")
    .filter((line) => line.event === "start")
    .map(({ node, subject }) => (subject ? `${node} of ${subject}` : node));
  say(`   worker 4 ran: ${ran.join(", ")}`);
  const expected = [`visual_prompt of ${HANGING.id}`, "analyst"];
  expectEqual("only the interrupted scene ran again, then the analyst", ran, expected);
  const all = readJournal(stage.journal);
  const nodes = [...new Set(all.map((line) => line.node))];
  const done = nodes.map((node) => [node, count(all, node, "done")] as const);
  say(`   over four workers: ${done.map(([node, times]) => `${node} ${times}`).join(", ")}`);
  expectEqual("no node did the same work twice", Object.fromEntries(done), {
    strategist: 4,
    critique: 4,
    approval: 2,
    visual_prompt: reference.visuals.size,
    analyst: 1,
  });
  const state = await stage.readBack("worker 4", result);
  expectEqual("both decisions are on record, in order", state.decisions, [revise, approve]);
  expectEqual("the end equals that of a run in memory, never interrupted", state, reference);
  return state;
}

async function forkThePast(stage: Stage, finished: State, reference: State): Promise<void> {
  say("\n5. Back to the first question: what if sales had approved draft 3?");
  say(`   ${whatIf.by}: “${whatIf.note}”`);
  const { pipeline, config } = stage;
  const end = await pipeline.getState(config);
  const past = await firstApproval(pipeline, config);
  const fork = await pipeline.updateState(past, { decisions: [whatIf] }, "approval");
  const result = await stage.finish("worker 5", "continue", fork.configurable?.checkpoint_id);
  const state = await stage.readBack("worker 5", result);
  expectEqual("the fork holds its own decision only", state.decisions, [whatIf]);
  expectEqual("its end equals that of the same fork in memory", state, reference);
  const original = (await pipeline.getState(end.config)).values as State;
  expectEqual("the original branch is what it was, value for value", original, finished);
  say(`   original: ${original.report.summary} (${original.report.approvedBy})`);
  say(`   fork:     ${state.report.summary} (${state.report.approvedBy})`);
}

async function streamHistory({ saver, config }: Stage, reference: unknown[]): Promise<void> {
  say("\n6. The whole history, streamed");
  const history: CheckpointTuple[] = [];
  for await (const tuple of saver.list(config)) history.push(tuple);
  const ids = history.map((tuple) => tuple.checkpoint.id);
  for (const [name, tuple] of [
    ["newest", history.at(0)] as const,
    ["oldest", history.at(-1)] as const,
  ]) {
    const { step, source } = tuple?.metadata ?? {};
    say(`   ${name}: ${tuple?.checkpoint.id}, step ${step}, from “${source}”`);
  }
  expectEqual(`${ids.length} checkpoints, newest first`, ids, [...ids].sort().reverse());
  expectEqual(
    "the same steps as in memory, none lost and none added by the kill",
    history.map((tuple) => [tuple.metadata?.source, tuple.metadata?.step]),
    reference,
  );
  const parents = history.map((tuple) => tuple.parentConfig?.configurable?.checkpoint_id);
  const roots = parents.filter((parent) => parent === undefined);
  const ends = ids.filter((id) => !parents.includes(id));
  const shape = [roots.length, ends.length];
  expectEqual("one beginning and two ends: the original and the fork", shape, [1, 2]);
  const loaded = [];
  for (const tuple of history) loaded.push(await saver.getTuple(tuple.config));
  expectEqual(`each of the ${ids.length} loads by its id, the same as listed`, loaded, history);
}

function lookAtTypes({ brief, draft, visuals, storyboard }: State): void {
  say("\n7. What the values are, after the way through four processes");
  const look = visuals.get("screwdriver")?.look;
  const cacheKey = visuals.get("screwdriver")?.cacheKey;
  for (const [path, value, type] of [
    [`visuals is a Map of ${visuals.size}`, visuals, Map],
    ["a cacheKey in it is a Uint8Array", cacheKey, Uint8Array],
    ["a palette two objects deep in it too", look?.palette, Uint8Array],
    [`brief.facts is a Map of ${brief.facts.size}`, brief.facts, Map],
    [`draft.repaired is a Set of ${draft.repaired.size}`, draft.repaired, Set],
    [`storyboard is a Uint8Array of ${storyboard.length}`, storyboard, Uint8Array],
  ] as const) {
    expectEqual(path, value && Object.getPrototypeOf(value), type.prototype);
  }
  const header = new TextDecoder().decode(storyboard.subarray(0, 10));
  expectEqual("its bytes are the image of 6 × 1 pixels", header, "P6 6 1 255");
  expectEqual("a nested object is as it was", look?.framing, { ratio: "9:16", lens: "35 mm" });
}

async function deleteThread(stage: Stage, neighbour: string): Promise<void> {
  say("\n8. The thread is deleted, its neighbour is not");
  const { saver, pipeline, config } = stage;
  const next = { configurable: { thread_id: neighbour } };
  await pipeline.invoke({ brief: createBrief() }, next);
  await saver.deleteThread(config.configurable.thread_id);
  expectEqual("getTuple finds nothing", await saver.getTuple(config), undefined);
  const left = [];
  for await (const tuple of saver.list(config)) left.push(tuple);
  expectEqual("list is empty", left, []);
  const waiting = (await pipeline.getState(next)).next;
  expectEqual("the neighbour still waits for its human", waiting, ["approval"]);
}

/** One line for each revision from `from` on, out of the history. */
async function sayDrafts({ pipeline, config }: Stage, from: number): Promise<void> {
  const headlines = new Map<number, string>();
  let last: State | undefined;
  for await (const { values } of pipeline.getStateHistory(config)) {
    const state = values as State;
    last ??= state;
    if (state.draft) headlines.set(state.draft.revision, state.draft.headline);
  }
  for (const { revision, score } of last?.critiques.slice(from - 1) ?? []) {
    say(`   draft ${revision}, ${score} of 100: “${headlines.get(revision)}”`);
  }
}
