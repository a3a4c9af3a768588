/** The page at / in Chromium where there is much: 100,000 threads, long histories, changes while one looks. */
import { fromBinary } from "@bufbuild/protobuf";
import type { BrowserContext, Page, Route } from "playwright-core";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { ListThreadsRequestSchema } from "../../gen/checkpointd/v1/thread_service_pb.js";
import { noChromium, startChromium, type TestBrowser } from "../testing/chromium.js";
import { startEdge } from "../testing/edge.js";
import { newWatchedPage } from "../testing/inspected_page.js";
import { startTestServer } from "../testing/test_server.js";

const count = 100_000;
const steps = 10_000;
const nameOf = (n: number) => `thread-${String(n).padStart(6, "0")}`;

describe.skipIf(noChromium)(`in Chromium${noChromium ? ` (${noChromium})` : ""}`, () => {
  let chromium: TestBrowser;
  let edge: Awaited<ReturnType<typeof startEdge>>;
  let context: BrowserContext;
  let complaints: string[];

  /** Checkpoints of one step each, n seconds old. */
  const insert = (threads: string, from: number, to: number) =>
    edge.sql.query(
      `insert into checkpoints (thread_id, checkpoint_ns, checkpoint_id, type, checkpoint, metadata, created_at)
      select ${threads}, '', lpad(n::text, 8, '0'), null, '{"v": 4, "channel_versions": {}}',
        jsonb_build_object('step', n % 40, 'source', 'loop'), now() - make_interval(secs => n)
      from generate_series($1::int, $2::int) as n`,
      [from, to],
    );
  /** A question that the thread waits for an answer to. */
  const ask = (n: number) =>
    edge.sql.query(
      `insert into checkpoint_writes (thread_id, checkpoint_ns, checkpoint_id, task_id, idx, channel, type, blob)
      values ($1, '', $2, 'task', -3, '__interrupt__', 'json', '[{"value": "may I?"}]')`,
      [nameOf(n), String(n).padStart(8, "0")],
    );

  beforeAll(async () => {
    edge = await startEdge();
    await insert("'thread-' || lpad(n::text, 6, '0')", 1, count);
    // One among the latest, and one that is found when nearly all have been looked at.
    for (const n of [700, count - 5]) await ask(n);
    await edge.sql.query(
      `insert into checkpoints (thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, type, checkpoint, metadata, created_at)
      select 'long', '', lpad(n::text, 6, '0'), case when n > 0 then lpad((n - 1)::text, 6, '0') end,
        null, '{"v": 4, "channel_versions": {}}', jsonb_build_object('step', n, 'source', 'loop'),
        now() - interval '1 year'
      from generate_series(0, ${steps - 1}) as n`,
    );
    await edge.sql.query("delete from checkpoints where thread_id like 's3cr3t%'");
    await edge.sql.query("analyze");
    chromium = await startChromium();
  });
  beforeEach(async () => {
    context = await chromium.browser.newContext({ viewport: { width: 1280, height: 800 } });
  });
  afterEach(async () => {
    await context.close();
    await edge.sql.query("delete from checkpoints where thread_id like 'new-%'");
  });
  afterAll(async () => {
    await chromium?.close();
    await edge?.stop();
  });

  async function open(query = "", prepare?: (page: Page) => unknown, url = edge.server.url) {
    const watched = await newWatchedPage(context);
    const { page } = watched;
    complaints = watched.complaints;
    await prepare?.(page);
    await page.goto(`${url}/${query}`);
    return page;
  }

  const waiting = (page: Page) => page.locator(".waiting .row");
  const others = (page: Page) => page.locator(".list:not(.waiting) .row");
  const idsOf = (rows: ReturnType<typeof others>) => rows.locator(".id").allInnerTexts();
  const names = (from: number, to: number) =>
    Array.from({ length: to - from + 1 }, (_, i) => nameOf(from + i));

  /** Calls of ListThreads, by whether they search for those that wait. */
  const onList = (page: Page, answer: (isSearch: boolean, route: Route) => Promise<void>) =>
    page.route(/ListThreads$/, (route) => {
      // Behind the five bytes of an envelope.
      const body = route.request().postDataBuffer()?.subarray(5) ?? new Uint8Array();
      const { examineLimit } = fromBinary(ListThreadsRequestSchema, body);
      return answer(examineLimit !== undefined, route);
    });
  function gate() {
    let open = () => {};
    const opened = new Promise<void>((resolve) => {
      open = resolve;
    });
    return { open, opened };
  }
  const topOf = async (row: ReturnType<typeof others>) => (await row.boundingBox())?.y;
  const scrollTop = (page: Page) => page.evaluate("scrollY");

  it("goes through 100,000 threads page by page, and back to where one was", async () => {
    const page = await open();
    const rows = others(page);
    await waiting(page).first().waitFor();
    expect(await idsOf(waiting(page))).toEqual([nameOf(700)]);
    expect(await idsOf(rows)).toEqual(names(1, 50));
    for (const from of [51, 101, 151]) {
      await page.getByRole("link", { name: "Next page" }).click();
      await rows.getByText(nameOf(from), { exact: true }).waitFor();
      expect(await idsOf(rows)).toEqual(names(from, from + 49));
      expect(await scrollTop(page)).toBe(0);
    }
    const row = rows.nth(40);
    await row.scrollIntoViewIfNeeded();
    const [top, scrolled] = [await topOf(row), await scrollTop(page)];
    expect(scrolled).toBeGreaterThan(500);
    await row.click();
    await page.getByRole("heading", { level: 1, name: nameOf(191) }).waitFor();
    expect(await scrollTop(page)).toBe(0);
    await page.goBack();
    await rows.first().waitFor();
    expect([await topOf(row), await scrollTop(page)]).toEqual([top, scrolled]);
    await page.goBack();
    await rows.getByText(nameOf(101), { exact: true }).waitFor();
    await page.goForward();
    await rows.getByText(nameOf(151), { exact: true }).waitFor();
    await expect.poll(() => topOf(row)).toBe(top);
    // Nothing was kept of what a new tab has not seen, but where it was.
    await page.reload();
    await rows.first().waitFor();
    await expect.poll(() => topOf(row)).toBe(top);
    await page.getByRole("link", { name: "First page" }).click();
    await rows.getByText(nameOf(1), { exact: true }).waitFor();
    expect(await page.locator("*").count()).toBeLessThan(1_500);
    expect(complaints).toEqual([]);
  });

  it("finds a prefix and a status among them, and shows what it has found while it searches", async () => {
    const page = await open("?order=id&prefix=thread-0500");
    await others(page).first().waitFor();
    expect(await idsOf(others(page))).toEqual(names(50_000, 50_049));
    const searched = await open("?status=interrupted", (page) =>
      page.addInitScript(`
        new MutationObserver(() => {
          if (!document.body?.innerText.includes("Searching further back")) return;
          globalThis.found = document.querySelectorAll(".row").length;
        }).observe(document, { childList: true, subtree: true });`),
    );
    await others(searched).nth(1).waitFor();
    expect(await idsOf(others(searched))).toEqual([nameOf(700), nameOf(count - 5)]);
    expect(await searched.evaluate("globalThis.found")).toBe(1);
    expect(await searched.locator(".loading").count()).toBe(0);
  });

  it("draws each part of the list when its own answer is there", async () => {
    const search = gate();
    const list = gate();
    const page = await open("", (page) =>
      onList(page, async (isSearch, route) => {
        await (isSearch ? search : list).opened;
        await route.continue();
      }),
    );
    await page.getByText("Reading threads…").waitFor();
    list.open();
    await others(page).nth(49).waitFor();
    expect(await waiting(page).count()).toBe(0);
    search.open();
    await waiting(page).waitFor();
    const first = gate();
    const never = gate();
    const other = await open("", (page) =>
      onList(page, async (isSearch, route) => {
        await (isSearch ? first : never).opened;
        await route.continue();
      }),
    );
    first.open();
    await waiting(other).waitFor();
    expect(await others(other).count()).toBe(0);
    never.open();
    await others(other).first().waitFor();
  });

  it("moves no row that the pointer is on, for what waits nor for what is new", async () => {
    const search = gate();
    const page = await open("", (page) =>
      onList(page, async (isSearch, route) => {
        if (isSearch) await search.opened;
        await route.continue();
      }),
    );
    const row = others(page).nth(3);
    await row.hover();
    const top = await topOf(row);
    search.open();
    await page.getByRole("button", { name: "Show what changed" }).waitFor();
    expect(await waiting(page).count()).toBe(0);
    expect([await topOf(row), (await idsOf(row))[0]]).toEqual([top, nameOf(4)]);
    await page.mouse.move(5, 5);
    await waiting(page).waitFor();
    await row.hover();
    const later = await topOf(row);
    expect(later).toBeGreaterThan(top ?? 0);
    // Its facts are those of now all the same.
    await edge.sql.query(
      `update checkpoints set metadata = '{"step": 77}' where thread_id = '${nameOf(4)}'`,
    );
    await insert("'new-' || n", 0, 0);
    await row.getByText("step 77").waitFor();
    await page.getByRole("button", { name: "Show what changed" }).waitFor();
    expect([await topOf(row), (await idsOf(row))[0]]).toEqual([later, nameOf(4)]);
    await page.getByRole("button", { name: "Show what changed" }).click();
    await expect.poll(async () => (await idsOf(others(page)))[0]).toBe("new-0");
    expect(await page.getByRole("button", { name: "Show what changed" }).count()).toBe(0);
  });

  it("takes a click for nothing where rows have come under a pointer that rests", async () => {
    const search = gate();
    const page = await open("?prefix=none");
    await page.getByText("No thread matches the filters.").waitFor();
    await page.mouse.move(600, 500);
    await onList(page, async (isSearch, route) => {
      if (isSearch) await search.opened;
      await route.continue();
    });
    await page.getByLabel("Id begins with").fill("");
    await others(page).nth(9).waitFor();
    // As fast as a page can be: in the same frame.
    await page.evaluate(`new MutationObserver((_, look) => {
      if (!document.querySelector(".waiting")) return;
      look.disconnect();
      document.querySelector(".row").dispatchEvent(
        new MouseEvent("click", { bubbles: true, cancelable: true, detail: 1 }));
      globalThis.wasClicked = true;
    }).observe(document.body, { childList: true, subtree: true })`);
    search.open();
    await expect.poll(() => page.evaluate("globalThis.wasClicked")).toBe(true);
    expect(new URL(page.url()).searchParams.get("thread")).toBe(null);
    await others(page).first().click();
    await page.getByRole("heading", { level: 1, name: nameOf(1) }).waitFor();
  });

  it("leaves the focus, the place and a dialog alone while it follows", async () => {
    const page = await open();
    await waiting(page).waitFor();
    const behind = page.getByRole("button", { name: "Show what changed" });
    await others(page).nth(2).focus();
    await insert("'new-' || n", 0, 0);
    await behind.waitFor();
    expect(await page.evaluate("document.activeElement.innerText")).toContain(nameOf(3));
    await page.getByLabel("Graph").focus();
    await others(page).getByText("new-0").waitFor();
    // Scrolled.
    await page.evaluate("scrollTo(0, 900)");
    const row = others(page).nth(25);
    const top = await topOf(row);
    await insert("'new-' || n", -1, -1);
    await behind.waitFor();
    expect([await scrollTop(page), await topOf(row)]).toEqual([900, top]);
    await page.evaluate("scrollTo(0, 0)");
    await others(page).getByText("new--1").waitFor();
    // A dialog stays, with what was typed, while the list behind it goes on.
    await page.getByRole("button", { name: "Import" }).click();
    const name = page.getByLabel("The thread's name here");
    await name.fill("half a na");
    await insert("'new-' || n", -2, -2);
    await others(page).getByText("new--2").waitFor({ state: "attached" });
    await page.keyboard.type("me");
    expect(await name.inputValue()).toBe("half a name");
    expect(complaints).toEqual([]);
  });

  it("asks again the less often the longer an answer takes, and not in between", async () => {
    let pages = 0;
    let searches = 0;
    const page = await open("", (page) =>
      onList(page, async (isSearch, route) => {
        if (isSearch) searches++;
        else pages++;
        if (isSearch) await new Promise((resolve) => setTimeout(resolve, 2_500));
        await route.continue();
      }),
    );
    await waiting(page).waitFor();
    await expect.poll(() => pages).toBeGreaterThan(3);
    // After 2.5 s of looking, 75 s of rest.
    expect(searches).toBe(1);
  });

  it("counts what is stored of the threads in view, if that is asked for", async () => {
    let asked = 0;
    let atOnce = 0;
    let most = 0;
    const page = await open("", (page) =>
      page.route(/GetThread$/, async (route) => {
        asked++;
        most = Math.max(most, ++atOnce);
        const response = await route.fetch();
        atOnce--;
        await route.fulfill({ response });
      }),
    );
    await others(page).first().waitFor();
    expect(asked).toBe(0);
    await page.getByRole("button", { name: "Sizes" }).click();
    expect(new URL(page.url()).searchParams.get("sizes")).toBe("1");
    await expect.poll(() => others(page).first().locator(".size").innerText()).toMatch(/^\d+ B$/);
    expect(await others(page).first().locator(".size").getAttribute("title")).toBe(
      "1 checkpoint, 0 values, 0 writes",
    );
    const inView = Math.ceil(800 / 40);
    await expect
      .poll(() => page.locator(".size").filter({ hasText: "B" }).count())
      .toBeGreaterThan(8);
    expect(asked).toBeLessThanOrEqual(inView);
    expect(most).toBeLessThanOrEqual(2);
    await page.locator(".row").last().scrollIntoViewIfNeeded();
    await expect.poll(() => page.locator(".row .size").last().innerText()).toMatch(/B$/);
    await page.unrouteAll({ behavior: "wait" });
    expect(complaints).toEqual([]);
  });

  it("goes to the oldest of 10,000 steps with one key, few of them in the document", async () => {
    const page = await open("?thread=long");
    const current = page.locator(".history [aria-current=step]");
    await current.waitFor();
    await current.focus();
    await page.keyboard.press("End");
    await page.getByRole("heading", { level: 2, name: "Step 0", exact: true }).waitFor();
    await expect.poll(() => page.evaluate("document.activeElement.innerText")).toMatch(/^0\b/);
    expect(await page.locator(".history li").count()).toBeLessThan(60);
    expect(await page.locator("*").count()).toBeLessThan(1_500);
    await page.keyboard.press("Home");
    await page.getByRole("heading", { level: 2, name: `Step ${steps - 1}` }).waitFor();
    expect(complaints).toEqual([]);
  });

  it("says that the server is away without moving what it shows", async () => {
    const first = await startTestServer(edge.database.url);
    const page = await open("", undefined, first.url);
    await waiting(page).waitFor();
    const row = others(page).nth(1);
    const top = await topOf(row);
    await first.drain();
    await page.getByRole("alert").getByText("The server is away").waitFor();
    expect([await topOf(row), await others(page).count()]).toEqual([top, 50]);
    const second = await startTestServer(edge.database.url, { port: first.port });
    try {
      await page.getByRole("alert").waitFor({ state: "detached" });
      await page.getByText("live", { exact: true }).waitFor();
    } finally {
      await context.close();
      await second.drain();
    }
  });
});
