/**
 * A content pipeline as teams run it, on LangGraph: strategist → critique (back to the strategist
 * until the score passes) → approval by a human → one visual prompt per scene in parallel →
 * analyst. The nodes compute their text from the brief: equal input gives equal state.
 */

import { createHash } from "node:crypto";
import type { BaseCheckpointSaver } from "@langchain/langgraph";
import { Annotation, Command, END, interrupt, Send, START, StateGraph } from "@langchain/langgraph";
import type { Brief, Decision, Instant, Scene } from "./brief.js";

/** The graph's name: its savers keep it with each checkpoint, and recovery takes no other threads. */
export const GRAPH = "content_pipeline";

/** What the critique looks at, with the points each is worth: 100 together. */
export const CRITERIA = {
  "names the audience": 20,
  "claims carry numbers": 20,
  "avoids banned words": 20,
  "headline within 48 characters": 15,
  "price and date in the opening": 15,
  "one call to action": 10,
} as const;
export type Criterion = keyof typeof CRITERIA;

/** The score from which a draft may be shown to the human. */
export const PASS_SCORE = 85;

export interface Draft {
  revision: number;
  headline: string;
  opening: string;
  scenes: Scene[];
  /** When each channel publishes. */
  schedule: Map<string, Instant>;
  /** What earlier critiques made the strategist repair. */
  repaired: Set<Criterion>;
}

export interface Critique {
  revision: number;
  score: number;
  points: Map<Criterion, number>;
}

export interface VisualPrompt {
  title: string;
  prompt: string;
  /** SHA-256 of the prompt: the key under which an image service would cache the picture. */
  cacheKey: Uint8Array;
  look: { palette: Uint8Array; framing: { ratio: string; lens: string } };
}

export interface Report {
  summary: string;
  approvedBy: string;
  words: Map<string, number>;
  publish: { channel: string; at: Instant }[];
}

/** The state of one thread. Accumulating channels: `critiques`, `decisions`, `visuals`. */
export const PipelineState = Annotation.Root({
  brief: Annotation<Brief>,
  draft: Annotation<Draft>,
  critiques: Annotation<Critique[], Critique[]>({
    reducer: (before, added) => [...before, ...added],
    default: () => [],
  }),
  decisions: Annotation<Decision[], Decision[]>({
    reducer: (before, added) => [...before, ...added],
    default: () => [],
  }),
  visuals: Annotation<Map<string, VisualPrompt>, Map<string, VisualPrompt>>({
    reducer: (before, added) => new Map([...before, ...added]),
    default: () => new Map(),
  }),
  /** A PPM image, one pixel a scene: bytes at the top of a channel, zero bytes included. */
  storyboard: Annotation<Uint8Array>,
  report: Annotation<Report>,
});
export type State = typeof PipelineState.State;

/** One execution of a node: begun, or finished. `subject` is the scene of a visual prompt. */
export interface Step {
  node: string;
  subject?: string;
  event: "start" | "done";
}

export interface PipelineOptions {
  checkpointer: BaseCheckpointSaver;
  /** Told of each execution as it happens; must have stored it when it returns. */
  record?: (step: Step) => void;
  /** Awaited by the visual prompt of a scene before it answers; the demo hangs one here. */
  beforeScene?: (sceneId: string) => Promise<void>;
}

interface SceneInput {
  scene: Scene;
  audience: string;
  ratio: string;
}

/** Compiles the graph over `checkpointer`. State lives in the thread only, none in the graph. */
export function createPipeline({ checkpointer, record, beforeScene }: PipelineOptions) {
  // Recording around the node, not in it: an interrupted approval has a start and no done.
  const recorded =
    <Input, Output>(node: string, run: (input: Input) => Output, subject?: (i: Input) => string) =>
    async (input: Input): Promise<Awaited<Output>> => {
      const step = subject ? { node, subject: subject(input) } : { node };
      record?.({ ...step, event: "start" });
      const output = await run(input);
      record?.({ ...step, event: "done" });
      return output;
    };

  const drawScene = async (input: SceneInput) => {
    await beforeScene?.(input.scene.id);
    return { visuals: new Map([[input.scene.id, writePrompt(input)]]) };
  };

  return new StateGraph(PipelineState)
    .addNode("strategist", recorded("strategist", writeDraft))
    .addNode("critique", recorded("critique", judgeDraft))
    .addNode("approval", recorded("approval", askHuman))
    .addNode(
      "visual_prompt",
      recorded("visual_prompt", drawScene, (input) => input.scene.id),
    )
    .addNode("analyst", recorded("analyst", writeReport))
    .addEdge(START, "strategist")
    .addEdge("strategist", "critique")
    .addConditionalEdges("critique", afterCritique, ["strategist", "approval"])
    .addConditionalEdges("approval", afterApproval, ["strategist", "visual_prompt"])
    .addEdge("visual_prompt", "analyst")
    .addEdge("analyst", END)
    .compile({ checkpointer });
}
export type Pipeline = ReturnType<typeof createPipeline>;

/** The input that resumes a waiting thread with the human's decision. */
export function answer(decision: Decision): Command<Decision, never, never> {
  return new Command({ resume: decision });
}

function afterCritique({ critiques }: State) {
  return (critiques.at(-1)?.score ?? 0) >= PASS_SCORE ? "approval" : "strategist";
}

