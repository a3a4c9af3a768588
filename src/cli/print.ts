/** What people read: tables, sizes, ages, colours on a terminal, progress, a question. */
import { createInterface } from "node:readline/promises";
import { UsageError } from "../settings/flags.js";

export type Colour = "red" | "yellow" | "green" | "cyan" | "dim" | "bold";
const codes: Record<Colour, number> = { red: 31, yellow: 33, green: 32, cyan: 36, dim: 2, bold: 1 };

/** Text in a colour where standard output is a terminal and NO_COLOR is not set. */
export function paint(colour: Colour, text: string): string {
  const isWanted = process.stdout.isTTY && !process.env.NO_COLOR;
  return isWanted ? `\u001b[${codes[colour]}m${text}\u001b[0m` : text;
}

export function print(line: string): void {
  process.stdout.write(`${line}\n`);
}

/** Says something beside the answer, on standard error: what is piped on has the answer only. */
export function hint(text: string): void {
  const isWanted = process.stderr.isTTY && !process.env.NO_COLOR;
  process.stderr.write(isWanted ? `\u001b[${codes.dim}m${text}\u001b[0m\n` : `${text}\n`);
}

/** Says that a list was longer. */
export function hintMore(limit: number): void {
  hint(`There are more: --limit shows more than ${limit}.`);
}

/** Prints one JSON line. */
export function printJson(value: unknown): void {
  print(JSON.stringify(value));
}

/** A column of a table: its heading, and the colour of a cell by its text. */
export interface Column {
  heading: string;
  colour?: (text: string) => Colour | undefined;
}

/**
 * Prints rows as they come, so a long list is not held: the widths are those of the first rows,
 * and a later cell that is wider moves its row.
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
    const cells = columns.map(({ colour }, i) => {
      const text = clean(row[i] ?? "");
      const painted = isHeading ? paint("bold", text) : paintWith(colour?.(text), text);
      const isLast = i === columns.length - 1;
      return isLast ? painted : painted + " ".repeat(Math.max(0, (widths?.[i] ?? 0) - text.length));
    });
    print(cells.join("  ").trimEnd());
  };
  const begin = () => {
    const headings = columns.map(({ heading }) => heading);
    widths = columns.map((_, i) =>
      Math.max(...[headings, ...first].map((row) => clean(row[i] ?? "").length)),
    );
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

const paintWith = (colour: Colour | undefined, text: string) =>
  colour ? paint(colour, text) : text;

/** Without characters that would move the cursor or break the line. */
export function clean(text: string): string {
  // biome-ignore lint/suspicious/noControlCharactersInRegex: these are what is to go.
  return text.replace(/[\u0000-\u001f\u007f-\u009f]/g, "\ufffd");
}

/** Shortened to so many characters. */
export function shorten(text: string, length: number): string {
  return text.length <= length ? text : `${text.slice(0, length - 1)}…`;
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

/** How long ago a time was, in its two largest units at most. */
export function toAgo(time: Date): string {
  const seconds = Math.max(0, Math.round((Date.now() - time.getTime()) / 1000));
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
      process.stderr.write(`\r\u001b[K${text}`);
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
    return /^y(es)?$/i.test((await terminal.question(`${question} [y/N] `)).trim());
  } finally {
    terminal.close();
  }
}
