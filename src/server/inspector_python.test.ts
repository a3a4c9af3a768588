/** The page at /, in Chromium, on threads that graphs of Python left. */
import type { BrowserContext, Page } from "playwright-core";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { noChromium, startChromium, type TestBrowser } from "../testing/chromium.js";
import { startEdge } from "../testing/edge.js";
import { newWatchedPage } from "../testing/inspected_page.js";
import { noPython, runPython } from "../testing/installed_python.js";

const missing = noChromium ?? noPython;

describe.skipIf(missing)(`threads of Python${missing ? ` (${missing})` : ""}`, () => {
  let chromium: TestBrowser;
  let edge: Awaited<ReturnType<typeof startEdge>>;
  let context: BrowserContext | undefined;
  let complaints: string[] = [];

  beforeAll(async () => {
    edge = await startEdge();
    await runPython("inspected_threads.py", edge.server.url);
    chromium = await startChromium();
  }, 180_000);
  afterEach(async () => {
    await context?.close();
    context = undefined;
  });
  afterAll(async () => {
    await chromium?.close();
    await edge?.stop();
  });

  async function open(query: string): Promise<Page> {
    context = await chromium.browser.newContext({ viewport: { width: 1280, height: 800 } });
    const watched = await newWatchedPage(context);
    complaints = watched.complaints;
    await watched.page.goto(`${edge.server.url}/${query}`);
    return watched.page;
  }
  const region = (page: Page, name: string) => page.getByRole("region", { name, exact: true });

  it("wait on top, with the question and the error", async () => {
    const page = await open("?prefix=python/");
    await page.locator(".waiting .row").first().waitFor();
    expect(await page.locator(".waiting .reason").allInnerTexts()).toEqual([
      expect.stringContaining("no train to Rome"),
      "asks: Book 4 days in Rome?",
    ]);
    expect(complaints).toEqual([]);
  });

  it("read as a conversation, and as a tree with the fork", async () => {
    const page = await open("?thread=python/trip");
    const messages = page.locator(".message");
    await messages.nth(4).waitFor();
    const roles = await messages.locator(".role").allInnerTexts();
    expect(roles.slice(-4)).toEqual(["Human", "AI", "Tool", "AI"]);
    const text = await page.locator(".conversation").innerText();
    expect(text).toContain("And in Bern?");
    expect(text).toMatch(/calls look_up_weather\s*call_1/);
    expect(text).toMatch(/answers call_1\s*error/);
    expect(text).toContain("I look it up.");
    await page.locator(".conversation").getByText("reasoning").first().click();
    await page.getByText("I need the weather.", { exact: true }).waitFor();
    await page.locator(".forked").waitFor();
    expect(complaints).toEqual([]);
  });

  it("have values of every kind as they are, and no error", async () => {
    const page = await open("?thread=python/trip");
    await region(page, "trip").getByText("Rome").waitFor();
    const texts: Record<string, RegExp> = {
      trip: /Trip · 3[\s\S]*city[\s\S]*Rome[\s\S]*days[\s\S]*3/,
      person: /Person · 3[\s\S]*Ada[\s\S]*1815-12-10/,
      mood: /Mood[\s\S]*calm/,
      at: /2026-11-26T09:30:00\+00:00/,
      tags: /set · 1[\s\S]*draft/,
      queue: /deque · 2/,
      raw: /bytes\s*400 B/,
      big: /4611686018427387905/,
      price: /Decimal[\s\S]*12\.50/,
      span: /timedelta/,
      ident: /00000000-0000-0000-0000-000000000007/,
      place: /Path[\s\S]*srv/,
      pair: /1[\s\S]*one/,
      by_number: /2[\s\S]*two/,
      note: /Revenue grew by 4 %\./,
    };
    for (const [name, text] of Object.entries(texts)) {
      expect(await region(page, name).innerText(), name).toMatch(text);
    }
    expect(await page.locator("main").innerText()).not.toMatch(/not read|unknown|undefined/);
    expect(await page.locator(".unknown").count()).toBe(0);
    await page.getByRole("tab", { name: "Tasks" }).click();
    await page.getByRole("tabpanel").getByText("Book 4 days in Rome?").waitFor();
    await page.getByRole("tabpanel").getByText("Trip").first().waitFor();
    expect(complaints).toEqual([]);
  });

  it("tell what a step changed", async () => {
    const page = await open("?thread=python/trip&tab=changes");
    await page.locator(".changes").waitFor();
    const changes = await page.locator(".changes").innerText();
    expect(changes).toContain("It rains in Rome.");
    expect(changes).toMatch(/person/);
    expect(complaints).toEqual([]);
  });

  it("show what is pickled by its type, size and bytes", async () => {
    const page = await open("?thread=python/pickled");
    const odd = region(page, "odd");
    await odd.getByText("pickle").waitFor();
    await odd.locator(".bytes summary").click();
    await odd.getByText(/^0000 {2}80 /).waitFor();
    expect(complaints).toEqual([]);
  });
});
