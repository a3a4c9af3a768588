import { execFile } from "node:child_process";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { AIMessage, HumanMessage, ToolMessage } from "@langchain/core/messages";
import {
  Annotation,
  END,
  interrupt,
  MessagesAnnotation,
  START,
  StateGraph,
} from "@langchain/langgraph";
import pg from "pg";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { ConnectSaver } from "../client/saver.js";
import type { Server } from "../server/server.js";
import { createDatabase, type TestDatabase } from "../testing/postgres.js";
import { runCommand } from "../testing/serve_process.js";
import { startTestServer } from "../testing/test_server.js";

let database: TestDatabase;
let pool: pg.Pool;
let server: Server;
let saver: ConnectSaver;
let folder: string;

const State = Annotation.Root({
  steps: Annotation<string[]>({ reducer: (a, b) => a.concat(b), default: () => [] }),
  raw: Annotation<Uint8Array>(),
});
const config = (thread_id: string) => ({ configurable: { thread_id } });

beforeAll(async () => {
  database = await createDatabase();
  pool = new pg.Pool({ connectionString: database.url, max: 2 });
  server = await startTestServer(database.url);
  saver = ConnectSaver.fromUrl(server.url);
  folder = await mkdtemp(path.join(tmpdir(), "checkpointd-threads-"));
  const inner = new StateGraph(State)
    .addNode("deep", () => ({ steps: ["deep"] }))
    .addEdge(START, "deep")
    .compile();
  const graph = new StateGraph(State)
    .addNode("inner", inner)
    .addNode("ask", () => ({ steps: [interrupt("well?") as string] }))
    .addEdge(START, "inner")
    .addEdge("inner", "ask")
    .addEdge("ask", END)
    .compile({ checkpointer: saver });
  const raw = new Uint8Array(300_000).map((_, i) => (i * 7919) % 256);
  await graph.invoke({ raw, steps: ["in\u001b[31m"] }, config("asks"));
  const chat = new StateGraph(MessagesAnnotation)
    .addNode("greet", () => ({ messages: [new AIMessage("Hello,\n  you!")] }))
    .addNode("look", () => ({
      messages: [
        new AIMessage({ content: "", tool_calls: [{ name: "search", args: { q: 1 }, id: "c" }] }),
        new ToolMessage({ content: "found \u001b[31m", tool_call_id: "c", name: "search" }),
      ],
    }))
    .addEdge(START, "greet")
    .addEdge("greet", "look")
    .compile({ checkpointer: saver });
  await chat.invoke({ messages: [new HumanMessage("Hi")] }, config("chat"));
  const plain = new StateGraph(State)
    .addNode("work", () => ({ steps: ["done"] }))
    .addEdge(START, "work")
    .compile({ checkpointer: saver });
  await plain.invoke({ steps: [] }, config("done"));
  await plain.invoke({ steps: [] }, config("done"));
});
afterAll(async () => {
  await saver?.end();
  await server?.drain();
  await pool?.end();
  await database?.drop();
  await rm(folder, { recursive: true, force: true });
});

const threads = (...args: string[]) =>
  runCommand(["threads", ...args], { CHECKPOINTD_URL: server.url }, folder);
/** What a command that succeeds prints. */
async function output(...args: string[]): Promise<string> {
  const { code, stdout, stderr } = await threads(...args);
  expect({ code, stderr }, args.join(" ")).toEqual({ code: 0, stderr: "" });
  return stdout;
}
const lines = (text: string) =>
  text
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line));

/** Everything stored of a thread but its name, in an order of its own. */
async function stored(threadId: string): Promise<string> {
  const { rows } = await pool.query(
    `select 1, checkpoint_ns, checkpoint_id, parent_checkpoint_id, checkpoint::text, metadata::text, ''
     from checkpoints where thread_id = $1
     union all
     select 2, checkpoint_ns, channel, version, type, md5(blob), '' from checkpoint_blobs
     where thread_id = $1 and type <> 'empty'
     union all
     select 3, checkpoint_ns, checkpoint_id, task_id || idx, channel, md5(blob), task_path
     from checkpoint_writes where thread_id = $1
     order by 1, 2, 3, 4`,
    [threadId],
  );
  return JSON.stringify(rows);
}

