/** The page at / in Chromium, on threads that real graphs left. */
import { execFile } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { createServer, request as startRequest } from "node:http";
import { createRequire } from "node:module";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import path from "node:path";
import { promisify } from "node:util";
import { Annotation, Send, START, StateGraph } from "@langchain/langgraph";
import type { BrowserContext, BrowserContextOptions, Page } from "playwright-core";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { ConnectSaver } from "../index.js";
import { createCertificate } from "../testing/certificate.js";
import { noChromium, startChromium, type TestBrowser } from "../testing/chromium.js";
import { startEdge } from "../testing/edge.js";
import { newWatchedPage, of } from "../testing/inspected_page.js";
import { answerQuestion, hostileText, ids, runThreads } from "../testing/inspected_threads.js";
import { startTestServer } from "../testing/test_server.js";

const axeFile = createRequire(import.meta.url).resolve("axe-core/axe.min.js");

/** In a shell: curl, and what understands these arguments of it where there is none. */
const asCurl = `command -v curl >/dev/null || curl() {
  "${process.execPath}" --input-type=module -e '
    const [, type, , body, url] = process.argv.slice(1);
    const headers = Object.fromEntries([type.split(": ")]);
    console.log(await (await fetch(url, { method: "POST", headers, body })).text());
  ' -- "$@"
}`;

