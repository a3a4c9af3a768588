/** `threads watch` and `threads diff`, as processes against a server of this one. */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { AIMessage, HumanMessage } from "@langchain/core/messages";
import { Annotation, interrupt, MessagesAnnotation, START, StateGraph } from "@langchain/langgraph";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { ConnectSaver } from "../client/saver.js";
import type { Server } from "../server/server.js";
import { makeTokenFile } from "../server/token_file.js";
import { createDatabase, type TestDatabase } from "../testing/postgres.js";
import { type Relay, startRelay } from "../testing/relay.js";
import { runCommand, spawnCommand } from "../testing/serve_process.js";
import { noTerminal, startTerminal, type Terminal } from "../testing/terminal.js";
import { startTestServer } from "../testing/test_server.js";
import { widthOf } from "./text_width.js";

let database: TestDatabase;
let server: Server;
let relay: Relay;
let saver: ConnectSaver;

const State = Annotation.Root({
  ...MessagesAnnotation.spec,
  settings: Annotation<object>,
  note: Annotation<string>,
});
const configOf = (thread_id: string) => ({ configurable: { thread_id } });
const build = () =>
  new StateGraph(State)
    .addNode("greet", () => ({
      messages: [new AIMessage("Hello\u001b[31m!")],
      settings: { tries: 2, deep: { kept: 1, changed: "b" } },
    }))
    .addEdge(START, "greet")
    .compile({ checkpointer: saver });

beforeAll(async () => {
  database = await createDatabase();
  server = await startTestServer(database.url);
  // A port that a server has left may be another's before the next listens.
  relay = await startRelay(() => server.port);
  saver = ConnectSaver.fromUrl(relay.url);
  const settings = { tries: 1, deep: { kept: 1, changed: "a" } };
  await build().invoke({ messages: [new HumanMessage("Hi")], settings }, configOf("first"));
  await saver.threads.copy("first", "second");
  await build().updateState(configOf("second"), { note: "more" });
});
afterAll(async () => {
  await saver?.end();
  relay?.close();
  await server?.drain();
  await database?.drop();
});

/** The ids of a thread's checkpoints, the latest first. */
async function idsOf(threadId: string): Promise<string[]> {
  const ids: string[] = [];
  for await (const { checkpoint } of saver.list(configOf(threadId))) ids.push(checkpoint.id);
  return ids;
}

const threads = (...args: string[]) =>
  runCommand(["threads", ...args], { CHECKPOINTD_URL: server.url });

it("diff tells what a step changed of its parent", async () => {
  const { code, stdout, stderr } = await threads("diff", "first");
  expect({ code, stderr }).toEqual({ code: 0, stderr: "" });
  expect(stdout).toBe(
    [
      "messages",
      "    1 as before",
      "  + ai: Hello\\u001b[31m!",
      "settings",
      "  - tries: 1",
      "  + tries: 2",
      '  - deep.changed: "a"',
      '  + deep.changed: "b"',
      "",
    ].join("\n"),
  );
  const id = (await idsOf("first"))[2] as string;
  // The first of all has no parent: its values are new.
  expect((await threads("diff", "first", "--checkpoint", id)).stderr).toBe("No channel differs.\n");
});

it("diff tells how two threads differ, as JSON too", async () => {
  expect((await threads("diff", "first", "second")).stdout).toBe('note\n  + "more"\n');
  expect((await threads("diff", "second", "first")).stdout).toBe('note\n  - "more"\n');
  const { stdout } = await threads("diff", "first", "second", "--json");
  expect(JSON.parse(stdout)).toEqual({ channel: "note", after: "more" });
  const id = (await idsOf("second"))[1] as string;
  const same = await threads("diff", "second", "second", "--checkpoint", id, "--to", id);
  expect(same).toMatchObject({ code: 0, stdout: "", stderr: "No channel differs.\n" });
});

it("diff tells of a set what came and went, and of a new list each item", async () => {
  const graph = new StateGraph(
    Annotation.Root({ tags: Annotation<Set<string>>, log: Annotation<string[]> }),
  )
    .addNode("tag", () => ({ tags: new Set(["b", "c"]), log: ["first", "second"] }))
    .addEdge(START, "tag")
    .compile({ checkpointer: saver });
  await graph.invoke({ tags: new Set(["a", "b"]) }, configOf("tagged"));
  const { stdout } = await threads("diff", "tagged");
  expect(stdout).toBe(
    [
      "log",
      '  + "first"',
      '  + "second"',
      "tags",
      "    1 as before",
      '  - "a"',
      '  + "c"',
      "",
    ].join("\n"),
  );
  const log = Array.from({ length: 1_000 }, (_, i) => String(i));
  await graph.updateState(configOf("tagged"), { log });
  const many = (await threads("diff", "tagged")).stdout.trim().split("\n");
  expect(many.slice(0, 4)).toEqual(["log", '  - "first"', '  - "second"', '  + "0"']);
  expect(many.slice(-2)).toEqual(['  + "49"', "  + … 950 more"]);
});

