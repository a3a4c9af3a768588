/** Backups of a running service, restored: docs/operate.md, "Backup and restore". */
import { execFile } from "node:child_process";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { uuid6 } from "@langchain/langgraph-checkpoint";
import pg from "pg";
import { afterEach, expect, it } from "vitest";
import { ConnectSaver, type Lease } from "../index.js";
import { dryRun } from "../store/migrate.js";
import { installedPostgres, startInstalledPostgres } from "../testing/installed_postgres.js";
import { createDatabase } from "../testing/postgres.js";
import { startRelay } from "../testing/relay.js";
import { SaverLoad } from "../testing/saver_load.js";
import { runCommand, startServe } from "../testing/serve_process.js";
import { startTestServer } from "../testing/test_server.js";

const run = promisify(execFile);
const main = fileURLToPath(new URL("../../dist/src/cli/main.js", import.meta.url));

const cleanups: (() => Promise<unknown> | unknown)[] = [];
afterEach(async () => {
  for (const cleanup of cleanups.splice(0).reverse()) await cleanup();
});

/** The commands of the documentation that begin with these words. */
async function documented(beginning: string): Promise<string[]> {
  const page = await readFile(new URL("../../docs/operate.md", import.meta.url), "utf8");
  const block = page.split("```sh\n").find((text) => text.startsWith(beginning));
  return (block as string).slice(0, block?.indexOf("```")).trim().split("\n");
}

function openSaver(url: string): ConnectSaver {
  const saver = ConnectSaver.fromUrl(url);
  cleanups.push(() => saver.end());
  return saver;
}

async function createFolder(): Promise<string> {
  const folder = await mkdtemp(path.join(tmpdir(), "checkpointd-backup-"));
  cleanups.push(() => rm(folder, { recursive: true, force: true }));
  return folder;
}

/** A conversation that one saver continues, whatever becomes of the service. */
function createChat(saver: ConnectSaver, thread: string) {
  let messages = "";
  let version: number | undefined;
  let parent: string | undefined;
  return {
    async say(text: string) {
      messages += text.padEnd(20_000, ".");
      version = saver.getNextVersion(version);
      const id = uuid6(0);
      await saver.put(
        { configurable: { thread_id: thread, checkpoint_ns: "", checkpoint_id: parent } },
        {
          v: 4,
          id,
          ts: new Date().toISOString(),
          channel_values: { messages },
          channel_versions: { messages: version },
          versions_seen: {},
        },
        { source: "loop", step: 0, parents: {}, run_id: "a run" } as never,
        { messages: version },
      );
      parent = id;
      return { id, messages };
    },
  };
}

it.skipIf(!installedPostgres)(
  "a dump under load has what was acknowledged before it, for every RPC",
  { timeout: 180_000 },
  async () => {
    const bin = installedPostgres as string;
    const postgres = await startInstalledPostgres(bin);
    cleanups.push(() => postgres.stop());
    const { databaseUrl } = postgres;
    const restoredUrl = databaseUrl.replace(/postgres$/, "restored");
    const folder = await createFolder();
    const server = await startTestServer(databaseUrl);
    cleanups.push(() => server.drain());
    let port = server.port;
    const relay = await startRelay(() => port);
    cleanups.push(() => relay.close());

    const load = new SaverLoad([openSaver(server.url), openSaver(server.url)]);
    const survivor = openSaver(relay.url);
    const chat = createChat(survivor, "chat");
    await chat.say("one");
    const second = await chat.say("two");
    const status = ["completed", "pending"] as const;
    const leases: Lease[] = [];
    for (const [threadId, leaseMs] of [
      ["held", 3_600_000],
      ["let go", 1_000],
    ] as const) {
      await createChat(survivor, threadId).say("mine");
      leases.push(
        ...(await survivor.threads.claim({ threadId, owner: "a worker", leaseMs, status })),
      );
    }
    const [held] = leases;
    expect(leases).toHaveLength(2);
    await load.pass(300);
    const before = load.snapshot();

    let serve = "";
    const output: string[] = [];
    for (const command of await documented("pg_dump")) {
      const text = command
        .replaceAll("postgres://user:password@host:5432/database", databaseUrl)
        .replaceAll("postgres://user:password@host:5432/restored", restoredUrl);
      if (text.includes("checkpointd serve")) {
        serve = text;
        continue;
      }
      const { stdout } = await run(
        "bash",
        ["-c", text.replace("checkpointd migrate", `"${process.execPath}" "${main}" migrate`)],
        { cwd: folder, env: { ...process.env, PATH: `${bin}:${process.env.PATH}` } },
      );
      output.push(stdout);
      if (text.startsWith("pg_dump")) await chat.say("lost");
    }
    expect(output.at(-1)).toBe("Nothing to do: the tables are up to date.\n");
    expect(await dryRun({ databaseUrl: restoredUrl, schema: "public" })).toBe("");
    await load.pass(20);
    await load.stop();
    await load.check(openSaver(server.url), load.acknowledged);

    expect(serve).toBe(`DATABASE_URL=${restoredUrl} checkpointd serve --no-migrate`);
    const restored = await startServe(["--no-migrate"], { DATABASE_URL: restoredUrl });
    cleanups.push(() => restored.stop());
    await restored.printed("checkpointd is ready");
    const saver = openSaver(restored.url);
    await load.check(saver, before);
    await expectEveryRpc(saver, before.keys().next().value as string, second);

    // Who lived through it goes on, from what it knew and the service does not.
    port = Number(new URL(restored.url).port);
    relay.cut("reset");
    const config = { configurable: { thread_id: "chat" } };
    expect((await survivor.getTuple(config))?.checkpoint.id).toBe(second.id);
    const third = await chat.say("three");
    for (const reader of [survivor, saver]) {
      const tuple = await reader.getTuple(config);
      expect(tuple?.checkpoint.id).toBe(third.id);
      expect(tuple?.checkpoint.channel_values).toEqual({ messages: third.messages });
    }

    // A lease holds until its time, for who has it, and then the thread is another worker's.
    const claim = { owner: "another", leaseMs: 60_000, status };
    expect(await saver.threads.claim({ ...claim, threadId: "held" })).toEqual([]);
    await saver.threads.renew("held", held?.token as string, 1_000);
    for (const threadId of ["held", "let go"]) {
      await expect.poll(() => saver.threads.claim({ ...claim, threadId })).toHaveLength(1);
    }
  },
);

