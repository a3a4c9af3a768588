/** What breaks pages: values, names and shapes that no graph of good will leaves, in Chromium. */
import type { BrowserContext, Page } from "playwright-core";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { noChromium, startChromium, type TestBrowser } from "../testing/chromium.js";
import { startEdge } from "../testing/edge.js";
import { newWatchedPage, of } from "../testing/inspected_page.js";

const bytes = (text: string) => new TextEncoder().encode(text);
const json = (value: unknown) => ({ type: "json", data: bytes(JSON.stringify(value)) });
const times = <Item>(count: number, item: (i: number) => Item) =>
  Array.from({ length: count }, (_, i) => item(i));

describe.skipIf(noChromium)(`in Chromium${noChromium ? ` (${noChromium})` : ""}`, () => {
  let chromium: TestBrowser;
  let edge: Awaited<ReturnType<typeof startEdge>>;
  let context: BrowserContext | undefined;
  let complaints: string[] = [];

  beforeAll(async () => {
    edge = await startEdge();
    chromium = await startChromium();
  });
  afterEach(async () => {
    await context?.close();
    context = undefined;
  });
  afterAll(async () => {
    await chromium?.close();
    await edge?.stop();
  });

  async function open(query = ""): Promise<Page> {
    context = await chromium.browser.newContext();
    const watched = await newWatchedPage(context);
    const { page } = watched;
    complaints = watched.complaints;
    page.setDefaultTimeout(60_000);
    page.on("request", (request) => {
      const url = request.url();
      if (!url.startsWith(edge.server.url) && !url.startsWith("blob:")) complaints.push(url);
    });
    await page.goto(`${edge.server.url}/${query}`);
    return page;
  }
  const elements = (page: Page) => page.evaluate("document.querySelectorAll('*').length");
  const tab = (page: Page, name: string) => page.getByRole("tab", { name }).click();

  function put(threadId: string, more: object = {}) {
    const checkpoint = { checkpointId: "1", checkpointJson: '{"v": 4}', metadataJson: "{}" };
    return edge.clients.connect.put({ threadId, ...checkpoint, ...more });
  }
  /** Checkpoints as SQL makes them, of which there are many. */
  const insert = (thread: string, ns: string, parent: string, count: number) =>
    edge.sql.query(
      `insert into checkpoints (thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, type, checkpoint, metadata)
       select '${thread}', ${ns}, lpad(n::text, 6, '0'), ${parent}, null,
         '{"v": 4, "channel_versions": {}}', '{"step": 1, "source": "loop"}'
       from generate_series(0, ${count - 1}) n`,
    );

  const set = (items: string[]) => json({ lc: 2, type: "constructor", id: ["Set"], args: [items] });
  it.each([
    ["numbers", json([]), json(times(200_000, () => 1)), "199,900 more items"],
    ["texts", json(times(50_000, () => "a")), json(times(50_000, () => "b")), "49,900 more items"],
    [
      "a set",
      set(times(20_000, (i) => `a${i}`)),
      set(times(20_000, (i) => `b${i}`)),
      "19,900 more",
    ],
  ])("tells a difference of many items page by page: %s", async (name, before, after, more) => {
    for (const [id, value] of [
      ["1", before],
      ["2", after],
    ] as const) {
      await put(name, {
        checkpointId: id,
        parentCheckpointId: id === "2" ? "1" : "",
        checkpointJson: JSON.stringify({ v: 4, channel_versions: { c: id } }),
        blobs: [{ channel: "c", version: id, value }],
      });
    }
    const page = await open(of(name, "&tab=changes"));
    await page.locator(".changes").getByText(more).last().waitFor();
    expect(await elements(page)).toBeLessThan(2_000);
    expect(complaints).toEqual([]);
  });

  it("draws no more channels, writes and lanes than anybody looks at", async () => {
    const channels = times(20_000, (i) => [`c${i}`, i] as const);
    await put("channels", {
      checkpointJson: JSON.stringify({
        v: 4,
        channel_versions: Object.fromEntries(channels),
        channel_values: Object.fromEntries(channels),
      }),
    });
    const page = await open(of("channels"));
    await page.getByText("19,900 more channels").waitFor();
    await tab(page, "Changes");
    await page.locator(".changes").getByText("19,900 more channels").waitFor();
    expect(await elements(page)).toBeLessThan(2_000);
    await put("tasks");
    await edge.sql.query(
      `insert into checkpoint_writes
         (thread_id, checkpoint_ns, checkpoint_id, task_id, task_path, idx, channel, type, blob)
       select 'tasks', '', '1', 'task ' || n, 'p', 0, 'c', 'json', '[1, 2, 3]' from generate_series(1, 20000) n`,
    );
    await page.goto(`${edge.server.url}/${of("tasks", "&tab=tasks")}`);
    await page.getByText("19,800 more writes").waitFor();
    expect(await elements(page)).toBeLessThan(4_000);
    // All of them follow one, or each one that was never stored.
    await insert("forks", "''", "case when n > 0 then '000000' end", 3_000);
    await insert("orphans", "''", "'gone ' || n", 3_000);
    for (const name of ["forks", "orphans"]) {
      await page.goto(`${edge.server.url}/${of(name)}`);
      await page.locator(".history [aria-current=step]").focus();
      await page.keyboard.press("End");
      await page.waitForURL(/checkpoint=000000/);
      expect(await elements(page), name).toBeLessThan(2_000);
    }
    expect(complaints).toEqual([]);
  });

  const noText = '{"toString": 1, "valueOf": 1}';
  const deep = (levels: number) => `${"[".repeat(levels)}${"]".repeat(levels)}`;
  it.each([
    [
      "versions that are no text",
      {
        checkpointJson: `{"v": 4, "channel_versions": {"c": ${noText}}, "channel_values": {"c": 1}}`,
      },
    ],
    [
      "lists and texts where objects should be",
      {
        checkpointJson: `{"v": 4, "channel_versions": [1], "versions_seen": "a", "channel_values": [1]}`,
        metadataJson: `{"step": "x", "source": ${noText}, "checkpointd_graph": ${noText}}`,
      },
    ],
    [
      "names of what all objects have",
      {
        checkpointJson: `{"v": 4, "channel_versions": {"__proto__": 1}, "versions_seen": {"constructor": {}},
          "channel_values": {"__proto__": {"a": 1}, "constructor": 1, "toString": {"__proto__": [1]}}}`,
        metadataJson: `{"__proto__": {"a": 1}, "constructor": 1}`,
      },
    ],
    ["metadata nested as deep as it may be", { metadataJson: `{"deep": ${deep(1_990)}}` }],
    [
      "a checkpoint nested as deep as it may be",
      { checkpointJson: `{"v": 4, "versions_seen": {"n": ${deep(1_990)}}}` },
    ],
    ["a checkpoint that is its own parent", { parentCheckpointId: "1" }],
    [
      "blocks of no kind",
      {
        checkpointJson: `{"v": 4, "channel_versions": {"a": "1", "b": "1", "c": "1"}}`,
        blobs: [
          { channel: "a", version: "1", value: { type: "constructor", data: bytes("x") } },
          {
            channel: "b",
            version: "1",
            value: { type: "msgpack", data: Uint8Array.of(0xdf, 255, 255, 255, 255) },
          },
          {
            channel: "c",
            version: "1",
            value: json({
              lc: 1,
              type: "constructor",
              id: ["langchain_core", "messages", "AIMessage"],
              kwargs: {
                content: [
                  { type: "image_url", image_url: "javascript:alert(1)" },
                  { type: "image_url", image_url: { url: "https://example.com/x.png" } },
                  {
                    type: "image",
                    mime_type: "image/svg+xml",
                    data: btoa("<svg onload='alert(1)'/>"),
                  },
                  ...[
                    null,
                    1,
                    [],
                    { type: "constructor" },
                    { type: "reasoning", summary: [1, null] },
                  ],
                ],
                tool_calls: [null, 1, { name: "__proto__", args: null }],
                invalid_tool_calls: [null, 1, { name: { a: 1 }, error: 5 }],
              },
            }),
          },
        ],
      },
    ],
  ])("looks into %s", async (name, more) => {
    await put(name, more);
    const page = await open(`?prefix=${encodeURIComponent(name)}`);
    await page.locator(".row").first().click();
    for (const each of ["Changes", "Tasks", "Metadata", "State"]) {
      await tab(page, each);
      await page.locator(`[role=tabpanel][aria-labelledby=tab-${each.toLowerCase()}]`).waitFor();
      await page.locator("[role=tabpanel] .loading").waitFor({ state: "detached" });
      // Whatever opens is opened.
      const closed = page.locator("[role=tabpanel] details:not([open]) > summary");
      for (let i = 0; i < 8 && (await closed.count()) > 0; i++) await closed.first().click();
      if (each === "Metadata") await page.getByRole("button", { name: "as JSON" }).click();
    }
    expect(complaints).toEqual([]);
  });

  it("has room for names of one long word, and for its dialogs, on a narrow screen", async () => {
    const long = "é".repeat(1_000);
    await put(long, {
      checkpointJson: JSON.stringify({
        v: 4,
        channel_versions: { [long]: 1, messages: "1" },
        channel_values: { [long]: { [long]: long } },
      }),
      metadataJson: JSON.stringify({ step: 1, source: long, checkpointd_graph: long }),
      blobs: [
        {
          channel: "messages",
          version: "1",
          value: json([
            {
              lc: 1,
              type: "constructor",
              id: ["langchain_core", "messages", "AIMessage"],
              kwargs: {
                content: long,
                name: long,
                tool_calls: [{ name: long, id: long, args: { [long]: long } }],
              },
            },
          ]),
        },
      ],
    });
    const at = { threadId: long, checkpointNs: "", checkpointId: "1" };
    const writes = [{ idx: -3, channel: "__interrupt__", value: json([{ value: long }]) }];
    await edge.clients.connect.putWrites({ ...at, taskId: long, taskPath: long, writes });
    const page = await open();
    await page.setViewportSize({ width: 320, height: 640 });
    const tooWide = (element: string) =>
      page.evaluate(`${element}.scrollWidth - ${element}.clientWidth`);
    const fits = async (what: string) =>
      expect(await tooWide("document.documentElement"), what).toBeLessThanOrEqual(0);
    await page.goto(`${edge.server.url}/?prefix=${encodeURIComponent("éé")}`);
    await page.locator(".row").first().waitFor();
    await fits("the list");
    for (const name of ["state", "changes", "tasks", "metadata"]) {
      await page.goto(`${edge.server.url}/${of(long, `&tab=${name}`)}`);
      await page.locator(`[aria-labelledby=tab-${name}]`).waitFor();
      await fits(name);
    }
    for (const name of ["Code", "Export", "Copy", "Prune", "Delete"]) {
      await page.locator(".acts").getByRole("button", { name, exact: true }).click();
      await page.getByRole("dialog").waitFor();
      expect(await tooWide("document.querySelector('dialog')"), name).toBeLessThanOrEqual(0);
      await page.keyboard.press("Escape");
      await page.getByRole("dialog").waitFor({ state: "detached" });
    }
    await page.goto(edge.server.url);
    await page.getByRole("button", { name: "Import" }).click();
    expect(await tooWide("document.querySelector('dialog')")).toBeLessThanOrEqual(0);
    expect(complaints).toEqual([]);
  });

  it("goes on around what it cannot draw", async () => {
    for (const checkpointId of ["1", "2"]) await put("drawn", { checkpointId });
    await put("drawn", { checkpointId: "1ef00000-0000-6000-8000-000000000000" });
    const page = await open();
    await page.addInitScript(
      `Date.prototype.toLocaleString = () => { throw new Error("a mistake"); };`,
    );
    await page.goto(`${edge.server.url}/${of("drawn", "&checkpoint=2")}`);
    await page.locator("[role=tabpanel]").waitFor();
    await page.locator(".history li a[title^='1ef']").click();
    await page.getByRole("alert").getByText("a mistake").waitFor();
    await page.locator(".history li a[title='1']").click();
    await page.locator("[role=tabpanel]").waitFor();
    expect(await page.getByRole("alert").count()).toBe(0);
  });

  it("does not decode again and again why threads wait", async () => {
    const question = json([{ value: times(15_000, () => [1]) }]);
    for (const i of times(40, (i) => i)) {
      await put(`waits ${i}`);
      const at = { threadId: `waits ${i}`, checkpointNs: "", checkpointId: "1" };
      const writes = [{ idx: -3, channel: "__interrupt__", value: question }];
      for (const taskId of ["a", "b"])
        await edge.clients.connect.putWrites({ ...at, taskId, writes });
    }
    context = await chromium.browser.newContext();
    const page = await context.newPage();
    await page.addInitScript(
      `const decode = TextDecoder.prototype.decode;
      globalThis.decoded = 0;
      TextDecoder.prototype.decode = function (...all) {
        if ((all[0]?.byteLength ?? 0) > 50_000) decoded++;
        return decode.apply(this, all);
      };`,
    );
    await page.goto(`${edge.server.url}/?prefix=waits`);
    await expect.poll(() => page.locator(".row .reason").count(), { timeout: 30_000 }).toBe(80);
    await page.evaluate("decoded = 0");
    const age = () => page.locator(".row time").first().innerText();
    const before = await age();
    await expect.poll(age, { timeout: 30_000 }).not.toBe(before);
    expect(await page.evaluate("decoded")).toBe(0);
  });
});