it.each([
  [1, ["diff", "nobody"], 'no thread "nobody"'],
  [1, ["diff", "first", "--checkpoint", "x"], 'no checkpoint x of thread "first"'],
  [2, ["diff", "first", "--to", "x"], "--to needs a second thread"],
  [2, ["watch", "--interval", "often"], "--interval must be a duration"],
])("exits %i: %j", async (code, args, sentence) => {
  const finished = await threads(...args);
  expect(finished).toMatchObject({ code, stdout: "" });
  expect(finished.stderr).toContain(sentence);
});

it("watch tells threads when they are new and when they change, and survives its server", async () => {
  const watch = spawnCommand(
    ["threads", "watch", "--json", "--interval", "50ms", "--prefix", "watched"],
    { CHECKPOINTD_URL: relay.url },
  );
  const lines = () =>
    watch
      .output()
      .stdout.trim()
      .split("\n")
      .filter((line) => line !== "")
      .map((line) => JSON.parse(line) as { threadId: string; step: number; status: string });
  try {
    await build().invoke({ messages: [new HumanMessage("Hi")] }, configOf("watched"));
    await expect.poll(() => lines().at(-1)?.step).toBe(1);
    await server.drain();
    await expect.poll(() => watch.output().stderr).toContain("The server does not answer");
    server = await startTestServer(database.url);
    await expect.poll(() => watch.output().stderr).toContain("The server is back.");
    const before = lines().length;
    await build().updateState(configOf("watched"), { note: "x" });
    await expect.poll(() => lines().at(-1)).toMatchObject({ threadId: "watched", step: 2 });
    expect(lines().length).toBeGreaterThan(before);
    expect(new Set(lines().map((line) => JSON.stringify(line))).size).toBe(lines().length);
  } finally {
    watch.child.kill();
    await watch.finished;
  }
});

