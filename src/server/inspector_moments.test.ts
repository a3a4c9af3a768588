/** What happens while somebody looks at the page at /, or does something at the wrong moment, in Chromium. */
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import type { BrowserContext, BrowserContextOptions, Page } from "playwright-core";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { ConnectSaver } from "../index.js";
import { createAuthFile } from "../testing/auth_file.js";
import { noChromium, startChromium, type TestBrowser } from "../testing/chromium.js";
import { startEdge } from "../testing/edge.js";
import { act, inDialog, newWatchedPage, of } from "../testing/inspected_page.js";
import { ids, runThreads } from "../testing/inspected_threads.js";
import { startTestServer } from "../testing/test_server.js";

describe.skipIf(noChromium)(`in Chromium${noChromium ? ` (${noChromium})` : ""}`, () => {
  let chromium: TestBrowser;
  let edge: Awaited<ReturnType<typeof startEdge>>;
  let saver: ConnectSaver;
  let context: BrowserContext | undefined;
  let folder: string;
  let complaints: string[] = [];

  beforeAll(async () => {
    folder = await mkdtemp(path.join(tmpdir(), "checkpointd-moments-"));
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

  async function open(query = "", url = edge.server.url, options: BrowserContextOptions = {}) {
    context = await chromium.browser.newContext(options);
    const watched = await newWatchedPage(context, { console: false });
    complaints = watched.complaints;
    await watched.page.goto(`${url}/${query}`);
    return watched.page;
  }
  /** Holds back the answers of an RPC until it is told to let them through. */
  async function holdBack(page: Page, method: string) {
    let release = () => {};
    const released = new Promise<void>((resolve) => {
      release = resolve;
    });
    let came = () => {};
    const asked = new Promise<void>((resolve) => {
      came = resolve;
    });
    await page.route(`**/checkpointd.v1.*/${method}`, async (route) => {
      came();
      await released;
      await route.continue().catch(() => {});
    });
    return { asked, release };
  }

  it("has the history still after a lease was ended", async () => {
    await saver.threads.copy(ids.failed, "held");
    await saver.threads.claim({ owner: "worker-7", threadId: "held" });
    const page = await open(of("held"));
    const rows = page.locator(".history li");
    await rows.first().waitFor();
    const before = await rows.count();
    await act(page, "Release the lease");
    await inDialog(page, "End the lease");
    await page.getByText("held by worker-7").waitFor({ state: "detached" });
    await expect.poll(() => rows.count()).toBe(before);
    await page.locator("[role=tabpanel]").waitFor();
    expect(complaints).toEqual([]);
  });

  it("keeps a condition that was chosen before whoever typed another rested", async () => {
    const page = await open();
    await page.locator(".row").first().waitFor();
    // In one go: the driver's round trips take as long as a person rests.
    await page.evaluate(`(() => {
      const field = document.querySelector("input[type=search]");
      field.value = "night";
      field.dispatchEvent(new InputEvent("input", { bubbles: true }));
      setTimeout(() => document.querySelector(".chip.failed").click(), 50);
    })()`);
    await page.waitForURL(/prefix=night/);
    const { searchParams } = new URL(page.url());
    expect([searchParams.get("prefix"), searchParams.get("status")]).toEqual(["night", "failed"]);
  });

  it("shows nothing that one key read to who comes with another", async () => {
    const grants = [{ operations: ["read"], threads: ["*"] }];
    const fewer = [{ operations: ["read"], threads: ["support/*"] }];
    const auth = createAuthFile({}, { all: { grants }, support: { grants: fewer } });
    const server = await startTestServer(edge.database.url, { authFile: auth.file });
    try {
      const [first] = await idsOf(ids.values);
      const page = await open(of(ids.values, `&checkpoint=${first}`), server.url);
      const field = page.getByLabel("API key or token");
      await field.fill(auth.keys.all as string);
      await page.getByRole("button", { name: "Open" }).click();
      await page.getByText("Revenue grew by 14 %").waitFor();
      await page.getByRole("button", { name: "Forget the key" }).click();
      await field.fill(auth.keys.support as string);
      await page.getByRole("button", { name: "Open" }).click();
      await page.getByRole("alert").getByText("may not read this thread").first().waitFor();
      await page.getByRole("region", { name: "Checkpoint" }).getByText("may not read").waitFor();
      expect(await page.locator("main").innerText()).not.toContain("Revenue");
    } finally {
      await context?.close();
      await server.drain();
      auth.remove();
    }
  });

  it("leaves who has closed a dialog where they are", async () => {
    const page = await open(of(ids.values));
    const copying = await holdBack(page, "CopyThread");
    await act(page, "Copy");
    await page.getByRole("dialog").getByRole("textbox").fill("copied meanwhile");
    await inDialog(page, "Copy");
    await copying.asked;
    await page.keyboard.press("Escape");
    await page.getByRole("dialog").waitFor({ state: "detached" });
    const address = page.url();
    copying.release();
    await expect.poll(() => saver.threads.get("copied meanwhile")).toBeDefined();
    // The answer has come by the time that another has.
    await page.evaluate("fetch('./').then((answer) => answer.text())");
    expect(page.url()).toBe(address);
  });

  it("ends an import whose dialog is closed, and leaves nothing of it", async () => {
    const page = await open(of(ids.chat));
    await act(page, "Export");
    const [download] = await Promise.all([page.waitForEvent("download"), inDialog(page, "Export")]);
    const file = path.join(folder, "chat.jsonl");
    await download.saveAs(file);
    await page.goto(edge.server.url);
    const putting = await holdBack(page, "Put");
    await page.getByRole("button", { name: "Import" }).click();
    await page.getByLabel("An exported file (.jsonl)").setInputFiles(file);
    await page.getByLabel("The thread's name here").fill("given up");
    await inDialog(page, "Import");
    await putting.asked;
    await page.keyboard.press("Escape");
    await page.getByRole("dialog").waitFor({ state: "detached" });
    const deleted = page.waitForResponse(/DeleteThread$/);
    putting.release();
    await deleted;
    expect(await edge.checkpoints("importing-%")).toBe(0);
    expect(await saver.threads.get("given up")).toBeUndefined();
    expect(new URL(page.url()).search).toBe("");
  });

  it("gives no thread a name that its file does not have", async () => {
    const file = path.join(folder, "nameless.jsonl");
    const header = JSON.stringify({ checkpointd: "thread", version: 1 });
    const checkpoint = JSON.stringify({ key: { checkpointId: "1" }, checkpointJson: "{}" });
    await writeFile(file, `${header}\n${checkpoint}\n{"end": true, "checkpoints": 1}\n`);
    const page = await open();
    await page.getByRole("button", { name: "Import" }).click();
    await page.getByLabel("An exported file (.jsonl)").setInputFiles(file);
    await inDialog(page, "Import");
    await page.getByRole("alert").getByText("names no thread").waitFor();
    expect(await saver.threads.get("undefined")).toBeUndefined();
  });

  it("shows of another graph's checkpoint of the same id nothing before it is read", async () => {
    for (const checkpointNs of ["", "sub"]) {
      await edge.clients.connect.put({
        threadId: "same ids",
        checkpointNs,
        checkpointId: "1",
        checkpointJson: JSON.stringify({
          v: 4,
          channel_versions: { c: 1 },
          channel_values: { c: checkpointNs === "" ? "of the root" : "of the subgraph" },
        }),
        metadataJson: "{}",
      });
    }
    const page = await open(of("same ids", "&checkpoint=1"));
    await page.getByText("of the root").waitFor();
    const { release } = await holdBack(page, "List");
    await page.evaluate(
      `history.pushState(null, "", ${JSON.stringify(of("same ids", "&checkpoint=1&ns=sub"))}); dispatchEvent(new PopStateEvent("popstate"))`,
    );
    await page.getByText("Reading the checkpoint…").waitFor();
    expect(await page.getByText("of the root").count()).toBe(0);
    release();
    await page.getByText("of the subgraph").waitFor();
  });

  it("has the focus at the content where what led there is gone", async () => {
    for (let i = 0; i < 60; i++) {
      await edge.clients.connect.put({
        threadId: `paged ${i}`,
        checkpointId: "1",
        checkpointJson: '{"v": 4}',
        metadataJson: "{}",
      });
    }
    const focused = (page: Page) => page.evaluate("document.activeElement.id");
    const page = await open("?prefix=paged");
    await page.getByRole("link", { name: "Next page" }).focus();
    await page.keyboard.press("Enter");
    await page.getByRole("link", { name: "First page" }).waitFor();
    await expect.poll(() => focused(page)).toBe("main");
    await page.locator(".row").first().focus();
    await page.keyboard.press("Enter");
    await page.getByRole("heading", { level: 1, name: /paged/ }).waitFor();
    await expect.poll(() => focused(page)).toBe("main");
    const copy = page.locator(".acts").getByRole("button", { name: "Copy" });
    await copy.focus();
    await page.keyboard.press("Enter");
    await page.getByRole("dialog").waitFor();
    await page.keyboard.press("Escape");
    await page.getByRole("dialog").waitFor({ state: "detached" });
    expect(await page.evaluate("document.activeElement.textContent")).toBe("Copy");
    await page.goBack();
    await page.getByRole("link", { name: "First page" }).waitFor();
    await expect.poll(() => focused(page)).toBe("main");
  });

  it("keeps the focus of who follows a thread that goes on", async () => {
    const put = (checkpointId: string) =>
      edge.clients.connect.put({
        threadId: "followed",
        checkpointId,
        checkpointJson: '{"v": 4}',
        metadataJson: JSON.stringify({ step: Number(checkpointId) }),
      });
    await put("1");
    const page = await open(of("followed", "&tab=tasks"));
    await page.getByRole("heading", { level: 2, name: "Step 1" }).waitFor();
    await page.getByRole("tab", { name: "Tasks" }).focus();
    await put("2");
    await page.getByRole("heading", { level: 2, name: "Step 2" }).waitFor();
    expect(await page.evaluate("document.activeElement.id")).toBe("tab-tasks");
  });

  it("tells times by the server's clock, whatever the browser's says", async () => {
    await saver.threads.copy(ids.failed, "leased");
    await saver.threads.claim({ owner: "worker-8", threadId: "leased", leaseMs: 3_600_000 });
    for (const hours of [-5, 5]) {
      const page = await open(of("leased"));
      await page.addInitScript(
        `{ const now = Date.now; Date.now = () => now() + ${hours} * 3_600_000; }`,
      );
      await page.reload();
      const facts = page.locator(".thread-head .facts");
      await expect
        .poll(() => facts.innerText(), { timeout: 20_000 })
        .toMatch(/updated \d+ [sm] ago.*worker-8, (1 h|\d+ m) left/s);
      await page.goto(`${edge.server.url}/?within=1h`);
      await page.locator(".row").first().waitFor();
      await context?.close();
    }
  });

  async function idsOf(threadId: string): Promise<string[]> {
    const found: string[] = [];
    for await (const { checkpoint } of saver.list({ configurable: { thread_id: threadId } })) {
      found.push(checkpoint.id);
    }
    return found;
  }
});
