import pg from "pg";
import { afterAll, beforeAll, expect, it, vi } from "vitest";
import type { Server } from "../server/server.js";
import { createDatabase, type TestDatabase } from "../testing/postgres.js";
import { type Relay, startRelay } from "../testing/relay.js";
import { startTestServer } from "../testing/test_server.js";
import { runThreads } from "./threads_command.js";

const count = 300;
/** What the command has told so far, and what is done when it tells of how far it has come. */
const said = vi.hoisted(() => ({
  asked: [] as string[],
  json: [] as unknown[],
  progress: "",
  onProgress() {},
}));
vi.mock("./print.js", async (original) => ({
  ...(await original<typeof import("./print.js")>()),
  startProgress: () => ({
    say(text: string) {
      said.progress = text;
      said.onProgress();
    },
    end() {},
  }),
  printJson: (value: unknown) => said.json.push(value),
  confirm: async (question: string) => {
    said.asked.push(question);
    return false;
  },
}));

let database: TestDatabase;
let server: Server;
let relay: Relay;
beforeAll(async () => {
  database = await createDatabase();
  server = await startTestServer(database.url);
  const client = new pg.Client({ connectionString: database.url });
  await client.connect();
  await client.query(
    `insert into checkpoints (thread_id, checkpoint_id, checkpoint, metadata)
     select 'cut-' || thread, id, '{"v": 4}', '{}'
     from generate_series(1, $1::int) as thread, generate_series(1, 2) as id`,
    [count],
  );
  await client.end();
  // So slowly that most of the answer is still under way when the connection is cut.
  relay = await startRelay(() => server.port, "lets them through", { answeredBytesPerMs: 10 });
});
afterAll(async () => {
  relay?.close();
  await server?.drain();
  await database?.drop();
});

/** Runs a prune whose connection is cut after a third of the threads. */
async function prune(...args: string[]): Promise<number> {
  let told = 0;
  said.onProgress = () => {
    if (++told === count / 3) relay.cut();
  };
  const connections = () => relay.http1() + relay.http2();
  const before = connections();
  const code = await runThreads(["prune", "--url", relay.url, "--prefix", "cut-", ...args]);
  expect(connections()).toBeGreaterThan(before + 1);
  return code;
}

it("prune counts and asks for each thread once, also where the connection was cut", async () => {
  expect(await prune("--keep-last", "1", "--dry-run", "--json")).toBe(0);
  expect(said.json).toMatchObject([{ dryRun: true, threads: count, checkpoints: count }]);
  expect(said.progress).toMatch(`${count} threads looked at`);
  expect(await prune("--delete")).toBe(1);
  expect(said.asked).toEqual([
    expect.stringMatching(
      /^Remove 600 checkpoints, 0 values and 0 writes \(.*\) of 300 threads\?$/,
    ),
  ]);
}, 60_000);
