/** The journal of node executions: one JSON line each, appended by every worker. */

import { appendFileSync, existsSync, readFileSync } from "node:fs";
import type { Step } from "./graph.js";

/** A line of the journal. */
export type JournalLine = Step & { worker: string };

/** Appends `line` to `file`; it is in the file on return, so a SIGKILL cannot lose it. */
export function appendLine(file: string, line: JournalLine): void {
  appendFileSync(file, `${JSON.stringify(line)}\n`);
}

/** The lines of `worker`, or of all, oldest first; none when there is no file yet. */
export function readJournal(file: string, worker?: string): JournalLine[] {
  if (!existsSync(file)) return [];
  const lines = readFileSync(file, "utf8").trimEnd().split("\n");
  return lines
    .map((line) => JSON.parse(line) as JournalLine)
    .filter((line) => worker === undefined || line.worker === worker);
}

/** How often `node` began, or finished. */
export function count(lines: JournalLine[], node: string, event: JournalLine["event"]): number {
  return lines.filter((line) => line.node === node && line.event === event).length;
}
