/**
 * What people read: lines, tables, sizes, ages, colours on a terminal, progress, a question. Whatever
 * the commands write goes through here, where it is cleaned: names and values are of others, and a
 * terminal obeys what is in them.
 */
import { createInterface } from "node:readline/promises";
import { clean } from "../clean.js";
import { UsageError } from "../settings/flags.js";
import { widthOf } from "./text_width.js";

export type Colour = "red" | "yellow" | "green" | "cyan" | "dim" | "bold";
const codes: Record<Colour, number> = { red: 31, yellow: 33, green: 32, cyan: 36, dim: 2, bold: 1 };

/** Text with a colour. It is no string, so that no colour of ours looks like one in a stored name. */
export interface Painted {
  readonly colour: Colour;
  readonly text: string;
}

/** What makes one line. */
export type Line = readonly (string | Painted)[];

/** Text in a colour where it is printed on a terminal and NO_COLOR is not set. */
export function paint(colour: Colour, text: string): Painted {
  return { colour, text };
}

/** The line as it is written to the stream: cleaned, in one line. */
export function render(line: Line, stream: NodeJS.WriteStream = process.stdout): string {
  const isWanted = stream.isTTY && !process.env.NO_COLOR;
  const parts = line.map((part) => {
    if (typeof part === "string") return clean(part);
    const text = clean(part.text);
    return isWanted ? `\u001b[${codes[part.colour]}m${text}\u001b[0m` : text;
  });
  return parts.join("").trimEnd();
}

/** Prints one line of the answer. */
export function print(...line: Line): void {
  process.stdout.write(`${render(line)}\n`);
}

/** Prints text of ours that has several lines. */
export function printText(text: string): void {
  const lines = text.replace(/\n$/, "").split("\n");
  // At once: who waits for the first line has the others too.
  process.stdout.write(`${lines.map((line) => render([line])).join("\n")}\n`);
}

/** How much a terminal shows at once. */
export interface TerminalSize {
  columns: number;
  rows: number;
}

/** The terminal's size. */
export function terminalSize(): TerminalSize {
  const { columns = 80, rows = 24 } = process.stdout;
  return { columns, rows };
}

/** Draws lines from the terminal's upper left corner over what was there, which does not flicker. */
export function drawLines(lines: readonly Line[]): void {
  const text = lines.map((line) => `${render(line)}\u001b[K`).join("\r\n");
  process.stdout.write(`\u001b[H${text}\u001b[J`);
}

/** Tells the terminal a sequence of ours, and what to do when it was written. */
export function control(sequence: string, then?: () => void): void {
  process.stdout.write(sequence, then);
}

/** Says something beside the answer, on standard error: what is piped on has the answer only. */
export function hint(text: string): void {
  say(paint("dim", text));
}

/** Prints one line on standard error. */
export function say(...line: Line): void {
  process.stderr.write(`${render(line, process.stderr)}\n`);
}

/**
 * Says on standard error what went wrong. Its further lines, such as the end of another program's
 * log, are set in: none of them can pass for a line of ours.
 */
export function complain(text: string): void {
  for (const [i, line] of `checkpointd: ${text}`.split("\n").entries()) {
    say(i === 0 ? line : `  ${line}`);
  }
}

/** Says that a list was longer. */
export function hintMore(limit: number): void {
  hint(`There are more: --limit shows more than ${limit}.`);
}

/** Prints one JSON line, exactly the value: what is not to reach a terminal is escaped in it. */
export function printJson(value: unknown): void {
  print(JSON.stringify(value));
}

/** A column of a table: its heading, and the colour of a cell by its text. */
export interface Column {
  heading: string;
  colour?: (text: string) => Colour | undefined;
}

/** Cells that are wider do not widen their column: of one long name all rows would be long. */
const widestColumn = 60;

/**
 * Prints rows as they come, so a long list is not held: the widths are those of the first rows,
 * and a later cell that is wider, or one of more than 60 characters, moves its row.
 */
export async function printTable(
  columns: readonly Column[],
  rows: AsyncIterable<readonly string[]>,
  measured = 50,
): Promise<number> {
  const first: (readonly string[])[] = [];
  let widths: number[] | undefined;
  let count = 0;
  const printRow = (row: readonly string[], isHeading = false) => {
    const cells = columns.flatMap(({ colour }, i) => {
      const text = row[i] ?? "";
      const paintedIn = isHeading ? "bold" : colour?.(text);
      const gap = Math.max(0, (widths?.[i] ?? 0) - widthOf(clean(text))) + 2;
      return [paintedIn ? paint(paintedIn, text) : text, " ".repeat(gap)];
    });
    print(...cells);
  };
  const begin = () => {
    const headings = columns.map(({ heading }) => heading);
    widths = columns.map((_, i) => {
      const all = [headings, ...first].map((row) => widthOf(clean(row[i] ?? "")));
      return Math.max(...all.filter((width) => width <= widestColumn));
    });
    printRow(headings, true);
    for (const row of first) printRow(row);
  };
  for await (const row of rows) {
    count++;
    if (widths) printRow(row);
    else if (first.push(row) === measured) begin();
  }
  if (!widths && count > 0) begin();
  return count;
}

/** Shortened to so many characters, none of which is cut in two. */
export function shorten(text: string, length: number): string {
  if (text.length <= length) return text;
  return `${text.slice(0, length - 1).replace(/[\ud800-\udbff]$/, "")}…`;
}

/** A number of things, as 1 thread or 2 threads. */
export function toCount(count: number, thing: string): string {
  return `${count} ${thing}${count === 1 ? "" : "s"}`;
}

/** A size such as 1.2 KiB. */
export function toSize(bytes: number): string {
  let size = bytes;
  for (const unit of ["B", "KiB", "MiB", "GiB"]) {
    if (size < 1024) return `${unit === "B" ? size : size.toFixed(1)} ${unit}`;
    size /= 1024;
  }
  return `${size.toFixed(1)} TiB`;
}

/** How long ago a time was, in its largest unit. */
export const toAgo = (time: Date): string => toSpan(Date.now() - time.getTime());

/** How long it is until a time, as 41s left. */
export const toLeft = (time: Date): string => `${toSpan(time.getTime() - Date.now())} left`;

function toSpan(ms: number): string {
  const seconds = Math.max(0, Math.round(ms / 1000));
  if (seconds < 60) return `${seconds}s`;
  if (seconds < 3_600) return `${Math.floor(seconds / 60)}m`;
  if (seconds < 86_400) return `${Math.floor(seconds / 3_600)}h`;
  return `${Math.floor(seconds / 86_400)}d`;
}

/** Says on standard error how far long work has come, where that is a terminal. */
export function startProgress(): { say(text: string): void; end(): void } {
  const isWanted = process.stderr.isTTY;
  let last = 0;
  return {
    say(text) {
      const now = performance.now();
      if (!isWanted || now - last < 100) return;
      last = now;
      process.stderr.write(`\r\u001b[K${clean(text)}`);
    },
    end() {
      if (isWanted && last > 0) process.stderr.write("\r\u001b[K");
    },
  };
}

/** Asks before something is deleted or ended; true at once with --yes. Refuses where nobody can answer. */
export async function confirm(question: string, isSure: boolean): Promise<boolean> {
  if (isSure) return true;
  if (!process.stdin.isTTY) {
    throw new UsageError("This needs --yes where nobody can be asked.");
  }
  const terminal = createInterface({ input: process.stdin, output: process.stderr });
  try {
    return /^y(es)?$/i.test((await terminal.question(`${clean(question)} [y/N] `)).trim());
  } finally {
    terminal.close();
  }
}