const cli = fileURLToPath(new URL("../../dist/src/cli/main.js", import.meta.url));
describe.skipIf(noTerminal)(`watch on a terminal${noTerminal ? ` (${noTerminal})` : ""}`, () => {
  let shown: Terminal | undefined;
  const hostile = "seen/\u001b[2J\u001b]0;x\u0007\nFAKE\r\u202ereversed";
  const givenBack = "\u001b[?7h\u001b[?25h\u001b[?1049l";
  const names = {
    failed: "seen/1-failed",
    asks: "seen/2-asks",
    wide: `seen/3-会话東京${"名".repeat(60)}-🎉🎉`,
    hostile,
  };
  const watch = (columns: number, rows: number, flags: string[], env = {}) => {
    const command = [process.execPath, cli, "threads", "watch", "--interval", "50ms", ...flags];
    shown = startTerminal(columns, rows, command, { CHECKPOINTD_URL: server.url, ...env });
    return shown;
  };
  const until = (find: (lines: string[]) => unknown, terminal = shown as Terminal) =>
    expect.poll(() => Boolean(find(terminal.screen()))).toBe(true);

  beforeAll(async () => {
    const graph = new StateGraph(State)
      .addNode("act", ({ note }) => {
        if (note === "fail") throw new TypeError(`the disk\nis full ${"x".repeat(500)}`);
        return { note: interrupt({ question: `Sure? \u001b[31m${"y".repeat(500)}` }) as string };
      })
      .addEdge(START, "act")
      .compile({ checkpointer: saver });
    await graph.invoke({ note: "fail" }, configOf(names.failed)).catch(() => {});
    await graph.invoke({ note: "ask" }, configOf(names.asks));
    for (const name of [names.wide, names.hostile]) await saver.threads.copy("first", name);
    const lease = { leaseMs: 3_600_000, owner: "worker-2\u001b[31m/eu" };
    await saver.threads.claim({ ...lease, threadId: names.failed });
  });
  afterEach(async () => {
    await shown?.close();
    shown = undefined;
  });

  it.each([
    [60, 24],
    [200, 40],
    [24, 6],
  ])("fits %i columns and %i rows, those that wait on top with why", async (columns, rows) => {
    const terminal = watch(columns, rows, ["--prefix", "seen/"]);
    await until((lines) => lines.length > 3);
    const lines = terminal.screen();
    expect(lines.length).toBeLessThanOrEqual(rows);
    for (const line of lines) expect(widthOf(line), line).toBeLessThanOrEqual(columns);
    expect(lines[1]).toMatch(/^STATUS/);
    expect(lines[2]).toMatch(/^interrupted +\S+ /);
    expect(lines.join("\n")).not.toMatch(/\p{Cc}(?<!\n)|\u202e/u);
    if (rows < 20) {
      expect(lines.at(-1)).toMatch(/^… \d more/);
      return;
    }
    const all = lines.map((line) => line.trim());
    expect(all).toContainEqual(expect.stringMatching(/^asks: Sure\? \\u001b\[31my+…$/));
    expect(all).toContainEqual(expect.stringMatching(/^error: TypeError: the disk is full x+…$/));
    expect(all).toContainEqual(expect.stringMatching(/worker-2\\u001b\[.*(59m|1h) left/));
    expect(all.findIndex((line) => line.startsWith("failed"))).toBeLessThan(
      all.findIndex((line) => line.startsWith("completed")),
    );
    expect(lines.filter((line) => line.includes("seen/"))).toHaveLength(4);
  });

  it("draws anew when it is resized, and goes on without its server", async () => {
    const terminal = watch(80, 24, ["--prefix", "seen/"], { CHECKPOINTD_URL: relay.url });
    await until((lines) => lines.length > 6);
    terminal.resize(40, 5);
    await until((lines) => lines.length === 5 && /more$/.test(lines[4] ?? ""));
    for (const line of terminal.screen()) expect(widthOf(line)).toBeLessThanOrEqual(40);
    terminal.resize(120, 24);
    await until((lines) => lines.some((line) => /THREAD +HELD BY +PENDING/.test(line)));
    await server.drain();
    await until(([head]) => head?.includes("The server does not answer"));
    // What was seen stays, and nothing is written over it.
    expect(terminal.screen().join("\n")).toContain(names.asks);
    expect(terminal.written()).not.toContain("is back");
    server = await startTestServer(database.url);
    await until(([head]) => head && !head.includes("does not answer"));
  });

  it("gives the terminal back after Ctrl-C, of which it dies", async () => {
    const terminal = watch(80, 24, ["--prefix", "nobody"]);
    await until((lines) => lines.includes("No threads."));
    expect(terminal.written()).toContain("\u001b[?1049h\u001b[?25l\u001b[?7l");
    terminal.type("\\x03");
    expect(await terminal.ended).toBe(-2);
    expect(terminal.written().endsWith(givenBack)).toBe(true);
  });

  it("gives the terminal back for as long as Ctrl-Z keeps it stopped", async () => {
    const terminal = watch(80, 24, ["--prefix", "nobody"]);
    await until((lines) => lines.includes("No threads."));
    terminal.type("\\x1a");
    await expect.poll(() => terminal.written().endsWith(givenBack)).toBe(true);
    terminal.signal("SIGCONT");
    await expect.poll(() => terminal.written().split("\u001b[?1049h").length).toBe(3);
    await until((lines) => lines.includes("No threads."));
    terminal.signal("SIGTERM");
    expect(await terminal.ended).toBe(-15);
    expect(terminal.written().endsWith(givenBack)).toBe(true);
  });

  it("gives the terminal back before it says what is wrong", async () => {
    const folder = await mkdtemp(path.join(tmpdir(), "checkpointd-watch-"));
    const tokenFile = path.join(folder, "key");
    makeTokenFile(tokenFile);
    const closed = await startTestServer(database.url, { tokenFile });
    try {
      const terminal = watch(80, 24, [], { CHECKPOINTD_URL: closed.url });
      expect(await terminal.ended).toBe(1);
      const [, after] = terminal.written().split(givenBack);
      expect(after).toContain("checkpointd: ");
    } finally {
      await closed.drain();
      await rm(folder, { recursive: true });
    }
  });

  it("has no colours with NO_COLOR, and no picture on a dumb terminal or in a pipe", async () => {
    watch(80, 24, ["--prefix", "seen/"], { NO_COLOR: "1" });
    await until((lines) => lines.length > 6);
    const colour = "\u001b[33m";
    expect(shown?.written()).not.toContain(colour);
    await shown?.close();
    watch(80, 24, ["--prefix", "seen/"]);
    await until((lines) => lines.length > 6);
    expect(shown?.written()).toContain(colour);
    await shown?.close();
    watch(80, 24, ["--prefix", "seen/"], { TERM: "dumb" });
    await expect.poll(() => shown?.written()).toContain("seen/2-asks  interrupted");
    for (const code of ["[H", "[?", "[J"]) expect(shown?.written()).not.toContain(`\u001b${code}`);
    const piped = spawnCommand(["threads", "watch", "--prefix", "seen/"], {
      CHECKPOINTD_URL: server.url,
    });
    try {
      await piped.printed(names.asks);
      expect(piped.output().stdout).not.toContain("\u001b");
      expect(piped.output().stdout.trim().split("\n")).toHaveLength(4);
    } finally {
      piped.child.kill();
      await piped.finished;
    }
  });
});
