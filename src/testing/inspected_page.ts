/** The page at / in a browser, for tests: what it complains about, and how its acts are done. */
import type { BrowserContext, Page } from "playwright-core";

/** A page of its own, and what it complained about until now, to which what comes is added. */
export interface WatchedPage {
  page: Page;
  complaints: string[];
}

/**
 * Opens a page that waits 30 s for what it is asked for. Errors are its complaints, and with
 * `console` what is written there as one too, as the browser does of requests that fail.
 */
export async function newWatchedPage(
  context: BrowserContext,
  { console = true }: { console?: boolean } = {},
): Promise<WatchedPage> {
  const complaints: string[] = [];
  const page = await context.newPage();
  page.setDefaultTimeout(30_000);
  page.on("pageerror", (error) => complaints.push(error.message));
  page.on("console", (line) => {
    if (console && line.type() === "error") complaints.push(line.text());
  });
  return { page, complaints };
}

/** The address of a thread, below the page's. */
export const of = (thread: string, more = "") => `?thread=${encodeURIComponent(thread)}${more}`;

/** Presses the button of one of a thread's acts, which opens its dialog. */
export const act = (page: Page, name: string) =>
  page.locator(".acts").getByRole("button", { name, exact: true }).click();

/** Presses a button of the dialog. */
export const inDialog = (page: Page, name: string) =>
  page.getByRole("dialog").getByRole("button", { name, exact: true }).click();