/** Each call answers of what was restored as it would have before. */
async function expectEveryRpc(
  saver: ConnectSaver,
  thread: string,
  latest: { id: string; messages: string },
): Promise<void> {
  const config = { configurable: { thread_id: "chat", checkpoint_ns: "" } };
  const tuple = await saver.getTuple(config);
  expect(tuple?.checkpoint.channel_values).toEqual({ messages: latest.messages });
  const listed: string[] = [];
  for await (const { checkpoint } of saver.list(config)) listed.push(checkpoint.id);
  expect(listed).toHaveLength(2);
  const history = await saver.getDeltaChannelHistory({
    config: { configurable: { ...config.configurable, checkpoint_id: latest.id } },
    channels: ["messages"],
  });
  expect(Object.keys(history)).toEqual(["messages"]);
  const { threads } = saver;
  const all: string[] = [];
  for await (const { threadId } of threads.list({ counts: true })) all.push(threadId);
  expect(all).toContain("chat");
  expect(all).toContain(thread);
  expect(await threads.get("held")).toMatchObject({ claim: { owner: "a worker" } });
  expect(await threads.copy("chat", "copied")).toMatchObject({ checkpoints: 2, blobs: 2 });
  const copied = { configurable: { thread_id: "copied" } };
  expect((await saver.getTuple(copied))?.checkpoint.id).toBe(latest.id);
  const counted: unknown[] = [];
  for await (const pruned of threads.prune({ threadIds: ["copied"], keepLast: 1 })) {
    if (pruned.threadId) counted.push(pruned.removed.checkpoints);
  }
  expect(counted).toEqual([1]);
  await saver.deleteThread("copied");
  expect(await saver.getTuple(copied)).toBeUndefined();
  expect(await threads.deleteRuns(["no run"])).toMatchObject({ checkpoints: 0 });
  await saver.putWrites(
    { configurable: { ...config.configurable, checkpoint_id: latest.id } },
    [["messages", "later"]],
    "a task",
  );
  expect((await saver.getTuple(config))?.pendingWrites).toEqual([["a task", "messages", "later"]]);
  const [claimed] = await threads.claim({ threadId: "chat", owner: "a person", leaseMs: 30_000 });
  expect(claimed).toBeDefined();
  if (!claimed) return;
  await threads.renew("chat", claimed.token, 30_000);
  await threads.release("chat", claimed.token);
}

it("threads exported under load are imported elsewhere as they were", {
  timeout: 180_000,
}, async () => {
  const from = await createDatabase();
  const to = await createDatabase();
  cleanups.push(from.drop, to.drop);
  const source = await startTestServer(from.url);
  const target = await startTestServer(to.url);
  cleanups.push(
    () => source.drain(),
    () => target.drain(),
  );
  const folder = await createFolder();
  const load = new SaverLoad([openSaver(source.url), openSaver(source.url)]);
  await load.pass(150);
  const [exported, imported] = await documented("checkpointd threads export");
  const before = load.snapshot();
  for (const thread of [...before.keys()].slice(6)) before.delete(thread);
  for (const thread of before.keys()) {
    for (const command of [exported, imported]) {
      const [, ...args] = (command as string)
        .replaceAll("chat-42", thread)
        .replace("http://127.0.0.1:8080", source.url)
        .replace("http://127.0.0.1:8081", target.url)
        .split(" ");
      const { code, stderr } = await runCommand(args, {}, folder);
      expect(code, stderr).toBe(0);
    }
  }
  await load.pass(20);
  await load.stop();
  await load.check(openSaver(target.url), before);

  // Row for row, but for what was stored later.
  const rowsOf = async (databaseUrl: string) => {
    const client = new pg.Client({ connectionString: databaseUrl });
    await client.connect();
    const threads = [...before.keys()];
    const ids = [...before.values()].flat().map(({ id }) => id);
    const rows = [
      await client.query(
        `select thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, type, checkpoint, metadata
         from checkpoints where checkpoint_id = any($1) order by checkpoint_id`,
        [ids],
      ),
      await client.query(
        `select thread_id, checkpoint_ns, checkpoint_id, task_id, idx, channel, type, blob, task_path
         from checkpoint_writes where checkpoint_id = any($1) order by checkpoint_id, task_id, idx`,
        [ids],
      ),
      await client.query(
        `select b.* from checkpoint_blobs b join checkpoints c using (thread_id, checkpoint_ns)
         where checkpoint_id = any($1) and checkpoint->'channel_versions'->>channel = version
         order by thread_id, checkpoint_id, channel`,
        [ids],
      ),
    ];
    await client.end();
    expect(threads.length).toBeGreaterThan(0);
    return rows.map((result) => result.rows);
  };
  const stored = await rowsOf(from.url);
  for (const rows of stored) expect(rows.length).toBeGreaterThan(5);
  expect(await rowsOf(to.url)).toEqual(stored);
});
