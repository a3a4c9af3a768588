/** A real terminal, as Python's pty makes one, and what a command shows on it. */
import { type ChildProcess, spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { fileURLToPath } from "node:url";
import { stripVTControlCharacters } from "node:util";

const script = fileURLToPath(new URL("terminal.py", import.meta.url));

/** Why there is no terminal, where there is no Python of 3.9 or later. */
export const noTerminal =
  spawnSync("python3", ["-c", "import os, pty; os.waitstatus_to_exitcode"]).status === 0
    ? undefined
    : "no python3 with a pty";

/** A command on a terminal of its own. */
export interface Terminal {
  /** All that was written to it. */
  written(): string;
  /** The lines that were drawn at last, each since the cursor was home, without colours. */
  screen(): string[];
  resize(columns: number, rows: number): void;
  /** Types text; "\\x03" is Ctrl-C. */
  type(text: string): void;
  /** Sends the command a signal. */
  signal(name: NodeJS.Signals): void;
  /** The exit code; of a signal its negative number. */
  readonly ended: Promise<number>;
  /** Ends the command if it still runs. */
  close(): Promise<void>;
}

/** Starts a command on a terminal of so many columns and rows. */
export function startTerminal(
  columns: number,
  rows: number,
  command: readonly string[],
  env: Record<string, string> = {},
): Terminal {
  const child: ChildProcess = spawn(
    "python3",
    [script, String(columns), String(rows), ...command],
    {
      env: { PATH: process.env.PATH ?? "", TERM: "xterm-256color", ...env },
      stdio: ["pipe", "pipe", "inherit"],
    },
  );
  let written = "";
  child.stdout?.setEncoding("utf8").on("data", (part: string) => {
    written += part;
  });
  const ended = once(child, "close").then(([code]) => (code > 127 ? code - 256 : code) as number);
  const tell = (line: string) => child.stdin?.write(`${line}\n`);
  return {
    written: () => written,
    screen: () => {
      const [drawn = ""] = (written.split("\u001b[H").at(-1) ?? "").split("\u001b[J");
      // The terminal's driver adds a return of its own.
      return drawn.split(/\r+\n/).map((line) => stripVTControlCharacters(line));
    },
    resize: (columns, rows) => tell(`size ${columns} ${rows}`),
    type: (text) => tell(`type ${text}`),
    signal: (name) => tell(`signal ${name}`),
    ended,
    async close() {
      child.stdin?.end();
      await ended;
    },
  };
}
