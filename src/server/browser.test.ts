/** A page in Chromium that calls a server of another origin over the Connect protocol. */
import { createServer, type Server } from "node:http";
import { createRequire } from "node:module";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import path from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";
import { AIMessage, HumanMessage } from "@langchain/core/messages";
import { MemorySaver } from "@langchain/langgraph-checkpoint";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { Page } from "../testing/browser_page.js";
import { noChromium, startChromium, type TestBrowser } from "../testing/chromium.js";
import { startEdge } from "../testing/edge.js";

/** Bundles the page's script, and with it checkpointd/client, with the Vite that vitest brings. */
async function bundlePage(): Promise<string> {
  const vitest = createRequire(createRequire(import.meta.url).resolve("vitest/package.json"));
  const { build } = await import(pathToFileURL(vitest.resolve("vite")).href);
  const entry = fileURLToPath(new URL("../testing/browser_page.ts", import.meta.url));
  const [{ output }] = await build({
    configFile: false,
    logLevel: "error",
    build: {
      write: false,
      minify: false,
      lib: { entry, formats: ["iife"], name: "page" },
    },
  });
  const [{ code, imports }] = output;
  // Vite puts an empty module where a page's script asks for one of Node's.
  expect({ imports, node: /.*(browser-external|["']node:).*/.exec(code)?.[0] }).toEqual({
    imports: [],
    node: undefined,
  });
  return code;
}

async function servePage(script: string): Promise<{ server: Server; origin: string }> {
  const server = createServer((request, response) => {
    const isScript = request.url === "/page.js";
    response.setHeader("content-type", isScript ? "text/javascript" : "text/html");
    response.end(
      isScript ? script : `<!doctype html><h1>page</h1><script src="/page.js"></script>`,
    );
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  return { server, origin: `http://127.0.0.1:${(server.address() as AddressInfo).port}` };
}

describe.skipIf(noChromium)(`in Chromium${noChromium ? ` (${noChromium})` : ""}`, () => {
  let page: Awaited<ReturnType<typeof servePage>>;
  let stranger: typeof page;
  let chromium: TestBrowser;
  let edge: Awaited<ReturnType<typeof startEdge>>;
  const ids = Array.from({ length: 300 }, (_, i) => String(i).padStart(3, "0"));

  beforeAll(async () => {
    const script = await bundlePage();
    page = await servePage(script);
    stranger = await servePage(script);
    edge = await startEdge({ corsOrigins: [page.origin] });
    for (const checkpointId of ids) {
      await edge.clients.connect.put({
        threadId: "page",
        checkpointId,
        checkpointJson: `{"v": 4, "channel_versions": {"c": 1}}`,
        blobs: [
          { channel: "c", version: "1", value: { type: "b", data: Uint8Array.from([0, 255]) } },
        ],
      });
    }
    const [type, data] = await new MemorySaver().serde.dumpsTyped([
      new HumanMessage("Hi"),
      new AIMessage("<img src=x onerror=alert(1)>"),
    ]);
    await edge.clients.connect.put({
      threadId: "chat",
      checkpointId: "1",
      checkpointJson: `{"v": 4, "channel_versions": {"messages": 1}}`,
      blobs: [{ channel: "messages", version: "1", value: { type, data } }],
    });
    chromium = await startChromium();
  });

  afterAll(async () => {
    await chromium?.close();
    page?.server.close();
    stranger?.server.close();
    await edge?.stop();
  });

  /** Opens a page and calls one of its functions there. */
  async function inPage<Name extends keyof Page>(
    origin: string,
    how: { binary: boolean; get: boolean },
    name: Name,
    ...args: Parameters<Page[Name]>
  ): Promise<Awaited<ReturnType<Page[Name]>>> {
    const tab = await chromium.browser.newPage();
    try {
      await tab.goto(origin);
      const call = `createPage(${JSON.stringify(edge.server.url)}, ${how.binary}, ${how.get})`;
      const answer = await tab.evaluate(`${call}.${name}(...${JSON.stringify(args)})`);
      if (process.env.CHECKPOINTD_SCREENSHOT) {
        const shown = JSON.stringify(JSON.stringify(answer));
        await tab.evaluate(`document.body.append(${shown})`);
        await tab.screenshot({ path: path.join(tmpdir(), `checkpointd-${name}.png`) });
      }
      return answer as Awaited<ReturnType<Page[Name]>>;
    } finally {
      await tab.close();
    }
  }

  for (const how of [
    { binary: true, get: false },
    { binary: false, get: false },
    { binary: false, get: true },
  ]) {
    describe(`${how.binary ? "binary" : "JSON"}, ${how.get ? "GET" : "POST"}`, () => {
      test("GetTuple", async () => {
        expect(await inPage(page.origin, how, "getTuple", "page")).toEqual({
          json: `{"v": 4, "channel_versions": {"c": 1}}`,
          bytes: [0, 255],
        });
        expect(edge.captured.lines({ requestId: "page-1" }).length).toBeGreaterThan(0);
      });

      test("messages, decoded by checkpointd/client", async () => {
        expect(await inPage(page.origin, how, "messages", "chat")).toEqual([
          "human: Hi",
          "ai: <img src=x onerror=alert(1)>",
        ]);
      });

      test("List, to its end", async () => {
        const { ids: seen } = await inPage(page.origin, how, "list", "page");
        expect(seen).toEqual(ids.toReversed());
      });

      test("List, left after three", async () => {
        const { ids: seen } = await inPage(page.origin, how, "listSome", "page", 3);
        expect(seen).toEqual(["299", "298", "297"]);
      });

      test("an error with its detail and its request id", async () => {
        const [message, detail] = how.get
          ? ["must not be empty", { reason: "REQUIRED", field: "thread_id", limit: 0 }]
          : [
              "must be at most 65536 bytes",
              { reason: "TOO_LONG", field: "thread_id", limit: 65_536 },
            ];
        expect(await inPage(page.origin, how, "fail")).toEqual({
          code: "InvalidArgument",
          message: `thread_id: ${message}`,
          detail,
          requestId: expect.stringMatching(/^[0-9a-f-]{36}$/),
        });
      });

      test("a page of another origin gets nothing", async () => {
        const { code, message } = await inPage(stranger.origin, how, "getTupleRefused");
        expect({ code, message }).toEqual({ code: "Unknown", message: "Failed to fetch" });
      });
    });
  }
});
