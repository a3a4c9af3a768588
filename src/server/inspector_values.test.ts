/** Messages of today's LangChain, and hostile values, in the page at / in Chromium. */
import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import {
  AIMessage,
  type BaseMessage,
  HumanMessage,
  RemoveMessage,
  ToolMessage,
} from "@langchain/core/messages";
import { Annotation, START, StateGraph } from "@langchain/langgraph";
import type { BrowserContext, Page } from "playwright-core";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { ConnectSaver } from "../index.js";
import { noChromium, startChromium, type TestBrowser } from "../testing/chromium.js";
import { startEdge } from "../testing/edge.js";
import { hostileValues } from "../testing/hostile_values.js";
import { newWatchedPage } from "../testing/inspected_page.js";

const png =
  "iVBORw0KGgoAAAANSUhEUgAAAAIAAAACCAIAAAD91JpzAAAAFElEQVR4nGP4z8Dw/z8DAwMDAwMADfAB/zZ5wLkAAAAASUVORK5CYII=";
const elsewhere = "https://example.invalid/picture.png";

/** As they are made with LangChain's content blocks, and as the models' makers write theirs. */
const messages: BaseMessage[] = [
  new HumanMessage({
    contentBlocks: [
      { type: "text", text: "What is this?" },
      { type: "image", url: elsewhere },
      { type: "image", mimeType: "image/png", data: png },
      {
        type: "file",
        mimeType: "application/pdf",
        data: "JVBERi0=",
        metadata: { filename: "a.pdf" },
      },
    ],
  }),
  new AIMessage({
    contentBlocks: [
      { type: "reasoning", reasoning: "It looks like a chart." },
      { type: "text", text: "I look it up." },
      { type: "server_tool_call", name: "web_search", id: "s1", args: { query: "charts" } },
      { type: "server_tool_call_result", toolCallId: "s1", status: "success", output: { hits: 3 } },
      { type: "tool_call", name: "look", id: "c1", args: { at: "it" } },
    ],
  }),
  new ToolMessage({ content: "no such thing", tool_call_id: "c1", name: "look", status: "error" }),
  new AIMessage({
    content: [
      { type: "thinking", thinking: "Once more.", signature: "x" },
      { type: "text", text: "Code:\n```js\nlook(1)\n```\nand **not bold**." },
      { type: "tool_use", id: "c2", name: "look", input: { at: "that" } },
    ],
    tool_calls: [{ name: "look", id: "c2", args: { at: "that" } }],
    invalid_tool_calls: [{ name: "broken", id: "c3", args: "{bad", error: "Malformed args" }],
    usage_metadata: { input_tokens: 10, output_tokens: 20, total_tokens: 30 } as never,
  }),
  new HumanMessage({
    content: [
      { type: "image_url", image_url: { url: elsewhere } },
      { type: "image_url", image_url: { url: `data:image/png;base64,${png}` } },
      { type: "image", source: { type: "base64", media_type: "image/png", data: png } },
      { type: "input_audio", data: "not base64!" },
      { type: "a new one", of: "tomorrow" },
    ],
  }),
  new AIMessage("long ".repeat(2_000)),
  new RemoveMessage({ id: "gone" }),
];

