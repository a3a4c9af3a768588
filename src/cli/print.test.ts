import { readdirSync, readFileSync } from "node:fs";
import { stripVTControlCharacters } from "node:util";
import { afterEach, describe, expect, it, vi } from "vitest";
import { clean } from "../clean.js";
import { complain, paint, print, printJson, printTable, shorten, startProgress } from "./print.js";
import { cutTo, widthOf } from "./text_width.js";

/** Each kind of character that is escaped, and its escape. */
const escapes: [string, string][] = [
  ["\u0000", "\\u0000"],
  ["\t", "\\u0009"],
  ["\n", "\\u000a"],
  ["\r", "\\u000d"],
  ["\u001b", "\\u001b"],
  ["\u001f", "\\u001f"],
  ["\u007f", "\\u007f"],
  ["\u0080", "\\u0080"],
  ["\u009b", "\\u009b"],
  ["\u009f", "\\u009f"],
  ["\u061c", "\\u061c"],
  ["\u200e", "\\u200e"],
  ["\u200f", "\\u200f"],
  ["\u2028", "\\u2028"],
  ["\u2029", "\\u2029"],
  ["\u202a", "\\u202a"],
  ["\u202e", "\\u202e"],
  ["\u2066", "\\u2066"],
  ["\u2069", "\\u2069"],
  ["\ud83d", "\\ud83d"],
  ["\ude00", "\\ude00"],
  ["\ude00\ud83d", "\\ude00\\ud83d"],
];
const hostile = escapes.map(([character]) => character).join("x");
const escaped = escapes.map(([, shown]) => shown).join("x");

/** What is written while standard output and error are terminals. */
function captureTerminal() {
  vi.stubEnv("NO_COLOR", "");
  const written = { stdout: "", stderr: "" };
  for (const name of ["stdout", "stderr"] as const) {
    vi.spyOn(process, name, "get").mockReturnValue({
      ...process[name],
      isTTY: true,
      write: (text: string) => {
        written[name] += text;
        return true;
      },
    } as never);
  }
  return written;
}
afterEach(() => {
  vi.restoreAllMocks();
  vi.unstubAllEnvs();
});

it.each(escapes)("%j is shown as an escape", (character, shown) => {
  expect(clean(`a${character}b`)).toBe(`a${shown}b`);
});

it("what is no such character is shown as it is", () => {
  const text = "é\u00a0 ש \u200d😀 \\u001b \ufeff";
  expect(clean(text)).toBe(text);
});

it("shortened text ends with no half of a character", () => {
  expect(shorten("ab😀cd", 4)).toBe("ab…");
  expect(shorten("ab😀cd", 5)).toBe("ab😀…");
});

describe("on a terminal", () => {
  it("a name brings no colour, no line and no cursor of its own", async () => {
    const written = captureTerminal();
    print(hostile, paint("red", hostile), "\u001b[32mx");
    const rows = async function* () {
      yield [hostile, hostile];
    };
    const columns = [{ heading: "A", colour: () => "red" as const }, { heading: "B" }];
    await printTable(columns, rows());
    const [first, heading, row] = written.stdout.split("\n");
    expect(first).toBe(`${escaped}\u001b[31m${escaped}\u001b[0m\\u001b[32mx`);
    // Of more than 60 characters, so it moves its own row alone.
    expect(heading).toBe("\u001b[1mA\u001b[0m  \u001b[1mB\u001b[0m");
    expect(row).toBe(`\u001b[31m${escaped}\u001b[0m  ${escaped}`);
  });

  it("cells stand below each other by the room they take, as escapes and in any script", async () => {
    const written = captureTerminal();
    const names = ["a", "\u001b[2J", "会话", "🎉", "e\u0301", "x".repeat(61)];
    await printTable(
      [{ heading: "NAME" }, { heading: "B" }],
      (async function* () {
        for (const name of names) yield [name, "b"];
      })(),
    );
    const places = [
      "NAME       B",
      "a          b",
      "\\u001b[2J  b",
      "会话       b",
      "🎉         b",
      "e\u0301          b",
      `${"x".repeat(61)}  b`,
    ];
    expect(stripVTControlCharacters(written.stdout).trimEnd().split("\n")).toEqual(places);
    expect(cutTo(5, "会话东京")).toBe("会话…");
    expect(cutTo(4, "会话东京")).toBe("会…");
    expect(cutTo(0, "会话")).toBe("");
    expect(widthOf("👩‍👩‍👧‍👦ｱ\u200d")).toBe(3);
  });

  it("JSON is the same value, in characters that do no harm", () => {
    const written = captureTerminal();
    printJson({ [hostile]: [hostile, 'a"\\ü'] });
    expect(written.stdout).toMatch(
      /^[^\p{Cc}\p{Cs}\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]*\n$/u,
    );
    expect(JSON.parse(written.stdout)).toEqual({ [hostile]: [hostile, 'a"\\ü'] });
  });

  it("progress and errors are cleaned, and no line of an error passes for one of ours", () => {
    const written = captureTerminal();
    const progress = startProgress();
    vi.spyOn(performance, "now").mockReturnValue(1e9);
    progress.say(hostile);
    progress.end();
    complain("no\u001b[2J\ncheckpointd: all is well");
    expect(written.stderr).toBe(
      `\r\u001b[K${escaped}\r\u001b[Kcheckpointd: no\\u001b[2J\n  checkpointd: all is well\n`,
    );
  });
});

it("nothing of the command line writes but print.ts, and what is exported", () => {
  const folder = new URL(".", import.meta.url);
  const writers = readdirSync(folder)
    .filter((name) => /^(?!.*\.test\.ts$).*\.ts$/.test(name))
    .filter((name) => {
      const source = readFileSync(new URL(name, folder), "utf8");
      return /process\.std(out|err)\b(?!\.(on\(|isTTY))|console\./.test(source);
    });
  expect(writers.sort()).toEqual(["print.ts", "threads_transfer.ts"]);
});