describe.skipIf(noChromium)(`in Chromium${noChromium ? ` (${noChromium})` : ""}`, () => {
  let chromium: TestBrowser;
  let edge: Awaited<ReturnType<typeof startEdge>>;
  let saver: ConnectSaver;
  let context: BrowserContext | undefined;
  const steps = 10_000;

  beforeAll(async () => {
    edge = await startEdge();
    saver = ConnectSaver.fromUrl(edge.server.url, { graph: "shop" });
    await runThreads(saver);
    // A thread so long that only a database makes it in time.
    await edge.sql.query(
      `insert into checkpoints (thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, type, checkpoint, metadata)
      select 'long', '', lpad(n::text, 6, '0'), case when n > 0 then lpad((n - 1)::text, 6, '0') end,
        null, '{"v": 4, "channel_versions": {}}', jsonb_build_object('step', n, 'source', 'loop')
      from generate_series(0, ${steps - 1}) as n`,
    );
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
  });

  /** What the page complained about, which is nothing unless a test says so. */
  let complaints: string[] = [];
  async function open(query = "", options: BrowserContextOptions = {}, url = edge.server.url) {
    context = await chromium.browser.newContext({
      viewport: { width: 1280, height: 800 },
      ...options,
    });
    const watched = await newWatchedPage(context);
    complaints = watched.complaints;
    await watched.page.goto(`${url}/${query}`);
    return watched.page;
  }
  const configOf = (thread_id: string, checkpoint_id: string) => ({
    configurable: { thread_id, checkpoint_ns: "", checkpoint_id },
  });

  async function violations(page: Page): Promise<string[]> {
    // As a driver's script it is not under the page's policy.
    await page.evaluate(await readFile(axeFile, "utf8"));
    const [passed, found] = (await page.evaluate(
      `axe.run({ runOnly: ["wcag2a", "wcag2aa", "wcag21aa", "best-practice"] })
        .then(({ passes, violations }) => [
          passes.length,
          violations.map(({ id, nodes }) => id + ": " + nodes.map(({ html }) => html).join(" | ")),
        ])`,
    )) as [number, string[]];
    expect(passed).toBeGreaterThan(10);
    return found;
  }

  it("has those that wait for somebody on top, with what they ask or what went wrong", async () => {
    const page = await open("?prefix=&graph=shop");
    const waiting = page.locator(".waiting .row");
    await waiting.first().waitFor();
    expect(await waiting.locator(".id").allInnerTexts()).toEqual([
      expect.stringMatching(/^hostile/),
      ids.question,
      ids.failed,
    ]);
    expect(await waiting.locator(".reason").allInnerTexts()).toEqual([
      expect.stringContaining("<script>"),
      "asks: Refund 129.9 EUR to Ada Lovelace for order 1042?",
      "error: TypeError: line 30117: the column total is not a number",
    ]);
    const all = page.locator(".list:not(.waiting) .row .id");
    expect(await all.allInnerTexts()).toEqual([ids.chat, ids.values, ids.nested]);
    expect(complaints).toEqual([]);
  });

  it("holds in its address what is shown, and shows what the address says", async () => {
    const page = await open();
    await page.getByRole("button", { name: "failed", exact: true }).click();
    await page.waitForURL(/status=failed/);
    await expect.poll(() => page.locator(".row").count()).toBe(1);
    await page.getByLabel("Id begins with").fill("nobody");
    await page.getByText("No thread matches the filters.").waitFor();
    expect(new URL(page.url()).searchParams.get("prefix")).toBe("nobody");
    await page.getByLabel("Id begins with").fill("nightly/");
    await page.locator(".row").first().click();
    await page.getByRole("heading", { level: 1, name: ids.failed }).waitFor();
    await page.goBack();
    expect(await page.getByLabel("Id begins with").inputValue()).toBe("nightly/");
    expect(
      await page.getByRole("button", { name: "failed", exact: true }).getAttribute("aria-pressed"),
    ).toBe("true");
  });

  it("fits its filters in a row, and says what a filter's text is to be", async () => {
    const page = await open("", { viewport: { width: 1280, height: 800 } });
    const tops = await page
      .locator(".filters > *")
      .evaluateAll((all) => all.map((each) => Object(each).getBoundingClientRect().bottom));
    expect(new Set(tops.map(Math.round)).size).toBe(1);
    const metadata = page.getByLabel("Metadata contains");
    expect(
      await metadata.evaluate((input) => {
        const { placeholder, clientWidth } = Object(input);
        Object(input).value = placeholder;
        return Object(input).scrollWidth <= clientWidth;
      }),
    ).toBe(true);
    await metadata.fill("ada");
    await page.getByText("a JSON object, as").waitFor();
    expect(new URL(page.url()).search).toBe("");
    await page.getByLabel("Id begins with").fill("nobody");
    await page.getByRole("link", { name: "Show all threads" }).click();
    await page.locator(".row").first().waitFor();
    expect(new URL(page.url()).search).toBe("");
  });

  it("tells whose task asked or failed, and with what, once", async () => {
    const page = await open(of(ids.failed, "&tab=tasks"));
    const head = page.locator(".thread-head .reason");
    expect((await head.innerText()).replace(/\s+/g, " ")).toBe(
      "error in load TypeError: line 30117: the column total is not a number",
    );
    expect((await page.locator(".tasks .reason").innerText()).replace(/\s+/g, " ")).toBe(
      "error TypeError: line 30117: the column total is not a number",
    );
    await page.goto(`${edge.server.url}/${of(ids.question)}`);
    expect(await head.locator(".kind").innerText()).toBe("approve asks");
  });

  it("names the nodes that Send ran, and shows no picture of bytes that are none", async () => {
    const Fan = Annotation.Root({
      notes: Annotation<string[]>({ reducer: (a, b) => [...a, ...b], default: () => [] }),
      cut: Annotation<Uint8Array>,
    });
    const graph = new StateGraph(Fan)
      .addNode("plan", () => ({ cut: new Uint8Array([0x89, 0x50, 0x4e, 0x47, 1, 2]) }))
      .addNode("write", () => ({ notes: ["a line"] }))
      .addEdge(START, "plan")
      .addConditionalEdges("plan", () => [new Send("write", {}), new Send("write", {})], ["write"])
      .compile({ checkpointer: saver });
    await graph.invoke({}, { configurable: { thread_id: "fan" } });
    const page = await open(of("fan"));
    await page.getByRole("heading", { level: 2, name: "Step 2 after write" }).waitFor();
    await page.getByText("No picture that this browser can show.").waitFor();
    await saver.deleteThread("fan");
  });

  it("reads messages as a conversation", async () => {
    const page = await open(of(ids.chat));
    const messages = page.locator(".message");
    await messages.nth(7).waitFor();
    expect(await messages.locator(".role").allInnerTexts()).toEqual([
      "Human",
      "AI",
      "Tool",
      "AI",
      "Human",
      "AI",
      "Tool",
      "AI",
    ]);
    const text = await page.locator(".conversation").innerText();
    expect(text).toContain("Hi! Where is my order 1042?");
    expect(text).toMatch(/calls look_up_order\s*call_1/);
    expect(text).toContain("answers call_1");
    expect(text).toContain("Could it come earlier instead?");
    expect(text).not.toContain("12 St James's Square instead");
    expect(complaints).toEqual([]);
  });

  it("shows a fork as two branches, each with what it said", async () => {
    const page = await open(of(ids.chat));
    await page.locator(".forked").waitFor();
    expect(await page.locator(".forked").count()).toBe(1);
    const rows = await page.locator(".history .source").allInnerTexts();
    expect(rows.slice(0, 6)).toEqual(["agent", "tools", "agent", "start", "input", "agent"]);
    // Two lanes; the older branch's last step is on the second.
    expect(await page.locator(".dot.lane-1").count()).toBe(5);
    const older = page.locator(".history li", { has: page.locator(".dot.lane-1") }).first();
    await older.locator("a").click();
    await page.getByText("Please send it to 12 St James's Square instead.").waitFor();
    expect(new URL(page.url()).searchParams.get("checkpoint")).toBeTruthy();
  });

  it("tells how one branch differs from the other, in the address too", async () => {
    const page = await open(of(ids.chat, "&tab=changes"));
    await page.locator(".changes").waitFor();
    const against = page.getByLabel("Compared with");
    expect(await against.locator("option").count()).toBe(2);
    await against.selectOption({ index: 1 });
    const removed = page.locator(".changes .removed");
    await removed.getByText("Please send it to 12 St James's Square instead.").waitFor();
    await page.locator(".changes .added").getByText("Could it come earlier instead?").waitFor();
    const end = new URL(page.url()).searchParams.get("against") as string;
    expect((await saver.getTuple(configOf(ids.chat, end)))?.metadata?.step).toBe(8);
    await page.reload();
    await removed.first().waitFor();
    await against.selectOption({ index: 0 });
    await removed.first().waitFor({ state: "detached" });
    expect(new URL(page.url()).searchParams.get("against")).toBeNull();
    expect(complaints).toEqual([]);
  });

  it("tells the difference of a step in one click", async () => {
    const page = await open(of(ids.values));
    await page.getByRole("tab", { name: /Changes/ }).click();
    const changes = page.locator(".changes");
    await changes.waitFor();
    expect(await changes.locator("h3 .name").allInnerTexts()).toEqual([
      "settings",
      "summary",
      "tags",
    ]);
    const settings = await changes.locator(".channel").first().innerText();
    expect(settings.replace(/\s+/g, " ")).toContain("retries 3 → 5");
    expect(settings).toContain("nested › deep › deeper › 1");
    const summary = changes.locator(".channel").nth(1);
    expect(await summary.locator("del").innerText()).toBe("4");
    expect(await summary.locator("ins").innerText()).toBe("14");
    const tags = changes.locator(".channel").nth(2);
    expect(await tags.locator(".removed").innerText()).toContain("draft");
    expect(await tags.locator(".added").innerText()).toContain("approved");
    expect(await tags.innerText()).not.toContain("internal");
  });

  it("opens values of every kind, and a subgraph", async () => {
    const page = await open(of(ids.values));
    const chart = page.getByRole("region", { name: "chart" });
    await chart.locator("img").waitFor();
    expect(await chart.locator("img").evaluate((image) => Object(image).naturalWidth)).toBe(2);
    const prices = page.getByRole("region", { name: "prices" });
    expect(await prices.locator("h3").innerText()).toContain("Map · 2");
    await prices.getByText("basic").click();
    await prices.getByText("11.9", { exact: true }).waitFor();
    await page.goto(`${edge.server.url}/${of(ids.nested)}`);
    const graphs = page.getByLabel("Graph");
    await graphs.waitFor();
    const [, inner] = await graphs.locator("option").all();
    expect(await inner?.innerText()).toMatch(/^\s*reader/);
    await graphs.selectOption({ index: 1 });
    await page.getByText("charging scales with the square root").first().waitFor();
    expect(new URL(page.url()).searchParams.get("ns")).toMatch(/^reader/);
    expect(complaints).toEqual([]);
  });

  it("takes hostile names and values for text", async () => {
    const page = await open(of(ids.hostile));
    await page.locator(".message").nth(0).waitFor();
    expect(await page.locator("h1").innerText()).toBe(ids.hostile);
    for (const tab of ["Changes", "Tasks"]) {
      await page.getByRole("tab", { name: tab }).click();
      await page.getByRole("tabpanel").getByText(hostileText).first().waitFor();
    }
    const metadata = JSON.stringify({ [hostileText]: hostileText });
    await edge.clients.connect.put({
      threadId: "hostile",
      checkpointId: hostileText,
      checkpointJson: '{"v": 4}',
      metadataJson: metadata,
    });
    await page.goto(`${edge.server.url}/${of("hostile", "&tab=metadata")}`);
    await page.getByRole("tabpanel").getByText(hostileText).first().waitFor();
    await page.getByRole("button", { name: "as JSON" }).click();
    await page.locator("pre.raw").getByText("<script>").waitFor();
    expect(await page.locator("main img, main script").count()).toBe(0);
    expect(await page.evaluate("[globalThis.wasRun, ({}).polluted]")).toEqual([
      undefined,
      undefined,
    ]);
    expect(complaints).toEqual([]);
  });

  it("scrolls through ten thousand steps with few of them in the document", async () => {
    const page = await open(of("long"));
    const rows = page.locator(".history li");
    await rows.first().waitFor();
    expect(await rows.first().innerText()).toContain("9999");
    const box = page.locator(".history");
    await expect
      .poll(
        async () => {
          await box.evaluate((element) => {
            Object(element).scrollTop = Object(element).scrollHeight;
          });
          return rows.last().innerText();
        },
        { timeout: 55_000, interval: 100 },
      )
      .toMatch(/^0\b/);
    expect(await rows.count()).toBeLessThan(60);
    await rows.last().locator("a").click();
    await page.getByRole("heading", { level: 2, name: "Step 0" }).waitFor();
  });

  it("is used by keys alone", async () => {
    const page = await open("?prefix=support/");
    await page.locator(".row").first().waitFor();
    await page.keyboard.press("Tab");
    expect(await page.evaluate("document.activeElement.textContent")).toBe("Skip to the content");
    await page.locator(".row").first().focus();
    await page.keyboard.press("Enter");
    const current = page.locator(".history [aria-current=step]");
    await current.waitFor();
    await current.focus();
    await page.keyboard.press("ArrowDown");
    await page.keyboard.press("ArrowDown");
    await page.getByRole("heading", { level: 2, name: /^Step 6/ }).waitFor();
    await expect.poll(() => page.evaluate("document.activeElement.innerText")).toMatch(/^6\b/);
    await page.getByRole("tab", { name: /State/ }).focus();
    await page.keyboard.press("ArrowRight");
    await page.locator(".changes").waitFor();
    expect(await page.evaluate("document.activeElement.id")).toBe("tab-changes");
  });

  it("follows a thread that goes on", async () => {
    const page = await open(`${of(ids.question)}`);
    await page.locator(".thread-head .status.interrupted").waitFor();
    await page.locator(".history .sign.asks").waitFor();
    await page.getByRole("tab", { name: "Tasks" }).click();
    await page.getByRole("tabpanel").getByText("arrived broken").waitFor();
    await answerQuestion(saver);
    await page.locator(".thread-head .status.completed").waitFor();
    await expect.poll(() => page.locator(".history li").first().innerText()).toMatch(/^3\b/);
    await page.locator(".history .sign.asks").waitFor({ state: "detached" });
  });

  it.each([
    ["light", 1280],
    ["dark", 1280],
    ["light", 390],
  ] as const)("breaks no rule of accessibility, %s, %i wide", async (colorScheme, width) => {
    const viewport = { width, height: 800 };
    const page = await open("?sizes=1", { colorScheme, viewport });
    await page.locator(".row .size", { hasText: "B" }).first().waitFor();
    expect(await violations(page)).toEqual([]);
    for (const [query, ready] of [
      [of(ids.chat), ".message"],
      [of(ids.values), ".tree"],
      [of(ids.values, "&tab=changes"), ".changes"],
      [of(ids.failed, "&tab=tasks"), ".tasks"],
      [of(ids.hostile, "&tab=metadata"), ".channel"],
    ] as const) {
      await page.goto(`${edge.server.url}/${query}`);
      await page.locator(ready).first().waitFor();
      expect(await violations(page), query).toEqual([]);
      const overflow = "document.documentElement.scrollWidth - innerWidth";
      expect(await page.evaluate(overflow), query).toBeLessThanOrEqual(0);
    }
    for (const name of ["Code", "Export", "Copy", "Prune", "Delete"]) {
      await page.locator(".acts").getByRole("button", { name, exact: true }).click();
      await page.getByRole("dialog").waitFor();
      expect(await violations(page), name).toEqual([]);
      await page.keyboard.press("Escape");
      await page.getByRole("dialog").waitFor({ state: "detached" });
    }
  });

  it("is served over TLS, where a browser speaks HTTP/2", async () => {
    const folder = await mkdtemp(path.join(tmpdir(), "checkpointd-page-tls-"));
    const { cert, key } = createCertificate("127.0.0.1");
    const files = { cert: path.join(folder, "crt"), key: path.join(folder, "key") };
    await writeFile(files.cert, cert);
    await writeFile(files.key, key);
    const server = await startTestServer(edge.database.url, { tls: files });
    try {
      const page = await open(of(ids.chat), { ignoreHTTPSErrors: true }, server.url);
      await page.locator(".message").first().waitFor();
      const spoken = await page.evaluate(
        // Of what is still under way the protocol is empty.
        "[...new Set(performance.getEntriesByType('resource').map((entry) => entry.nextHopProtocol).filter(Boolean))]",
      );
      expect(spoken).toEqual(["h2"]);
      expect(complaints).toEqual([]);
    } finally {
      await context?.close();
      await server.drain();
      await rm(folder, { recursive: true });
    }
  });

  it("works below a path, behind a proxy that takes the path off", async () => {
    const prefix = "/tools/checkpointd";
    const proxy = createServer((request, response) => {
      const { method, url = "", headers } = request;
      if (!url.startsWith(`${prefix}/`)) return void response.writeHead(404).end();
      const { port } = edge.server;
      const asked = { port, method, headers, path: url.slice(prefix.length) };
      const passed = startRequest(asked, (answer) => {
        response.writeHead(answer.statusCode ?? 0, answer.headers);
        answer.pipe(response);
      });
      request.pipe(passed);
    });
    proxy.listen(0, "127.0.0.1");
    await once(proxy, "listening");
    const url = `http://127.0.0.1:${(proxy.address() as AddressInfo).port}${prefix}`;
    try {
      const page = await open("?prefix=support/", {}, url);
      await page.locator(".row").first().click();
      await page.locator(".message").first().waitFor();
      expect(page.url()).toContain(`${url}/?thread=support`);
      await page.reload();
      await page.locator(".message").first().waitFor();
      await page.getByRole("button", { name: "Code" }).click();
      const code = page.getByRole("dialog");
      await code.getByRole("button", { name: "curl" }).click();
      // What gRPC cannot do below a path curl can.
      const command = await code.locator("pre").innerText();
      expect(command).toContain(`${url}/checkpointd.v1.CheckpointService/GetTuple`);
      const run = promisify(execFile)("sh", ["-c", `${asCurl}\n${command}`]);
      expect(JSON.parse((await run).stdout).tuple.key.threadId).toBe(ids.chat);
      await code.getByRole("button", { name: "TypeScript" }).click();
      await code.getByText(`ConnectSaver.fromUrl("${url}", { graph: "shop" })`).waitFor();
      await page.keyboard.press("Escape");
      await page.getByRole("link", { name: "Threads" }).click();
      await page.locator(".waiting .row").first().waitFor();
      expect(page.url()).toBe(`${url}/`);
      expect(complaints).toEqual([]);
    } finally {
      await context?.close();
      proxy.closeAllConnections();
      proxy.close();
    }
  });

  it("says that it reads while the network is slow", async () => {
    const page = await open("?prefix=nobody");
    await page.getByText("No thread matches the filters.").waitFor();
    let answer = () => {};
    const held = new Promise<void>((resolve) => {
      answer = resolve;
    });
    await page.route(/ListThreads$/, async (route) => {
      await held;
      await route.continue();
    });
    await page.getByLabel("Id begins with").fill("support/");
    await page.getByText("Reading threads…").waitFor();
    answer();
    await page.locator(".row").first().waitFor();
    expect(await page.locator(".loading").count()).toBe(0);
  });

  it("says that the server is away, and goes on when it is back", async () => {
    const databaseUrl = edge.database.url;
    const first = await startTestServer(databaseUrl);
    const page = await open("?prefix=support/", {}, first.url);
    await page.locator(".row").first().waitFor();
    await first.drain();
    await page.getByRole("alert").getByText("The server is away").waitFor();
    // What was seen stays.
    expect(await page.locator(".row").count()).toBe(1);
    const second = await startTestServer(databaseUrl, { port: first.port });
    try {
      await page.getByRole("alert").waitFor({ state: "detached" });
      await page.getByText("live", { exact: true }).waitFor();
    } finally {
      await context?.close();
      await second.drain();
    }
  });
});
