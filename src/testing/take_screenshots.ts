/**
 * `npm run screenshots`: the pictures of the page in docs/images, of threads that real graphs leave;
 * `-- FOLDER`: more of them, in another folder.
 */
import { chmod, mkdir, mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import type { BrowserContextOptions } from "playwright-core";
import { ConnectSaver } from "../index.js";
import { startEmbedded } from "../store/embedded.js";
import { startChromium } from "./chromium.js";
import { ids, runThreads } from "./inspected_threads.js";
import { startTestServer } from "./test_server.js";

const [, , elsewhere] = process.argv;
const folder = elsewhere ?? "docs/images";
const work = await mkdtemp(path.join(tmpdir(), "checkpointd-screenshots-"));
// As root, the embedded Postgres runs as another user, who must be able to enter.
await chmod(work, 0o755);
const embedded = await startEmbedded({ dataDir: path.join(work, "data"), onProgress: () => {} });
const server = await startTestServer(embedded.databaseUrl);
const { browser, close } = await startChromium();
try {
  await mkdir(folder, { recursive: true });
  const saver = ConnectSaver.fromUrl(server.url, { graph: "shop" });
  await runThreads(saver, false);
  await saver.threads.claim({ owner: "worker-2/eu", threadId: ids.failed });
  await saver.end();
  const wide = { width: 1280, height: 800 };
  const shot = async (
    name: string,
    query: string,
    ready: string,
    options: BrowserContextOptions = {},
  ) => {
    const context = await browser.newContext({ viewport: wide, locale: "en-GB", ...options });
    const page = await context.newPage();
    const problems: string[] = [];
    page.on("console", (line) => line.type() === "error" && problems.push(line.text()));
    page.on("pageerror", (error) => problems.push(error.message));
    await page.goto(`${server.url}/${query}`);
    await page.locator(ready).first().waitFor();
    // What is read after that.
    await page.waitForTimeout(500);
    await page.screenshot({ path: path.join(folder, `${name}.png`) });
    if (problems.length > 0) console.error(`${name}: ${problems.join("; ")}`);
    await context.close();
  };
  const of = (thread: string, more = "") => `?thread=${encodeURIComponent(thread)}${more}`;
  const dark = { colorScheme: "dark" } as const;
  const narrow = { viewport: { width: 390, height: 780 } };
  await shot("threads", "", ".row");
  await shot("conversation", of(ids.chat), ".message");
  await shot("difference", of(ids.values, "&tab=changes"), ".changes");
  await shot("conversation-dark", of(ids.chat), ".message", dark);
  if (elsewhere) {
    await shot("threads-dark", "", ".row", dark);
    await shot("question", of(ids.question, "&tab=tasks"), ".tasks");
    await shot("values", of(ids.values), ".tree");
    await shot("subgraph", of(ids.nested), ".namespaces");
    await shot("narrow", "", ".row", narrow);
    await shot("narrow-thread", of(ids.chat), ".message", narrow);
  }
} finally {
  await close();
  await server.drain();
  await embedded.stop();
  await rm(work, { recursive: true, force: true });
}
process.exit();
