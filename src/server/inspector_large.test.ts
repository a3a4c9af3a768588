/** Large values in the page at /, in Chromium: read one by one, shown in part, compared when asked for. */
import { readFile } from "node:fs/promises";
import { AIMessage, HumanMessage } from "@langchain/core/messages";
import { MemorySaver } from "@langchain/langgraph-checkpoint";
import type { BrowserContext, Page } from "playwright-core";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { noChromium, startChromium, type TestBrowser } from "../testing/chromium.js";
import { startEdge } from "../testing/edge.js";
import { newWatchedPage } from "../testing/inspected_page.js";

const { serde } = new MemorySaver();
const size = 50_000_000;

/** A conversation of about so many bytes. */
function conversation(bytes: number) {
  const text = "What was said. ".repeat(30);
  const messages = [];
  for (let i = 0; i < bytes / 650; i++) {
    const content = `${i}: ${text}`;
    messages.push(i % 2 === 0 ? new HumanMessage(content) : new AIMessage(content));
  }
  return messages;
}

/** msgpack of a list of so many maps. */
function records(count: number): Buffer {
  const head = Buffer.from([0xdd, 0, 0, 0, 0]);
  head.writeUInt32BE(count, 1);
  const one = Buffer.from("82a46e616d65a6476164676574a57072696365cb4024000000000000", "hex");
  return Buffer.concat([head, ...Array.from({ length: count }, () => one)]);
}