function afterApproval({ brief, draft, decisions }: State) {
  if (decisions.at(-1)?.verdict !== "approve") return "strategist";
  const ratio = brief.channels.find((c) => c.name === "short film")?.format.ratio ?? "16:9";
  return draft.scenes.map(
    (scene) =>
      new Send("visual_prompt", { scene, audience: brief.audience, ratio } satisfies SceneInput),
  );
}

function askHuman({ draft, critiques }: State) {
  const decision = interrupt<object, Decision>({
    question: "Does this campaign go out?",
    headline: draft.headline,
    score: critiques.at(-1)?.score,
    opensWith: draft.scenes[0]?.title,
  });
  return { decisions: [decision] };
}

function writeDraft({ brief, draft, critiques, decisions }: State) {
  const repaired = new Set(draft?.repaired);
  const points = critiques.at(-1)?.points ?? new Map<Criterion, number>();
  // A strategist takes on the two costliest findings of a round, so a bad first draft needs three.
  const findings = [...points].filter(([, got]) => got === 0).map(([criterion]) => criterion);
  findings.sort((a, b) => CRITERIA[b] - CRITERIA[a]);
  for (const criterion of findings.slice(0, 2)) repaired.add(criterion);

  const wish = decisions.findLast((d) => d.verdict === "revise")?.leadWith;
  const scenes = [...brief.scenes].sort((a, b) => Number(b.id === wish) - Number(a.id === wish));
  const plain = repaired.has("avoids banned words");
  const short = repaired.has("headline within 48 characters");
  const theme = wish === undefined ? brief.promise : "an oven you can mend for ten years";
  const praise = plain ? "small" : "revolutionary";
  const headline = short
    ? `${brief.product}: ${theme}`
    : `Meet ${brief.product}, the ${praise} oven that gives you ${theme}`;
  const opening = [
    `For ${brief.audience}: ${brief.promise}.`,
    `${brief.facts.get("heat")}; ${brief.facts.get("repair")}.`,
  ];
  if (repaired.has("price and date in the opening")) {
    opening.push(`${brief.price}, from ${toDate(brief.launchAt).toISOString().slice(0, 10)}.`);
  }
  if (repaired.has("one call to action")) opening.push("Reserve yours.");
  return {
    draft: {
      revision: (draft?.revision ?? 0) + 1,
      headline,
      opening: opening.join(" "),
      scenes,
      schedule: new Map(
        brief.channels.map((c) => [c.name, daysBefore(brief.launchAt, c.daysBefore)]),
      ),
      repaired,
    } satisfies Draft,
  };
}

function judgeDraft({ brief, draft }: State) {
  const text = `${draft.headline} ${draft.opening}`;
  const holds: Record<Criterion, boolean> = {
    "names the audience": text.includes(brief.audience),
    "claims carry numbers": [...brief.facts.values()].some((fact) => text.includes(fact)),
    "avoids banned words": !brief.neverSay.some((word) => text.includes(word)),
    "headline within 48 characters": draft.headline.length <= 48,
    "price and date in the opening": draft.opening.includes(brief.price),
    "one call to action": text.split("Reserve yours").length === 2,
  };
  const points = new Map(
    (Object.keys(CRITERIA) as Criterion[]).map((c) => [c, holds[c] ? CRITERIA[c] : 0]),
  );
  const score = [...points.values()].reduce((sum, got) => sum + got, 0);
  return { critiques: [{ revision: draft.revision, score, points }] };
}

function writePrompt({ scene, audience, ratio }: SceneInput): VisualPrompt {
  const lens = scene.shot.includes("Macro") || scene.shot.includes("Close") ? "100 mm" : "35 mm";
  const prompt = `${scene.shot} Caption: “${scene.caption}” For ${audience}; ${lens}, ${ratio}.`;
  // A Buffer would be stored through its toJSON and come back as a plain object.
  const cacheKey = new Uint8Array(createHash("sha256").update(prompt).digest());
  const palette = new Uint8Array([...scene.colour, ...scene.colour.map((c) => 255 - c)]);
  return { title: scene.title, prompt, cacheKey, look: { palette, framing: { ratio, lens } } };
}

function writeReport({ draft, decisions, visuals }: State) {
  const words = new Map([["opening", countWords(draft.opening)]]);
  for (const [id, visual] of visuals) words.set(id, countWords(visual.prompt));
  const pixels = draft.scenes.flatMap((scene) => [...scene.colour]);
  const header = new TextEncoder().encode(`P6 ${draft.scenes.length} 1 255\n`);
  return {
    storyboard: new Uint8Array([...header, ...pixels]),
    report: {
      summary: `“${draft.headline}” in ${visuals.size} scenes, opening with ${draft.scenes[0]?.title}.`,
      approvedBy: decisions.at(-1)?.by ?? "nobody",
      words,
      publish: [...draft.schedule].map(([channel, at]) => ({ channel, at })),
    } satisfies Report,
  };
}

function toDate(instant: Instant): Date {
  return new Date(instant);
}

function daysBefore(instant: Instant, days: number): Date {
  return new Date(toDate(instant).getTime() - days * 86_400_000);
}

function countWords(text: string): number {
  return text.split(/\s+/).length;
}
