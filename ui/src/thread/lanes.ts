/** Which lane of the tree each checkpoint has, as histories of versions are drawn. */
import type { Header } from "./history.js";

/** Lanes that are drawn; of those beyond them, which few histories have, no lines are. */
export const mostLanes = 6;

export interface Place {
  lane: number;
  /** Lanes that pass from the row above to the row below, or bend into this one: from, to. */
  lines: { from: number; to: number; half: "above" | "below" }[];
  /** Whether more than one checkpoint follows this one. */
  isFork: boolean;
  /** How many lanes there are beside each other here. */
  width: number;
}

/**
 * Lays out a history, the latest first, so that a parent comes after its children. A lane waits for the
 * checkpoint that its last one follows; one that several lanes wait for is where they were forked.
 */
export function layOut(headers: readonly Header[]): Place[] {
  const waiting: (string | undefined)[] = [];
  /** The same by what they wait for: there may be as many lanes as checkpoints. */
  const lanesOf = new Map<string, number[]>();
  return headers.map(({ id, parent }) => {
    const lines: Place["lines"] = [];
    const mine = lanesOf.get(id)?.sort((a, b) => a - b) ?? [];
    lanesOf.delete(id);
    let lane = mine[0] ?? waiting.indexOf(undefined);
    if (lane === -1) lane = waiting.length;
    for (const [from, wanted] of waiting.slice(0, mostLanes).entries()) {
      if (wanted === undefined) continue;
      lines.push({ from, to: wanted === id ? lane : from, half: "above" });
      if (wanted !== id) lines.push({ from, to: from, half: "below" });
    }
    for (const each of mine) waiting[each] = undefined;
    waiting[lane] = parent;
    if (parent !== undefined) lanesOf.set(parent, [...(lanesOf.get(parent) ?? []), lane]);
    if (parent !== undefined) lines.push({ from: lane, to: lane, half: "below" });
    while (waiting.length > 0 && waiting.at(-1) === undefined) waiting.pop();
    const width = Math.max(lane + 1, ...lines.map(({ from, to }) => Math.max(from, to) + 1));
    return { lane, lines, isFork: mine.length > 1, width };
  });
}

/** The ends of the branches, the latest first, as far as the history has been read. */
export function endsOf(headers: readonly Header[]): Header[] {
  const parents = new Set(headers.map(({ parent }) => parent));
  return headers.filter(({ id }) => !parents.has(id));
}