describe.skipIf(noChromium)(`in Chromium${noChromium ? ` (${noChromium})` : ""}`, () => {
  let chromium: TestBrowser;
  let edge: Awaited<ReturnType<typeof startEdge>>;
  let context: BrowserContext | undefined;

  beforeAll(async () => {
    // Before there is a server in this process, which would stand still meanwhile.
    const messages = conversation(size);
    const grown = [...messages, new AIMessage("What is new.")];
    const json = async (value: unknown) => {
      const [type, data] = await serde.dumpsTyped(value);
      return { type, data };
    };
    const steps = [
      {
        messages: await json(messages),
        text: await json("x".repeat(size)),
        settings: await json({ same: "s".repeat(2_000_000), other: 1 }),
        records: { type: "msgpack", data: records(100_000) },
        bytes: { type: "bytes", data: new Uint8Array(2_000_000) },
      },
      {
        messages: await json(grown),
        text: await json(`${"x".repeat(size)} and on`),
        settings: await json({ same: "s".repeat(2_000_000), other: 2 }),
        records: { type: "msgpack", data: records(99_999) },
        bytes: { type: "bytes", data: new Uint8Array(1_500_000).fill(1, 1_000) },
      },
    ];
    const small = await json("few");
    edge = await startEdge();
    chromium = await startChromium();
    for (const [i, values] of steps.entries()) {
      const names = [...Object.keys(values), "small"];
      const versions = Object.fromEntries(
        names.map((channel) => [channel, channel === "small" ? 1 : i + 1]),
      );
      const key = { threadId: "large", checkpointId: String(i + 1) };
      // Each fits a request.
      for (const [channel, value] of Object.entries(values)) {
        const blobs = [{ channel, version: String(i + 1), value }];
        await edge.clients.connect.put({ ...key, checkpointJson: "{}", blobs });
      }
      await edge.clients.connect.put({
        ...key,
        checkpointJson: JSON.stringify({ v: 4, channel_versions: versions }),
        metadataJson: `{"step": ${i}}`,
        blobs: [{ channel: "small", version: "1", value: small }],
      });
    }
    await edge.sql.query(
      "update checkpoints set parent_checkpoint_id = '1' where thread_id = 'large' and checkpoint_id = '2'",
    );
    await edge.clients.connect.putWrites({
      threadId: "large",
      checkpointId: "2",
      taskId: "task",
      writes: [
        { idx: 0, channel: "text", value: await json("y".repeat(3_000_000)) },
        { idx: 1, channel: "text", value: await json("z".repeat(2_000_000)) },
      ],
    });
  });
  afterEach(async () => {
    await context?.close();
    context = undefined;
  });
  afterAll(async () => {
    await chromium?.close();
    await edge?.stop();
  });

  let complaints: string[] = [];
  async function open(query: string, thread = "large", ready = "State 6"): Promise<Page> {
    context = await chromium.browser.newContext({ acceptDownloads: true });
    const watched = await newWatchedPage(context, { console: false });
    const { page } = watched;
    complaints = watched.complaints;
    await page.goto(`${edge.server.url}/?thread=${thread}${query}`);
    await page.getByRole("tab", { name: ready }).waitFor();
    await page.evaluate(
      `globalThis.tasks = [];
      new PerformanceObserver((list) => {
        for (const { duration } of list.getEntries()) tasks.push(duration);
      }).observe({ type: "longtask" })`,
    );
    return page;
  }
  /** The longest time that the page stood still, and what it holds. */
  async function measured(page: Page) {
    const [longest, heap] = (await page.evaluate(
      "[Math.max(0, ...tasks), performance.memory.usedJSHeapSize / 2 ** 20]",
    )) as [number, number];
    // A page that stands still is noticed.
    await page.evaluate(
      "setTimeout(() => { for (const end = performance.now() + 300; performance.now() < end; ); })",
    );
    await expect.poll(() => page.evaluate("Math.max(0, ...tasks)")).toBeGreaterThanOrEqual(300);
    return [longest, heap] as const;
  }
  const region = (page: Page, name: string) => page.getByRole("region", { name, exact: true });

  it("reads one value alone, and shows the end of a long conversation at once", async () => {
    const page = await open("");
    await region(page, "small").getByText("few").waitFor();
    const messages = region(page, "messages");
    await messages.getByRole("button", { name: /^Read 4\d\.\d MiB/ }).click();
    await messages.getByText("What is new.").waitFor();
    expect(await messages.locator(".message").count()).toBe(40);
    await messages.getByRole("button", { name: /earlier messages/ }).click();
    await expect.poll(() => messages.locator(".message").count()).toBe(200);
    // The others were not read.
    expect(
      await region(page, "text")
        .getByRole("button", { name: /^Read 47.7 MiB/ })
        .count(),
    ).toBe(1);
    const [longest, heap] = await measured(page);
    expect(longest).toBeLessThan(1_000);
    expect(heap).toBeLessThan(200);
    expect(complaints).toEqual([]);
  });

  it("shows a long text in part, and saves it as a file", async () => {
    const page = await open("");
    const text = region(page, "text");
    await text.getByRole("button", { name: /^Read/ }).click();
    await text.getByRole("button", { name: /47.7 MiB more/ }).click();
    await text.getByRole("button", { name: /47.6 MiB more/ }).waitFor();
    expect(await page.evaluate("document.body.innerText.length")).toBeLessThan(200_000);
    const [download] = await Promise.all([
      page.waitForEvent("download"),
      text.getByRole("button", { name: "Save as file" }).click(),
    ]);
    expect(download.suggestedFilename()).toBe("text.json");
    const saved = await readFile(await download.path());
    expect(JSON.parse(saved.toString())).toBe(`${"x".repeat(size)} and on`);
    const [longest] = await measured(page);
    expect(longest).toBeLessThan(1_000);
    expect(complaints).toEqual([]);
  });

  it("opens a large list of another serializer, and bytes", async () => {
    const page = await open("");
    const records = region(page, "records");
    await records.getByRole("button", { name: /^Read/ }).click();
    await records.getByText("99,899 more items").waitFor();
    await records.locator("summary").first().click();
    await records.getByText("price").first().waitFor();
    const bytes = region(page, "bytes");
    await bytes.getByRole("button", { name: /^Read/ }).click();
    await bytes.locator(".bytes summary").click();
    await bytes.getByText("1.4 MiB more").waitFor();
    expect(complaints).toEqual([]);
  });

  it("tells how far it is, and stops when it is told to", async () => {
    const page = await open("");
    await page.context().route(/CheckpointService\/List$/, async (route) => {
      await new Promise((resolve) => setTimeout(resolve, 300));
      await route.continue().catch(() => {});
    });
    const text = region(page, "text");
    await text.getByRole("button", { name: /^Read/ }).click();
    await text.getByRole("progressbar").waitFor();
    await text.getByRole("button", { name: "Cancel" }).click();
    await text.getByRole("button", { name: /^Read 47.7 MiB/ }).waitFor();
    expect(await text.getByRole("alert").count()).toBe(0);
  });

  it("compares large values when that is asked for", async () => {
    const page = await open("&tab=changes");
    const compare = async (name: string) => {
      const channel = region(page, name);
      await channel.getByRole("button", { name: /^Read and compare/ }).click();
      await channel.getByText(/as before|are the same/).waitFor();
      return channel;
    };
    const messages = await compare("messages");
    expect(await messages.locator(".added .message").allInnerTexts()).toEqual([
      expect.stringContaining("What is new."),
    ]);
    const text = await compare("text");
    expect(await text.innerText()).toContain("Goes on after 47.7 MiB as before");
    expect(await text.locator(".added").innerText()).toBe(" and on");
    const settings = await compare("settings");
    expect(await settings.innerText()).toContain("1 field as before");
    expect(await settings.locator(".removed").innerText()).toMatch(/other\s*1/);
    expect(await settings.locator(".added").innerText()).toMatch(/other\s*2/);
    const records = await compare("records");
    expect(await records.innerText()).toContain("99,999 items as before");
    expect(await records.locator(".added").count()).toBe(0);
    const bytes = await compare("bytes");
    expect(await bytes.innerText()).toContain("the first 1,000 bytes are the same");
    const [longest] = await measured(page);
    expect(longest).toBeLessThan(1_000);
    expect(complaints).toEqual([]);
  });

  it("reads a large text that is in the checkpoint's JSON, where Python has it, alone too", async () => {
    for (const [id, text] of [
      ["1", "é\\n".repeat(1_000_000)],
      ["2", `${"é\\n".repeat(1_000_000)}and on`],
    ] as const) {
      await edge.clients.connect.put({
        threadId: "python",
        checkpointId: id,
        parentCheckpointId: id === "2" ? "1" : "",
        checkpointJson: `{"v": 4, "channel_versions": {"text": "${id}", "few": "1"},
          "channel_values": {"text": "${text}", "few": "small"}}`,
      });
    }
    const page = await open("&tab=state", "python", "State 2");
    let received = 0;
    page.on("response", async (response) => {
      received += (await response.body().catch(() => Buffer.alloc(0))).length;
    });
    await page.reload();
    await region(page, "few").getByText("small").waitFor();
    expect(received).toBeLessThan(2_000_000);
    await region(page, "text").getByRole("button", { name: "Read 3.8 MiB" }).click();
    await region(page, "text").getByRole("button", { name: "3.8 MiB more" }).waitFor();
    await page.getByRole("tab", { name: /Changes/ }).click();
    await region(page, "text")
      .getByRole("button", { name: /^Read and compare/ })
      .click();
    await region(page, "text").getByText("Goes on after 3.8 MiB as before").waitFor();
    expect(await region(page, "text").locator(".added").innerText()).toBe("and on");
    expect(complaints).toEqual([]);
  });

  it("reads a task's large write alone", async () => {
    const page = await open("&tab=tasks");
    let received = 0;
    page.on("response", async (response) => {
      received += (await response.body().catch(() => Buffer.alloc(0))).length;
    });
    const writes = page.getByRole("region", { name: "Written to text" });
    await writes.first().getByRole("button", { name: "Read 2.9 MiB" }).click();
    await writes.first().getByText(/^y+/).waitFor();
    expect(received).toBeLessThan(3_500_000);
  });
});