describe("checkpointd threads", () => {
  it("ls lists as a table and as JSON lines, with filters", async () => {
    const table = await output("ls");
    expect(table).toMatch(/^THREAD +STATUS +STEP +SOURCE +AGE +HELD BY +PENDING +WHY\n/);
    expect(table).toMatch(/\nasks +interrupted +1 +loop +\ds +ask +asks: well\?\n/);
    expect(table).toMatch(/\ndone +completed +4 +loop +\ds\n|\ndone +completed +4 +loop +\ds$/m);
    expect(table).not.toContain("\u001b");
    const all = lines(await output("ls", "--json", "--by-id", "--counts"));
    expect(all.map(({ threadId, status }) => [threadId, status])).toEqual([
      ["asks", "interrupted"],
      ["chat", "completed"],
      ["done", "completed"],
    ]);
    expect(all[0]).toMatchObject({ errors: [], interrupts: [{ value: "well?", name: "ask" }] });
    expect(all[2]).toMatchObject({
      step: 4,
      errors: [],
      interrupts: [],
      counts: { checkpoints: 6 },
      updatedAt: expect.stringMatching(/Z$/),
    });
    const none = await threads("ls", "--status", "failed,pending");
    expect(none).toMatchObject({ code: 0, stdout: "", stderr: "No threads.\n" });
    expect(
      lines(await output("ls", "--json", "--prefix", "do", "--updated-after", "1h")),
    ).toHaveLength(1);
    expect((await threads("ls", "--json", "--updated-before", "2020-01-01")).stdout).toBe("");
    expect(await output("ls", "--json", "--metadata", '{"step":4}')).toContain('"done"');
  });

  it("ls and history show as many as JSON as in a table, and say on stderr that there are more", async () => {
    const more = "There are more: --limit shows more than 1.\n";
    for (const [command, rows] of [
      [["ls", "--limit", "1"], 2],
      [["ls", "--limit", "1", "--json"], 1],
      [["history", "done", "--limit", "1"], 2],
      [["history", "done", "--limit", "1", "--json"], 1],
    ] as const) {
      const { code, stdout, stderr } = await threads(...command);
      expect({ code, stderr }).toEqual({ code: 0, stderr: more });
      expect(stdout.trim().split("\n"), command.join(" ")).toHaveLength(rows);
    }
    // Without --limit both stop at the same number.
    const last = (await saver.getTuple(config("done")))!;
    for (let i = 0; i < 60; i++) {
      const id = `${last.checkpoint.id.slice(0, -2)}${i + 10}`;
      const next = { ...last.checkpoint, id };
      await saver.put(config("long"), next, { source: "loop", step: i, parents: {} }, {});
    }
    for (const flags of [["--json"], []]) {
      const { stdout, stderr } = await threads("history", "long", ...flags);
      expect(stdout.trim().split("\n")).toHaveLength(flags.length ? 50 : 51);
      expect(stderr).toBe("There are more: --limit shows more than 50.\n");
    }
    await saver.deleteThread("long");
  });

  it("shows messages as people read them, and as JSON by role and text", async () => {
    const text = await output("show", "chat");
    expect(text).toContain(
      `  messages:
    human: Hi
    ai: Hello, you!
    ai: → search({"q":1})
    tool search: found \\u001b[31m
`,
    );
    const [shown] = lines(await output("show", "chat", "--json"));
    expect(shown.namespaces).toEqual([""]);
    expect(shown.checkpoint.values.messages).toMatchObject([
      { role: "human", text: "Hi" },
      { role: "ai", text: "Hello,\n  you!" },
      { role: "ai", toolCalls: [{ name: "search", args: { q: 1 } }] },
      { role: "tool", name: "search", toolCallId: "c", text: "found \u001b[31m" },
    ]);
  });

  it("ls and show tell what went wrong and what is asked, in a line of bounded length", async () => {
    const long = `a\n  long \u001b[31mstory ${"x".repeat(2_000)}`;
    const fail = new StateGraph(State)
      .addNode("work", (): object => {
        throw new RangeError(long);
      })
      .addEdge(START, "work")
      .compile({ checkpointer: saver });
    await fail.invoke({ steps: [] }, config("failed")).catch(() => {});
    try {
      const [, row = ""] = (await output("ls", "--prefix", "failed")).split("\n");
      expect(row).toMatch(/ +work +error: RangeError: a long \\u001b\[31mstory x+…$/);
      expect(row.slice(row.indexOf("error: "))).toHaveLength("error: ".length + 80 + 5);
      const shown = (await output("show", "failed")).split("\n");
      const told = shown.find((line) => line.startsWith("error")) ?? "";
      expect(told).toMatch(/^error {7}work: RangeError: a long \\u001b\[31mstory x+…$/);
      expect(told.length).toBeLessThan(430);
      expect(shown.find((line) => line.startsWith("status"))).toBe("status      failed");
      const [json] = lines(await output("show", "failed", "--json"));
      expect(json.errors).toMatchObject([{ name: "work", error: { message: long } }]);
      const asked = (await threads("show", "asks")).stdout;
      expect(asked).toContain("\nasks        ask: well?\n");
    } finally {
      await saver.deleteThread("failed");
    }
  });

  it("show names the other namespaces, each of which it and history show", async () => {
    const { stdout, stderr } = await threads("show", "asks");
    expect(stderr).toBe("--ns shows one, here and with history.\n");
    const [, name = "", count] =
      /other namespaces\n {2}(inner:\S+) {2}(\d+) checkpoints\n$/.exec(stdout) ?? [];
    const [json] = lines(await output("show", "asks", "--json"));
    expect(json.namespaces.sort()).toEqual(["", name]);
    const history = await output("history", "asks", "--ns", name);
    expect(history.trim().split("\n")).toHaveLength(Number(count) + 1);
    expect((await threads("show", "asks", "--ns", name)).stdout).toMatch(/"" {2}\d+ checkpoints/);
    expect((await threads("history", "asks", "--ns", "none")).stderr).toContain(
      'no thread "asks" with the namespace "none"',
    );
  });

  it("show prints decoded values, and type and size of the others", async () => {
    const { code, stdout: text } = await threads("show", "asks");
    expect(code).toBe(0);
    expect(text).toMatch(/status +interrupted/);
    expect(text).toMatch(/pending +ask/);
    expect(text).toContain('steps: ["in\\u001b[31m","in\\u001b[31m","deep"]');
    expect(text).toMatch(/raw: <bytes, 293\.0 KiB>/);
    expect(text).toMatch(/__interrupt__: /);
    const [json] = lines(await output("show", "asks", "--json"));
    expect(json).toMatchObject({ status: "interrupted", checkpoint: { checkpointNs: "" } });
    expect(json.checkpoint.values.steps).toEqual(["in\u001b[31m", "in\u001b[31m", "deep"]);
    expect(json.checkpoint.pendingWrites).toHaveLength(1);
  });

  it("history lists checkpoints, the latest first", async () => {
    expect((await output("history", "done")).trim().split("\n")).toHaveLength(7);
    const { stdout } = await threads("history", "done", "--json", "--limit", "3");
    const all = lines(stdout);
    expect(all.map(({ step, source }) => [step, source])).toEqual([
      [4, "loop"],
      [3, "loop"],
      [2, "input"],
    ]);
    expect(all[0].parentCheckpointId).toBe(all[1].checkpointId);
    expect(await output("history", "done", "--limit", "6")).toBe(await output("history", "done"));
  });

  it("history tells when, which nodes ran and what changed", async () => {
    const table = (await output("history", "chat")).trim().split("\n");
    expect(table[0]).toMatch(/^CHECKPOINT +TIME \(UTC\) +STEP +SOURCE +NODES +CHANGED$/);
    const time = String.raw`\d{4}-\d\d-\d\d \d\d:\d\d:\d\d`;
    for (const [i, rest] of [
      String.raw`2 +loop +look +messages: tool search: found \\u001b\[31m`,
      "1 +loop +greet +messages: ai: Hello, you!",
      "0 +loop +__start__ +messages: human: Hi",
      "-1 +input +__start__: .*",
    ].entries()) {
      expect(table[i + 1]).toMatch(new RegExp(`^[\\da-f-]{36}  ${time}  ${rest}$`));
    }
    const all = lines(await output("history", "chat", "--json"));
    expect(all[1]).toMatchObject({
      step: 1,
      nodes: ["greet"],
      changed: ["branch:to:greet", "branch:to:look", "messages"],
      time: expect.stringMatching(/T.*Z$/),
    });

    // Of a fork the parent is not the next row.
    const first = all[2];
    await saver.put(
      { configurable: { thread_id: "chat", checkpoint_ns: "", checkpoint_id: first.checkpointId } },
      {
        ...(await saver.getTuple(config("chat")))!.checkpoint,
        id: "ffffffff-0000-6000-8000-000000000000",
        channel_versions: { messages: 99 },
        channel_values: { messages: "forked" },
      },
      { source: "fork", step: 1, parents: {} },
      { messages: 99 },
    );
    const [fork] = lines((await threads("history", "chat", "--json")).stdout);
    expect(fork).toMatchObject({ source: "fork", parentCheckpointId: first.checkpointId });
    expect(fork.changed).toEqual(["messages"]);
    // The parent of the last one shown is not shown; where it is not stored, nobody knows.
    const [cut] = lines((await threads("history", "chat", "--json", "--limit", "1")).stdout);
    expect(cut).not.toHaveProperty("changed");
    await pool.query(
      "delete from checkpoints where thread_id = 'chat' and metadata ->> 'source' = 'fork'",
    );
  });

  it("export and import restore a thread elsewhere, value for value", async () => {
    expect(await output("export", "asks", "--out", "asks.jsonl")).toMatch(
      /^Exported \d+ checkpoints/,
    );
    expect(await output("import", "asks.jsonl", "--as", "copy")).toMatch(
      /^Imported \d+ checkpoints as "copy"/,
    );
    expect(await stored("copy")).toBe(await stored("asks"));
    expect((await saver.threads.get("copy"))?.status).toBe("interrupted");
    expect(await threads("import", "asks.jsonl", "--as", "copy")).toMatchObject({
      code: 1,
      stderr: expect.stringContaining('thread "copy" exists'),
    });
    const piped = await output("export", "done");
    expect(lines(piped).at(-1)).toEqual({ end: true, checkpoints: 6 });

    // Cut off, damaged, not ours: nothing is left of it.
    const whole = await readFile(path.join(folder, "asks.jsonl"), "utf8");
    const cut = whole.split("\n").slice(0, -2).join("\n");
    for (const [text, sentence] of [
      [cut, "the file is incomplete: it has"],
      [`${cut.slice(0, -50)}`, "is not JSON: the file is damaged or was cut off"],
      ['{"a":1}\n', "not an exported thread"],
      ["", "not an exported thread: the file is empty"],
      [whole.replace('"checkpointId"', '"nothing"'), "line 2 is not a checkpoint"],
    ] as const) {
      await writeFile(path.join(folder, "bad.jsonl"), text);
      const bad = await threads("import", "bad.jsonl", "--as", "bad");
      expect(bad).toMatchObject({ code: 1, stderr: expect.stringContaining(sentence) });
    }
    const left = await pool.query(
      "select distinct thread_id from checkpoint_blobs union select thread_id from checkpoints order by 1",
    );
    expect(left.rows.map(({ thread_id }) => thread_id)).toEqual(["asks", "chat", "copy", "done"]);
    expect((await threads("import", "nowhere.jsonl")).stderr).toContain("ENOENT");
  });

  it("cp copies, rm deletes, and both say what is not there", async () => {
    expect(await output("cp", "done", "second")).toMatch(/^Copied 6 checkpoints, /);
    expect(await stored("second")).toBe(await stored("done"));
    expect((await threads("cp", "done", "second")).stderr).toContain("something is stored under");
    expect((await threads("cp", "nobody", "third")).stderr).toContain('no thread "nobody"');
    await saver.threads.claim({ owner: "gone", threadId: "second" });
    expect((await threads("release", "second")).stderr).toContain("needs --yes");
    expect((await saver.threads.get("second"))?.claim?.owner).toBe("gone");
    expect(await output("release", "second", "--yes")).toBe('Nobody holds thread "second" now.\n');
    expect((await saver.threads.get("second"))?.claim).toBeUndefined();
    expect(await threads("rm", "second")).toMatchObject({
      code: 2,
      stderr: expect.stringContaining("needs --yes"),
    });
    expect(await output("rm", "second", "--yes")).toBe('Deleted thread "second".\n');
    expect((await threads("rm", "second", "--yes")).stderr).toContain('no thread "second"');
    expect((await threads("show", "second")).stderr).toContain('no thread "second"');
    expect((await threads("history", "second")).stderr).toContain('no thread "second"');
    expect((await threads("export", "second")).stderr).toContain('no thread "second"');
  });

  it("prune says what would go, and removes it with --yes", async () => {
    await output("cp", "done", "old");
    const dry = await output("prune", "old", "--keep-last", "2", "--dry-run");
    expect(dry).toMatch(/^THREAD +CHECKPOINTS +VALUES +WRITES +SIZE\nold +4 /);
    expect(dry).toMatch(/Would remove 4 checkpoints, .* of 1 thread\.\n$/);
    expect(await threads("prune", "old", "--keep-last", "2")).toMatchObject({ code: 2 });
    const removed = await output("prune", "old", "--keep-last", "2", "--yes", "--json");
    expect(lines(removed)).toMatchObject([{ dryRun: false, threads: 1, checkpoints: 4 }]);
    expect(await output("prune", "--prefix", "old", "--keep-last", "2")).toBe(
      "Nothing to remove.\n",
    );
    expect(await output("prune", "old", "--delete", "--older-than", "1h", "--yes")).toContain(
      "Removed 0",
    );
    expect(await output("prune", "old", "--delete", "--yes")).toContain("Removed 2 checkpoints");
  });

  it("ends without a word when nobody reads on", async () => {
    const main = fileURLToPath(new URL("../../dist/src/cli/main.js", import.meta.url));
    const command = `"$1" "$2" threads history done --url "$3" | head -n 0; echo "\${PIPESTATUS[0]}"`;
    const { stdout, stderr } = await promisify(execFile)("bash", [
      ...["-c", command, "bash", process.execPath, main, server.url],
    ]);
    expect({ stdout, stderr }).toEqual({ stdout: "141\n", stderr: "" });
  });

  it("says where no server is", async () => {
    const { code, stderr } = await threads("ls", "--url", "http://127.0.0.1:1");
    expect(code).toBe(1);
    expect(stderr).toContain("http://127.0.0.1:1: [unavailable]");
  });
});
