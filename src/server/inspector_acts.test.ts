/** What the page at / changes, in Chromium: each thing asked for once more, and done by the public API. */
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { toJson } from "@bufbuild/protobuf";
import { interrupt, MessagesAnnotation, START, StateGraph } from "@langchain/langgraph";
import type { BrowserContext, Page } from "playwright-core";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { CheckpointTupleSchema } from "../../gen/checkpointd/v1/checkpoint_pb.js";
import { ConnectSaver } from "../index.js";
import { createAuthFile } from "../testing/auth_file.js";
import { noChromium, startChromium, type TestBrowser } from "../testing/chromium.js";
import { startEdge } from "../testing/edge.js";
import { act, inDialog, newWatchedPage, of } from "../testing/inspected_page.js";
import { ids, runThreads } from "../testing/inspected_threads.js";
import { startRelay } from "../testing/relay.js";
import { runCommand } from "../testing/serve_process.js";
import { startTestServer } from "../testing/test_server.js";
import { makeTokenFile } from "./token_file.js";

describe.skipIf(noChromium)(`in Chromium${noChromium ? ` (${noChromium})` : ""}`, () => {
  let chromium: TestBrowser;
  let edge: Awaited<ReturnType<typeof startEdge>>;
  let saver: ConnectSaver;
  let context: BrowserContext | undefined;
  let folder: string;

  beforeAll(async () => {
    folder = await mkdtemp(path.join(tmpdir(), "checkpointd-page-"));
    edge = await startEdge();
    saver = ConnectSaver.fromUrl(edge.server.url, { graph: "shop" });
    await runThreads(saver, false);
    chromium = await startChromium();
  });
  afterEach(async () => {
    await context?.close();
    context = undefined;
  });
  afterAll(async () => {
    await chromium?.close();
    await saver?.end();
    await edge?.stop();
    await rm(folder, { recursive: true, force: true });
  });

  async function open(query: string, url = edge.server.url): Promise<Page> {
    context = await chromium.browser.newContext({ acceptDownloads: true });
    await context.grantPermissions(["clipboard-read", "clipboard-write"]);
    const { page } = await newWatchedPage(context);
    await page.goto(`${url}/${query}`);
    return page;
  }
  const historyOf = async (threadId: string) => {
    const found = [];
    for await (const { checkpoint, metadata, pendingWrites } of saver.list({
      configurable: { thread_id: threadId },
    })) {
      found.push({ checkpoint, metadata, pendingWrites });
    }
    return found;
  };

  /** Everything that is stored of a thread, in all namespaces, but for its name. */
  async function tuplesOf(threadId: string) {
    const found = [];
    for await (const { tuple } of edge.clients.connect.list({ threadId })) {
      if (!tuple?.key) continue;
      tuple.key.threadId = "";
      tuple.blobs.sort((a, b) => (a.channel < b.channel ? -1 : 1));
      const json = toJson(CheckpointTupleSchema, tuple) as Record<string, unknown>;
      // Told as the values they are, whoever sent them.
      found.push({ ...json, checkpointJson: JSON.parse(tuple.checkpointJson) });
    }
    return found;
  }

  it("copies a thread, and says why it does not", async () => {
    const page = await open(of(ids.values));
    await act(page, "Copy");
    await page.getByRole("dialog").getByRole("textbox").fill(ids.chat);
    await inDialog(page, "Copy");
    await page.getByRole("dialog").getByRole("alert").waitFor();
    await page.getByRole("dialog").getByRole("textbox").fill("a copy");
    await inDialog(page, "Copy");
    await page.getByRole("heading", { level: 1, name: "a copy" }).waitFor();
    expect(await historyOf("a copy")).toEqual(await historyOf(ids.values));
  });

  it("exports a thread to a file and imports it under another name", async () => {
    const page = await open(of(ids.question));
    await act(page, "Export");
    const [download] = await Promise.all([page.waitForEvent("download"), inDialog(page, "Export")]);
    expect(download.suggestedFilename()).toBe("refund_order-1042.jsonl");
    const file = path.join(folder, "thread.jsonl");
    await download.saveAs(file);
    await page.getByRole("link", { name: "Threads" }).click();
    await page.getByRole("button", { name: "Import" }).click();
    await page.getByLabel("An exported file").setInputFiles(file);
    await page.getByLabel("The thread's name here").fill("imported");
    await inDialog(page, "Import");
    await page.getByRole("heading", { level: 1, name: "imported" }).waitFor();
    const before = await historyOf(ids.question);
    expect(before.length).toBeGreaterThan(2);
    expect(await historyOf("imported")).toEqual(before);
    expect(await saver.threads.get("imported")).toMatchObject({ status: "interrupted" });
    // Nothing is left of the name it had meanwhile.
    expect(await edge.checkpoints("importing-%")).toBe(0);
  });

  it("exports what the terminal imports, and imports what that exports, whole", async () => {
    // What an old LangGraph left, of whose first checkpoint a prune left the values sent alone.
    await edge.sql.query(
      `insert into checkpoint_writes
         (thread_id, checkpoint_ns, checkpoint_id, task_id, task_path, idx, channel, type, blob)
       values ('old', '', '1', 'task', 'p', 0, '__pregel_tasks', 'json', '"sent"'),
         ('old', '', '1', 'task', 'p', 1, '__pregel_tasks', 'json', '"too"')`,
    );
    await edge.clients.connect.put({
      threadId: "old",
      checkpointId: "2",
      parentCheckpointId: "1",
      checkpointJson: '{"v": 3}',
    });
    const page = await open("");
    for (const [i, id] of [ids.chat, ids.nested, ids.question, "old"].entries()) {
      await page.goto(`${edge.server.url}/${of(id)}`);
      await act(page, "Export");
      const [download] = await Promise.all([
        page.waitForEvent("download"),
        inDialog(page, "Export"),
      ]);
      const file = path.join(folder, `round${i}.jsonl`);
      await download.saveAs(file);
      const run = (...args: string[]) =>
        runCommand(["threads", ...args], { CHECKPOINTD_URL: edge.server.url }, folder);
      expect(await run("import", file, "--as", `cli${i}`)).toMatchObject({ code: 0 });
      const back = path.join(folder, `back${i}.jsonl`);
      expect(await run("export", `cli${i}`, "--out", back)).toMatchObject({ code: 0 });
      await page.goto(edge.server.url);
      await page.getByRole("button", { name: "Import" }).click();
      await page.getByLabel("An exported file").setInputFiles(back);
      await page.getByLabel("The thread's name here").fill(`page${i}`);
      await inDialog(page, "Import");
      await page.getByRole("heading", { level: 1, name: `page${i}` }).waitFor();
      const before = await tuplesOf(id);
      expect(before.length, id).toBeGreaterThan(0);
      expect(await tuplesOf(`cli${i}`), id).toEqual(before);
      expect(await tuplesOf(`page${i}`), id).toEqual(before);
    }
    expect(JSON.stringify(await tuplesOf("page3"))).toContain(
      Buffer.from('"too"').toString("base64"),
    );
    expect(await edge.checkpoints("importing-%")).toBe(0);
  });

  it("refuses a file that was cut off", async () => {
    const file = path.join(folder, "cut.jsonl");
    const header = JSON.stringify({ checkpointd: "thread", version: 1, threadId: "x" });
    const checkpoint = JSON.stringify({ key: { checkpointId: "1" }, checkpointJson: "{}" });
    const page = await open("");
    for (const [text, problem] of [
      [`${header}\n${checkpoint}\n`, "The file is incomplete: it has 1 checkpoint"],
      [`${header}\n${checkpoint.slice(0, -9)}`, "Line 2 is not JSON"],
      [`${header}\n{}\n`, "Line 2 is not a checkpoint"],
      [`${checkpoint}\n`, "Not an exported thread: the first line is not its header"],
      ["", "Not an exported thread: the file is empty"],
    ] as const) {
      await writeFile(file, text);
      await page.goto(edge.server.url);
      await page.getByRole("button", { name: "Import" }).click();
      await page.getByLabel("An exported file").setInputFiles(file);
      await inDialog(page, "Import");
      await page.getByRole("alert").getByText(problem).waitFor();
    }
    expect(await edge.checkpoints("importing-%")).toBe(0);
    expect(await saver.threads.get("x")).toBeUndefined();
  });

  it("counts what a prune would remove before it removes it", async () => {
    await saver.threads.copy(ids.chat, "pruned");
    const before = (await historyOf("pruned")).length;
    const page = await open(of("pruned"));
    await act(page, "Prune");
    const dialog = page.getByRole("dialog");
    const remove = dialog.getByRole("button", { name: "Remove it" });
    expect(await remove.isDisabled()).toBe(true);
    await dialog.getByRole("spinbutton").fill("2");
    await inDialog(page, "Count what would go");
    await dialog.getByText(`${before - 2} checkpoints`).waitFor();
    expect((await historyOf("pruned")).length).toBe(before);
    await remove.click();
    await dialog.waitFor({ state: "detached" });
    expect((await historyOf("pruned")).length).toBe(2);
    await expect.poll(() => page.locator(".history li").count()).toBe(2);
  });

  it("ends a lease, and deletes a thread, when that is confirmed", async () => {
    await saver.threads.copy(ids.failed, "doomed");
    const [claimed] = await saver.threads.claim({ owner: "worker-7", threadId: "doomed" });
    expect(claimed).toBeDefined();
    const page = await open(of("doomed"));
    await page.getByText("held by worker-7").waitFor();
    await act(page, "Release the lease");
    await page.getByRole("dialog").getByText("worker-7").waitFor();
    await inDialog(page, "End the lease");
    await page.getByText("held by worker-7").waitFor({ state: "detached" });
    expect((await saver.threads.get("doomed"))?.claim).toBeUndefined();
    await act(page, "Delete");
    await inDialog(page, "Cancel");
    expect(await saver.threads.get("doomed")).toBeDefined();
    await act(page, "Delete");
    await inDialog(page, "Delete it");
    await page.getByRole("heading", { level: 1, name: "Threads" }).waitFor();
    expect(await saver.threads.get("doomed")).toBeUndefined();
  });

  it("gives code that goes on from the checkpoint that is shown", async () => {
    const [, second] = await historyOf(ids.values);
    const id = second?.checkpoint.id as string;
    const page = await open(of(ids.values, `&checkpoint=${id}`));
    await act(page, "Code");
    const code = page.locator("pre.code");
    await inDialog(page, "grpcurl");
    expect(await code.innerText()).toContain(
      `grpcurl -plaintext -d '{"thread_id": "${ids.values}", "checkpoint_id": "${id}"}'`,
    );
    await page.getByRole("button", { name: "TypeScript" }).click();
    expect(await code.innerText()).toContain(
      `configurable: {"thread_id": "${ids.values}", "checkpoint_ns": "", "checkpoint_id": "${id}"}`,
    );
    expect(await code.innerText()).toContain("graph.invoke(null, config)");
    await inDialog(page, "Copy");
    await page.getByText("Copied.").waitFor();
    expect(await page.evaluate("navigator.clipboard.readText()")).toBe(await code.innerText());
    await inDialog(page, "Fork");
    expect(await page.getByText("Copied.").count()).toBe(0);
    expect(await code.innerText()).toContain("graph.updateState(config, ");
    await page.getByRole("button", { name: "Python" }).click();
    expect(await code.innerText()).toContain("graph.update_state(config, {})");
    // Nothing waits for an answer there.
    expect(await page.getByRole("dialog").getByRole("button", { name: "Answer" }).count()).toBe(0);
    await page.keyboard.press("Escape");
    await page.getByRole("dialog").waitFor({ state: "detached" });
  });

  it("gives each question's answer by its id, and of a subgraph only what reads it", async () => {
    const both = new StateGraph(MessagesAnnotation)
      .addNode("left", () => ({ messages: [interrupt("left?") as string] }))
      .addNode("right", () => ({ messages: [interrupt("right?") as string] }))
      .addEdge(START, "left")
      .addEdge(START, "right")
      .compile({ checkpointer: saver });
    await both.invoke({ messages: [] }, { configurable: { thread_id: "two questions" } });
    const asked = await saver.threads.get("two questions", { withReasons: true });
    const [first, second] = asked?.interrupts?.map(({ id }) => id) ?? [];
    const page = await open(of("two questions"));
    await act(page, "Code");
    await inDialog(page, "Python");
    expect(await page.locator("pre.code").innerText()).toContain(
      `Command(resume={"${first}": "yes", "${second}": "yes"})`,
    );
    await page.goto(`${edge.server.url}/${of(ids.nested)}`);
    await page.getByLabel("Graph").selectOption({ index: 1 });
    await act(page, "Code");
    await inDialog(page, "TypeScript");
    await page.getByRole("dialog").getByText("choose one of its checkpoints").waitFor();
    expect(await page.locator("pre.code").innerText()).toContain("graph.getState(config)");
    expect(await page.locator("pre.code").innerText()).toContain('"checkpoint_ns": "reader');
  });

  it("offers nothing that changes anything where it is read-only", async () => {
    const server = await startTestServer(edge.database.url, { ui: "read-only" });
    await saver.threads.copy(ids.question, "only looked at");
    await saver.threads.claim({
      owner: "worker-9",
      threadId: "only looked at",
      status: "interrupted",
    });
    const called = new Set<string>();
    try {
      const page = await open("", server.url);
      page.on("request", (request) => {
        const method = /\/checkpointd\.v1\.\w+\/(\w+)$/.exec(request.url())?.[1];
        if (method) called.add(method);
      });
      const named = () =>
        page.getByRole("button", {
          name: /\b(copy|import|prune|delete|remove|release|end|answer|run|fork)\b/i,
        });
      await page.locator(".row").first().waitFor();
      expect(await page.getByText("read-only").count()).toBe(1);
      expect(await named().count()).toBe(0);
      expect(await page.locator("input[type=file], dialog").count()).toBe(0);
      // No address opens what is not offered.
      for (const more of ["&act=delete", "&delete", "#delete", "&tab=delete#release"]) {
        await page.goto(`${server.url}/${of("only looked at", more)}`);
        await page.getByText("held by worker-9").waitFor();
        await page.locator(".acts button").first().waitFor();
        expect(await page.locator(".acts button").allInnerTexts()).toEqual(["Code", "Export"]);
        expect(await named().count()).toBe(0);
        expect(await page.locator("dialog").count()).toBe(0);
      }
      // Nor does a key, wherever the focus is.
      for (const key of ["Tab", "Delete", "d", "c", "i", "p", "x", "Backspace", "Tab", "Delete"]) {
        await page.keyboard.press(key);
      }
      expect(await page.locator("dialog").count()).toBe(0);
      await act(page, "Code");
      for (const language of ["grpcurl", "TypeScript", "Python"]) {
        await inDialog(page, language);
        const code = await page.locator("pre.code").innerText();
        expect(code).not.toMatch(/invoke|update|Command|Put|Delete/);
        expect(code).toMatch(/GetTuple|get_?state/i);
      }
      const offered = await page.getByRole("dialog").getByRole("button").allInnerTexts();
      expect(offered).toEqual(["grpcurl", "TypeScript", "Python", "Close", "Copy"]);
      expect([...called].filter((name) => !/^(Get|List)/.test(name))).toEqual([]);
      expect(await saver.threads.get("only looked at")).toMatchObject({
        status: "interrupted",
        claim: { owner: "worker-9" },
      });
    } finally {
      await context?.close();
      await server.drain();
    }
  });

  it("asks for a key where the server asks who calls, and keeps it in the tab alone", async () => {
    const tokenFile = path.join(folder, "key");
    makeTokenFile(tokenFile);
    const key = (await readFile(tokenFile, "utf8")).trim();
    const server = await startTestServer(edge.database.url, { tokenFile });
    try {
      const page = await open(of(ids.chat), server.url);
      const field = page.getByLabel("API key or token");
      await field.fill("not-the-key");
      await page.getByRole("button", { name: "Open" }).click();
      await expect.poll(() => field.inputValue()).toBe("");
      await field.fill(key);
      await page.getByRole("button", { name: "Open" }).click();
      await page.locator(".message").first().waitFor();
      expect(await page.evaluate("[localStorage.length, document.cookie]")).toEqual([0, ""]);
      expect(page.url()).not.toContain(key);
      await page.reload();
      await page.locator(".message").first().waitFor();
      const other = await context?.newPage();
      await other?.goto(server.url);
      await other?.getByLabel("API key or token").waitFor();
      await page.getByRole("button", { name: "Forget the key" }).click();
      await field.waitFor();
      expect(await page.evaluate("sessionStorage.length")).toBe(0);
    } finally {
      await context?.close();
      await server.drain();
    }
  });

  it("asks again in the middle of it, and keeps the place, when the key is another one", async () => {
    const keys = [];
    for (const name of ["first", "second"]) {
      const tokenFile = path.join(folder, `key-${name}`);
      makeTokenFile(tokenFile);
      keys.push({ tokenFile, key: (await readFile(tokenFile, "utf8")).trim() });
    }
    const [first, second] = keys as [(typeof keys)[0], (typeof keys)[0]];
    let server = await startTestServer(edge.database.url, { tokenFile: first.tokenFile });
    // A port that a server has left may be another's before the next listens.
    const relay = await startRelay(() => server.port);
    try {
      const checkpoint = (await historyOf(ids.values))[1]?.checkpoint.id as string;
      const page = await open(of(ids.values, `&checkpoint=${checkpoint}&tab=changes`), relay.url);
      const asked: string[] = [];
      page.on("request", (request) => asked.push(request.url()));
      const field = page.getByLabel("API key or token");
      await field.fill(first.key);
      await page.getByRole("button", { name: "Open" }).click();
      const changes = page.locator(".changes");
      await changes.waitFor();
      const shown = await changes.innerText();
      const address = page.url();
      await server.drain();
      server = await startTestServer(edge.database.url, { tokenFile: second.tokenFile });
      await field.waitFor();
      // Nothing of the thread is left for who comes by, nor the key that is none any more.
      expect(await changes.count()).toBe(0);
      expect(await page.locator("main").innerText()).not.toContain(ids.values);
      expect(await page.evaluate("sessionStorage.length")).toBe(0);
      expect(page.url()).toBe(address);
      await field.fill(second.key);
      await page.getByRole("button", { name: "Open" }).click();
      await changes.waitFor();
      expect(await changes.innerText()).toBe(shown);
      expect(page.url()).toBe(address);
      for (const { key } of keys) {
        expect(asked.filter((url) => url.includes(key))).toEqual([]);
        expect(await page.content()).not.toContain(key);
      }
      // Code names the key's place and never holds it.
      await act(page, "Code");
      for (const language of ["grpcurl", "TypeScript", "Python"]) {
        await inDialog(page, language);
        const code = await page.locator("pre.code").innerText();
        expect(code).toContain("CHECKPOINTD_TOKEN");
        expect(code).not.toContain(second.key);
      }
    } finally {
      await context?.close();
      relay.close();
      await server.drain();
    }
  });

  it("lists and reads what a key may read, and says what it may not do", async () => {
    const grants = [{ operations: ["read"], threads: ["support/*"] }];
    const auth = createAuthFile({}, { reader: { grants } });
    const server = await startTestServer(edge.database.url, { authFile: auth.file });
    try {
      const page = await open("", server.url);
      await page.getByLabel("API key or token").fill(auth.keys.reader as string);
      await page.getByRole("button", { name: "Open" }).click();
      await page.getByRole("link", { name: "lists them by id" }).waitFor();
      await page.getByLabel("Id begins with").fill("support/");
      await page.waitForURL(/prefix=support/);
      await page.getByRole("link", { name: "lists them by id" }).click();
      await page.locator(".row").first().click();
      await page.locator(".message").first().waitFor();
      await act(page, "Delete");
      await inDialog(page, "Delete it");
      await page.getByRole("alert").getByText("may not delete this thread").waitFor();
      expect(await saver.threads.get(ids.chat)).toBeDefined();
      await page.goto(`${server.url}/${of(ids.values)}`);
      await page.getByRole("alert").getByText("may not read this thread").first().waitFor();
      expect(await page.locator("main").innerText()).not.toContain("Revenue");
    } finally {
      await context?.close();
      await server.drain();
      auth.remove();
    }
  });
});
