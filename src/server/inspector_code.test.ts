/** The code that the page gives, pasted and run: each of it has to do what it says, whatever a thread is called. */
import { execFile } from "node:child_process";
import { mkdir, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { Annotation, interrupt, START, StateGraph } from "@langchain/langgraph";
import type { Page } from "playwright-core";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { ConnectSaver } from "../index.js";
import { noChromium, startChromium, type TestBrowser } from "../testing/chromium.js";
import { startEdge } from "../testing/edge.js";
import { noPython, runPython } from "../testing/installed_python.js";
import { startTestServer } from "../testing/test_server.js";
import type { Server } from "./server.js";
import { makeTokenFile } from "./token_file.js";

/** Ends so that a careless edit of the JSON around it would change it. */
const hostile = `it's "a" $HOME \`id\` $(id) \\ 'b' %0A !x #{y} \${z}\n\r\t 会话 👩‍👩‍👧 \u2028\u202eesrever\u007f\u009b x",":`;
const twin = `</script>'; drop -- "":"`;

/** What somebody has who pastes the code: a graph. */
const preamble = `import { Annotation, interrupt, START, StateGraph } from "@langchain/langgraph";
const State = Annotation.Root({
  log: Annotation({ reducer: (a, b) => a.concat(b), default: () => [] }),
});
const builder = new StateGraph(State)
  .addNode("draft", () => ({ log: ["draft"] }))
  .addNode("ask", () => ({ log: [interrupt({ question: "Publish?" })] }))
  .addEdge(START, "draft")
  .addEdge("draft", "ask");
`;

/** Called as grpcurl is, it has buf's curl ask the same. */
const asGrpcurl = (buf: string) => `const { spawnSync } = require("node:child_process");
const words = process.argv.slice(2);
const take = (flag, count) => {
  const at = words.indexOf(flag);
  return at < 0 ? [] : words.splice(at, count).slice(1);
};
take("-plaintext", 1);
const header = take("-H", 2);
const data = take("-d", 2);
const [address, method, ...more] = words;
if (more.length > 0) throw new Error("more words than grpcurl takes: " + more);
const args = [${JSON.stringify(buf)}, "curl", "--http2-prior-knowledge", "--protocol", "grpc"];
args.push(...header.flatMap((each) => ["--header", each, "--reflect-header", each]));
args.push("--data", data[0], "http://" + address + "/" + method);
process.exitCode = spawnSync(process.execPath, args, { stdio: "inherit" }).status;
`;

const root = fileURLToPath(new URL("../..", import.meta.url));

describe.skipIf(noChromium)(`code of the page${noChromium ? ` (${noChromium})` : ""}`, () => {
  let chromium: TestBrowser;
  let edge: Awaited<ReturnType<typeof startEdge>>;
  let closed: Server;
  let folder: string;
  let key: string;

  beforeAll(async () => {
    edge = await startEdge();
    // In the package, where what the code imports is found.
    await mkdir(path.join(root, "dist"), { recursive: true });
    folder = await mkdtemp(path.join(root, "dist", "page-code-"));
    const work = await mkdtemp(path.join(tmpdir(), "checkpointd-code-"));
    const tokenFile = path.join(work, "key");
    makeTokenFile(tokenFile);
    key = (await readFile(tokenFile, "utf8")).trim();
    closed = await startTestServer(edge.database.url, { tokenFile });
    await rm(work, { recursive: true });
    const require = createRequire(import.meta.url);
    const package_ = require.resolve("@bufbuild/buf/package.json");
    const buf = path.resolve(path.dirname(package_), require(package_).bin.buf);
    await writeFile(path.join(folder, "grpcurl.cjs"), asGrpcurl(buf));
    const program = `#!/bin/sh\nexec "${process.execPath}" "${folder}/grpcurl.cjs" "$@"\n`;
    await writeFile(path.join(folder, "grpcurl"), program, { mode: 0o755 });
    chromium = await startChromium();
  });
  afterAll(async () => {
    await chromium?.close();
    await closed?.drain();
    await edge?.stop();
    await rm(folder, { recursive: true, force: true });
  });

  const cases = [
    ["anybody", hostile],
    ["who has the key", twin],
  ] as const;
  const serverOf = (who: string) =>
    who === "anybody" ? { url: edge.server.url, token: "" } : { url: closed.url, token: key };
  const connect = ({ url, token }: { url: string; token: string }) =>
    ConnectSaver.fromUrl(url, { graph: "page", ...(token ? { token } : {}) });

  async function withPage(
    server: { url: string; token: string },
    use: (page: Page) => Promise<void>,
  ) {
    const context = await chromium.browser.newContext();
    try {
      const page = await context.newPage();
      page.setDefaultTimeout(30_000);
      await page.goto(server.url);
      if (server.token) {
        await page.getByLabel("API key or token").fill(server.token);
        await page.getByRole("button", { name: "Open" }).click();
      }
      await page.getByRole("heading", { level: 1, name: "Threads" }).waitFor();
      await use(page);
    } finally {
      await context.close();
    }
  }

  /** The text of the dialog for the checkpoint, or the latest. */
  async function codeOf(page: Page, thread: string, labels: string[], checkpoint?: string) {
    const query = new URLSearchParams({ thread, ...(checkpoint ? { checkpoint } : {}) });
    await page.goto(`${new URL(page.url()).origin}/?${query}`);
    await page.locator(".acts").getByRole("button", { name: "Code" }).click();
    for (const name of labels) {
      await page.getByRole("dialog").getByRole("button", { name, exact: true }).click();
    }
    return (await page.locator("pre.code").textContent()) ?? "";
  }

  const inShell = (text: string, token: string) =>
    promisify(execFile)("bash", ["-c", text], {
      env: { PATH: `${folder}:${process.env.PATH}`, CHECKPOINTD_TOKEN: token, HOME: "/home" },
      timeout: 60_000,
    });

  /** Its checkpoints, the latest first. */
  async function historyOf(threadId: string) {
    const { rows } = await edge.sql.query(
      `select checkpoint_id as id, parent_checkpoint_id as parent, (metadata->>'step')::int as step
      from checkpoints where thread_id = $1 order by checkpoint_id collate "C" desc`,
      [threadId],
    );
    return rows as { id: string; parent: string | null; step: number }[];
  }

  /** Runs each purpose's code, and looks at what it left. */
  async function tryAll(
    who: string,
    thread: string,
    language: string,
    run: (text: string, token: string) => Promise<string>,
  ) {
    const server = serverOf(who);
    const saver = connect(server);
    try {
      await withPage(server, async (page) => {
        const begun = await historyOf(thread);
        const start = begun.at(-2)?.id as string;
        expect(begun.map(({ step }) => step)).toEqual([1, 0, -1]);

        const look = await codeOf(page, thread, [language, "Look"]);
        expect(await run(look, server.token)).toContain("draft");
        expect(await historyOf(thread)).toEqual(begun);

        await run(await codeOf(page, thread, [language, "Run on"], start), server.token);
        const again = await historyOf(thread);
        expect(again.length).toBeGreaterThan(begun.length);
        expect(again.filter(({ parent }) => parent === start)).toHaveLength(2);
        expect(await saver.threads.get(thread)).toMatchObject({ status: "interrupted" });

        const latest = again[0]?.id;
        await run(await codeOf(page, thread, [language, "Fork"]), server.token);
        const forked = await historyOf(thread);
        expect(forked.some(({ parent }) => parent === latest)).toBe(true);
        expect(await saver.threads.get(thread)).toMatchObject({ status: "interrupted" });

        await run(await codeOf(page, thread, [language, "Answer"]), server.token);
        expect(await saver.threads.get(thread)).toMatchObject({
          status: "completed",
          graph: "page",
        });
        const { rows } = await edge.sql.query(
          "select distinct metadata->>'checkpointd_graph' as graph from checkpoints where thread_id = $1",
          [thread],
        );
        expect(rows).toEqual([{ graph: "page" }]);
      });
    } finally {
      await saver.end();
    }
  }

  it.each(cases)("reads with grpcurl, for %s", async (who, id) => {
    const thread = `grpcurl ${id}`;
    const server = serverOf(who);
    const saver = connect(server);
    try {
      await makeThread(saver, thread);
      const [latest] = await historyOf(thread);
      await withPage(server, async (page) => {
        const text = await codeOf(page, thread, ["grpcurl"]);
        expect(text).not.toMatch(/[\p{Cc}\p{Cf}\u2028](?<![\n\u200d])/u);
        const { stdout } = await inShell(text, server.token);
        expect(JSON.parse(stdout).tuple.key).toEqual({
          threadId: thread,
          checkpointId: latest?.id,
        });
      });
    } finally {
      await saver.end();
    }
  });

  it.each(cases)("looks, runs on, forks and answers in TypeScript, for %s", async (who, id) => {
    const thread = `typescript ${id}`;
    const saver = connect(serverOf(who));
    await makeThread(saver, thread);
    await saver.end();
    await tryAll(who, thread, "TypeScript", async (text, token) => {
      const file = path.join(folder, "pasted.mjs");
      await writeFile(file, preamble + text);
      const env = { PATH: process.env.PATH ?? "", CHECKPOINTD_TOKEN: token };
      const options = { env, timeout: 60_000 };
      return (await promisify(execFile)(process.execPath, [file], options)).stdout;
    });
  });

  it.skipIf(noPython).each(cases)(
    "looks, runs on, forks and answers in Python, for %s",
    async (who, id) => {
      const thread = `python ${id}`;
      const { url, token } = serverOf(who);
      await runPython("page_code.py", "make", url, token, thread);
      await tryAll(who, thread, "Python", async (text, token) => {
        const file = path.join(folder, "pasted.py");
        await writeFile(file, text);
        return runPython("page_code.py", "run", file, token);
      });
    },
  );

  async function makeThread(saver: ConnectSaver, thread_id: string): Promise<void> {
    const State = Annotation.Root({
      log: Annotation<string[]>({ reducer: (a, b) => a.concat(b), default: () => [] }),
    });
    const graph = new StateGraph(State)
      .addNode("draft", () => ({ log: ["draft"] }))
      .addNode("ask", () => ({ log: [interrupt({ question: "Publish?" }) as string] }))
      .addEdge(START, "draft")
      .addEdge("draft", "ask")
      .compile({ checkpointer: saver });
    await graph.invoke({ log: ["in"] }, { configurable: { thread_id } });
  }
});