describe.skipIf(noChromium)(`in Chromium${noChromium ? ` (${noChromium})` : ""}`, () => {
  let chromium: TestBrowser;
  let edge: Awaited<ReturnType<typeof startEdge>>;
  let saver: ConnectSaver;
  let context: BrowserContext | undefined;
  let complaints: string[] = [];
  let asked: string[] = [];

  beforeAll(async () => {
    edge = await startEdge();
    saver = ConnectSaver.fromUrl(edge.server.url);
    const State = Annotation.Root({ messages: Annotation<BaseMessage[]> });
    const graph = new StateGraph(State)
      .addNode("say", () => ({ messages }))
      .addEdge(START, "say")
      .compile({ checkpointer: saver });
    await graph.invoke({ messages: [] }, { configurable: { thread_id: "blocks" } });
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

  async function open(query: string): Promise<Page> {
    context = await chromium.browser.newContext({ viewport: { width: 1280, height: 800 } });
    const watched = await newWatchedPage(context);
    const { page } = watched;
    [complaints, asked] = [watched.complaints, []];
    page.on("request", (request) => asked.push(request.url()));
    await page.goto(`${edge.server.url}/${query}`);
    return page;
  }

  it("shows what is said, thought, shown and asked for, and fetches nothing", async () => {
    const page = await open("?thread=blocks");
    const message = page.locator(".conversation > ol > li");
    await message.nth(6).waitFor();
    const texts = await message.allInnerTexts();
    expect(texts[0]).toContain("What is this?");
    expect(texts[0]).toContain(`at ${elsewhere}, not fetched`);
    expect(texts[0]).toMatch(/file\s*application\/pdf, a\.pdf/);
    expect(texts[1]).toMatch(/reasoning\s*It looks like a chart\./);
    expect(texts[1]).toMatch(/calls web_search where the model runs\s*s1[\s\S]*charts/);
    expect(texts[1]).toMatch(/answer\s*to s1[\s\S]*hits\s*3/);
    // Once, though LangChain writes it twice.
    expect(texts[1]?.match(/calls look/g)).toHaveLength(1);
    expect(texts[2]).toMatch(/answers c1\s*error[\s\S]*no such thing/);
    expect(texts[3]).toContain("and **not bold**.");
    expect(texts[3]).toMatch(/calls broken\s*wrongly\s*Malformed args[\s\S]*\{bad/);
    expect(texts[3]?.match(/calls look/g)).toHaveLength(1);
    expect(texts[3]).not.toContain("total_tokens");
    expect(texts[4]).toMatch(/a new one[\s\S]*tomorrow/);
    expect(texts[5]).toContain("8,000 more characters");
    expect(texts[6]).toContain("removes the message gone");
    const code = message.nth(3).locator("pre");
    expect(await code.innerText()).toBe("look(1)\n");
    const font = "getComputedStyle(document.querySelector('.message pre')).fontFamily";
    expect(await page.evaluate(font)).toContain("mono");
    const pictures = page.locator(".message img");
    await expect.poll(() => pictures.count()).toBe(3);
    for (const picture of await pictures.all()) {
      await expect.poll(() => picture.evaluate((image) => Object(image).naturalWidth)).toBe(2);
    }
    await message.nth(3).getByText("more of it").click();
    await message.nth(3).getByText("total_tokens").waitFor();
    await message.nth(1).getByText("reasoning").click();
    await message.nth(1).getByText("It looks like a chart.", { exact: true }).waitFor();
    expect(asked.filter((url) => !/^(blob:)?http:\/\/127\.0\.0\.1/.test(url))).toEqual([]);
    await page.evaluate(
      await readFile(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8"),
    );
    const found = await page.evaluate(
      `axe.run().then(({ violations }) => violations.map(({ id, nodes }) => id + nodes[0].html))`,
    );
    expect(found).toEqual([]);
    expect(complaints).toEqual([]);
  });

  it("takes whatever is stored, of any depth, size and spelling, for text, and goes on", async () => {
    for (const [id, end] of [
      ["1", ""],
      ["2", " "],
    ] as const) {
      const names = hostileValues.map((_, i) => `c${i}`);
      await edge.clients.connect.put({
        threadId: "any",
        checkpointId: id,
        parentCheckpointId: id === "2" ? "1" : "",
        checkpointJson: JSON.stringify({
          v: 4,
          channel_versions: Object.fromEntries(names.map((name) => [name, id])),
        }),
        metadataJson: `{"step": 0, "deep": ${"[".repeat(1_990)}${"]".repeat(1_990)}}`,
        blobs: hostileValues.map(({ type, data }, i) => ({
          channel: `c${i}`,
          version: id,
          value: { type, data: type === "json" ? Buffer.concat([data, Buffer.from(end)]) : data },
        })),
      });
    }
    const page = await open("?thread=any");
    await page.getByRole("region", { name: `c${hostileValues.length - 1}`, exact: true }).waitFor();
    const shown = await page.getByRole("tabpanel").innerText();
    expect(shown.match(/nested more than 500 levels deep/g)).toHaveLength(2);
    expect(shown).toContain("59,900 more items");
    expect(shown).toContain("__proto__");
    expect(shown).toContain("an extension of msgpack that LangGraph does not write (99)");
    expect(shown).toContain("a type of another serializer");
    // What turns the direction of writing turns it in its own place alone.
    const bidi = "getComputedStyle(document.querySelector('[aria-label=c7] .leaf')).unicodeBidi";
    expect(await page.evaluate(bidi)).toBe("isolate");
    const nested = page.getByRole("region", { name: "c1", exact: true });
    for (let i = 0; i < 20; i++) await nested.locator("summary").last().click();
    await page.getByRole("tab", { name: /Changes/ }).click();
    await page.locator(".changes").waitFor();
    await page.getByRole("tab", { name: "Metadata" }).click();
    await page.getByRole("tabpanel").getByText("deep").waitFor();
    expect(await page.evaluate("({}).polluted")).toBeUndefined();
    expect(complaints).toEqual([]);
  });
});
