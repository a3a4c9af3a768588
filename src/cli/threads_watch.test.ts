/** `threads watch` and `threads diff`, as processes against a server of this one. */
import { AIMessage, HumanMessage } from "@langchain/core/messages";
import { Annotation, MessagesAnnotation, START, StateGraph } from "@langchain/langgraph";
import { afterAll, beforeAll, expect, it } from "vitest";
import { ConnectSaver } from "../client/saver.js";
import type { Server } from "../server/server.js";
import { createDatabase, type TestDatabase } from "../testing/postgres.js";
import { runCommand, spawnCommand } from "../testing/serve_process.js";
import { startTestServer } from "../testing/test_server.js";

let database: TestDatabase;
let server: Server;
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
  saver = ConnectSaver.fromUrl(server.url);
  const settings = { tries: 1, deep: { kept: 1, changed: "a" } };
  await build().invoke({ messages: [new HumanMessage("Hi")], settings }, configOf("first"));
  await saver.threads.copy("first", "second");
  await build().updateState(configOf("second"), { note: "more" });
});
afterAll(async () => {
  await saver?.end();
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
    { CHECKPOINTD_URL: server.url },
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
    const { port } = server;
    await server.drain();
    await expect.poll(() => watch.output().stderr).toContain("The server does not answer");
    server = await startTestServer(database.url, { port });
    await expect.poll(() => watch.output().stderr).toContain("The server is back.");
    const before = lines().length;
    await build().updateState(configOf("watched"), { note: "x" });
    await expect.poll(() => lines().length).toBeGreaterThan(before);
    expect(lines().at(-1)).toMatchObject({ threadId: "watched", step: 2 });
    expect(new Set(lines().map((line) => JSON.stringify(line))).size).toBe(lines().length);
  } finally {
    watch.child.kill();
    await watch.finished;
  }
});
