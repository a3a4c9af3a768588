/** The demo against a service that runs, as two people's commands: `npm start` and `npm run demo`. */
import { execFile } from "node:child_process";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import path from "node:path";
import { promisify } from "node:util";
import { afterAll, beforeAll, describe, expect, it, vi } from "vitest";
import { ConnectSaver } from "../../src/index.js";
import { makeTokenFile } from "../../src/server/token_file.js";
import { noChromium, startChromium, type TestBrowser } from "../../src/testing/chromium.js";
import { createDatabase, type TestDatabase } from "../../src/testing/postgres.js";
import { runCommand, type ServeProcess, startServe } from "../../src/testing/serve_process.js";
import { startTestServer, startUnreadyServer } from "../../src/testing/test_server.js";
import { createSupport } from "../support/graph.js";
import { findService } from "./processes.js";

const demo = "../../examples/content_pipeline/demo.js";
let database: TestDatabase;

beforeAll(async () => {
  database = await createDatabase();
});
afterAll(() => database?.drop());

describe("in a service that runs", () => {
  let service: ServeProcess;
  let saver: ConnectSaver;
  const idsOf = async () => {
    const found = [];
    for await (const { threadId } of saver.threads.list({ order: "id" })) found.push(threadId);
    return found;
  };
  const left = [
    "demo/content-pipeline/hearth-mini",
    "demo/content-pipeline/next",
    "demo/support/ada-lovelace",
    "demo/support/charles-babbage",
  ];
  const strangers = ["campaign", "demo", "demos/ours"];
  let lines: string[];

  beforeAll(async () => {
    service = await startServe([], { DATABASE_URL: database.url });
    saver = ConnectSaver.fromUrl(service.url);
    for (const thread_id of strangers) {
      const messages = [{ role: "user", content: "Refund order 1042" }];
      await createSupport(saver).invoke({ messages }, { configurable: { thread_id } });
    }
    // Twice: what the first leaves is in nobody's way.
    for (const _ of ["first", "second"]) {
      const env = { CHECKPOINTD_URL: service.url };
      const { code, stdout, stderr } = await runCommand([], env, undefined, demo);
      expect({ code, stderr }).toEqual({ code: 0, stderr: "" });
      expect(await idsOf()).toEqual([...strangers, ...left].sort());
      lines = stdout.trimEnd().split("\n");
    }
  }, 180_000);
  afterAll(async () => {
    await saver?.end();
    await service?.stop();
  });

  it("leaves four threads there, and says where they are to be seen", async () => {
    expect(lines.at(-1)).toBe(`Open ${service.url}/`);
    for (const id of left) expect(lines.join("\n")).toContain(id);
    const status = async (id: string) => (await saver.threads.get(id))?.status;
    expect(await Promise.all(left.map(status))).toEqual([
      "completed",
      "interrupted",
      "interrupted",
      "failed",
    ]);
  });

  it.skipIf(noChromium)(
    "has the waiting thread on top of the page, its conversation, its fork and a step's difference",
    async () => {
      let chromium: TestBrowser | undefined;
      try {
        chromium = await startChromium();
        const page = await chromium.browser.newPage({ viewport: { width: 1280, height: 800 } });
        page.setDefaultTimeout(30_000);
        const complaints: string[] = [];
        page.on("pageerror", (error) => complaints.push(error.message));
        page.on("console", (line) => line.type() === "error" && complaints.push(line.text()));
        await page.goto(lines.at(-1)?.replace("Open ", "") as string);
        const top = page.locator(".row").first();
        await top.waitFor();
        const shown = await top.innerText();
        expect(shown).toContain("demo/support/ada-lovelace");
        expect(shown).toContain("interrupted");
        expect(shown).toContain("asks: Refund 129.90 EUR to Ada Lovelace for order 1042?");
        const second = await page.locator(".row").nth(1).innerText();
        expect(second).toContain("error: the carrier answered 503 to GET /parcels/2718");

        await top.click();
        const messages = page.locator(".conversation .message");
        await messages.nth(5).waitFor();
        expect(await messages.locator(".role").allInnerTexts()).toEqual([
          "Human",
          "AI",
          "Tool",
          "AI",
          "Human",
          "AI",
        ]);
        const said = await page.locator(".conversation").innerText();
        for (const text of [
          "Hi! Where is my order 1042?",
          "arrives on Friday, between 9 and 12",
          "Can I have my money back?",
          "A refund needs a colleague's yes",
          "refund_order",
        ]) {
          expect(said).toContain(text);
        }

        // Two branches, of which the older one is a click away.
        expect(await page.locator(".forked").count()).toBe(1);
        const older = page.locator(".history li", { has: page.locator(".dot.lane-1") }).first();
        await older.locator("a").click();
        await page.getByText("Please send it to 12 St James's Square instead.").waitFor();
        await page.locator(".history li a").first().click();
        await page.getByText("Can I have my money back?").first().waitFor();

        await page.getByRole("tab", { name: /Changes/ }).click();
        const changes = page.locator(".changes");
        await changes.waitFor();
        expect(await changes.locator(".added").innerText()).toContain("A refund needs");
        expect(await changes.innerText()).not.toContain("Hi! Where is");
        expect(complaints).toEqual([]);
      } finally {
        await chromium?.close();
      }
    },
  );

  it("goes on when its question is answered as examples/README.md says", async () => {
    const readme = await readFile("examples/README.md", "utf8");
    const [, code = ""] = /--input-type=module -e '\n(.*?)'\n/s.exec(readme) ?? [];
    const here = code.replace("http://127.0.0.1:8080", service.url);
    expect(here).toContain(service.url);
    await promisify(execFile)(process.execPath, ["--input-type=module", "-e", here]);
    expect(await saver.threads.get("demo/support/ada-lovelace")).toMatchObject({
      status: "completed",
      graph: "support",
    });
  });

  it("goes away by the command that the demo prints, and nothing else does", async () => {
    const command = lines.find((line) => line.includes(" threads prune ")) ?? "";
    const [, args = ""] = command.split("main.js ");
    const { code, stderr } = await runCommand([...args.split(" "), "--yes"]);
    expect({ code, stderr }).toEqual({ code: 0, stderr: "" });
    expect(await idsOf()).toEqual(strangers);
  });
});

describe("finds the service", () => {
  it("that runs, also one that is just about to be ready", async () => {
    const server = await startUnreadyServer(database.url);
    expect(await findService(server.url)).toBe(server.url);
    await server.drain();
    expect(await findService(server.url)).toBeUndefined();
  });

  it("only where it takes calls from whoever is here, and says so", async () => {
    const said = vi.spyOn(console, "log").mockImplementation(() => {});
    const folder = await mkdtemp(path.join(tmpdir(), "checkpointd-demo-test-"));
    makeTokenFile(`${folder}/key`);
    const closed = await startTestServer(database.url, { tokenFile: `${folder}/key` });
    const other = createServer((_, response) => response.end("hello")).listen(0, "127.0.0.1");
    try {
      expect(await findService(closed.url)).toBeUndefined();
      expect(said.mock.calls.join("\n")).toContain(`What listens at ${closed.url} is not used`);
      const { port } = other.address() as AddressInfo;
      expect(await findService(`http://127.0.0.1:${port}`)).toBeUndefined();
    } finally {
      said.mockRestore();
      await closed.drain();
      other.close();
      await rm(folder, { recursive: true });
    }
  });
});
