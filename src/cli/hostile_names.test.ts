/** Stored names that would move the operator's cursor, through every command that shows them. */
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { createClient } from "@connectrpc/connect";
import { createConnectTransport } from "@connectrpc/connect-node";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { CheckpointService } from "../../gen/checkpointd/v1/checkpoint_service_pb.js";
import { ConnectSaver } from "../client/saver.js";
import type { Server } from "../server/server.js";
import { hostileValues } from "../testing/hostile_values.js";
import { createDatabase, type TestDatabase } from "../testing/postgres.js";
import { runCommand } from "../testing/serve_process.js";
import { startTestServer } from "../testing/test_server.js";

/** All that is to be escaped, but for NUL and lone surrogates, which are not stored. */
const characters = [
  ...Array.from({ length: 0x1f }, (_, i) => String.fromCharCode(i + 1)),
  ...Array.from({ length: 0x21 }, (_, i) => String.fromCharCode(i + 0x7f)),
  ..."\u061c\u200e\u200f\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069",
].join("");
const evil = (name: string) =>
  `${name}\u001b[2J\u001b]0;x\u0007\u009b31m\nFAKE line\r\nFAKE\u2028FAKE${characters}`;
const harmless = /^[^\p{Cc}\p{Cs}\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]*$/u;

let database: TestDatabase;
let server: Server;
let folder: string;
const thread = evil("thread");
const ns = evil("ns");
const checkpointId = "1ef00000-0000-6000-8000-000000000002";

beforeAll(async () => {
  database = await createDatabase();
  server = await startTestServer(database.url);
  folder = await mkdtemp(path.join(tmpdir(), "checkpointd-names-"));
  const saver = ConnectSaver.fromUrl(server.url);
  for (const checkpoint_ns of ["", ns]) {
    let parent: string | undefined;
    for (const [step, id] of [checkpointId.replace(/2$/, "1"), checkpointId].entries()) {
      const name = evil("channel");
      const version = step + 1;
      const config = {
        configurable: {
          thread_id: thread,
          checkpoint_ns,
          ...(parent && { checkpoint_id: parent }),
        },
      };
      const checkpoint = {
        v: 4,
        id,
        ts: "2026-01-01T00:00:00.000Z",
        channel_values: { [name]: evil("value"), [`${name}2`]: { [evil("key")]: evil("field") } },
        channel_versions: { [name]: version, [`${name}2`]: version },
        versions_seen: { [evil("node")]: { [name]: version } },
      };
      const metadata = {
        source: evil("source") as "loop",
        step,
        parents: {},
        [evil("m")]: evil("m"),
      };
      const stored = await saver.put(config, checkpoint, metadata, checkpoint.channel_versions);
      await saver.putWrites(stored, [[evil("channel"), evil("written")]], evil("task"));
      const asked = [{ value: evil("question"), id: evil("id") }];
      await saver.putWrites(
        stored,
        [["__interrupt__", asked]],
        evil("asking"),
        `~__pregel_pull, ${evil("node")}`,
      );
      parent = id;
    }
  }
  const claim = { owner: evil("owner"), threadId: thread, leaseMs: 600_000 };
  const status = ["completed", "pending", "interrupted", "failed"] as const;
  expect(await saver.threads.claim({ ...claim, status: [...status] })).toHaveLength(1);
  await saver.end();
}, 60_000);
afterAll(async () => {
  await server?.drain();
  await database?.drop();
  await rm(folder, { recursive: true, force: true });
});

const run = (...args: string[]) => runCommand(args, { CHECKPOINTD_URL: server.url }, folder);

/** What a command printed, of which no line does harm or is one that a name made. */
async function printed(args: string[], code: number): Promise<string> {
  const end = await run(...args);
  expect(end.code, end.stderr).toBe(code);
  for (const line of [...end.stdout.split("\n"), ...end.stderr.split("\n")]) {
    expect(line).toMatch(harmless);
    // Further lines of an error are set in.
    expect(line).not.toMatch(/^FAKE/);
  }
  return end.stdout;
}

it("values of every hostile kind are shown in bounded lines, and as JSON", async () => {
  const saver = createClient(
    CheckpointService,
    createConnectTransport({ baseUrl: server.url, httpVersion: "1.1" }),
  );
  const names = hostileValues.map((_, i) => `c${i}`);
  for (const id of ["1", "2"]) {
    const put = {
      threadId: "values",
      checkpointId: id,
      parentCheckpointId: id === "2" ? "1" : "",
      checkpointJson: JSON.stringify({
        v: 4,
        channel_versions: Object.fromEntries(names.map((name) => [name, id])),
        channel_values: {
          inlined: [],
          deep: JSON.parse(`${"[".repeat(1_900)}${"]".repeat(1_900)}`),
        },
      }),
      blobs: hostileValues.map((value, i) => ({ channel: `c${i}`, version: id, value })),
    };
    await saver.put(id === "2" ? { ...put, blobs: put.blobs.slice(0, -3) } : put);
  }
  for (const args of [["show"], ["history"], ["diff"], ["diff", "--checkpoint", "1"]]) {
    const [command = "", ...flags] = args;
    const lines = (await printed(["threads", command, "values", ...flags], 0)).split("\n");
    for (const line of lines) expect(line.length).toBeLessThan(1_000);
    expect(lines.length).toBeLessThan(500);
  }
  for (const command of ["show", "history", "diff"]) {
    const json = await printed(["threads", command, "values", "--json"], 0);
    for (const line of json.trim().split("\n")) if (line !== "") JSON.parse(line);
  }
}, 120_000);

describe("a name with all that a terminal obeys", () => {
  it.each([
    [["ls"]],
    [["ls", "--counts", "--by-id"]],
    [["show", thread]],
    [["show", thread, "--ns", ns]],
    [["show", thread, "--checkpoint", checkpointId]],
    [["diff", thread]],
    [["diff", thread, thread, "--to", checkpointId.replace(/2$/, "1")]],
    [["history", thread]],
    [["history", thread, "--ns", ns, "--limit", "1"]],
    [["prune", "--keep-last", "1", "--dry-run"]],
    [["cp", thread, evil("copied")]],
    [["rm", evil("copied"), "--yes"]],
    [["export", thread, "--out", "file.jsonl"]],
    [["import", "file.jsonl", "--as", evil("imported")]],
    [["prune", evil("imported"), "--keep-last", "1", "--yes"]],
    [["rm", evil("imported"), "--yes"]],
  ])("is shown in escapes: threads %j", async (args) => {
    const stdout = await printed(["threads", ...args], 0);
    if (/^(ls|show|history)$/.test(args[0] ?? "")) expect(stdout).toContain("\\u001b[2J");
    if (args[0] === "ls") expect(stdout).toContain("owner\\u001b[2J");
    expect(stdout).not.toMatch(/^\s*FAKE/m);
  });

  it.each([
    [["ls", "--json"], "thread"],
    [["show", thread, "--json"], "value"],
    [["history", thread, "--json"], "node"],
    [["export", thread], "thread"],
  ])("is exactly itself in JSON: threads %j", async (args, name) => {
    const stdout = await printed(["threads", ...args], 0);
    const strings = new Set<string>();
    for (const line of stdout.trim().split("\n")) {
      JSON.parse(line, (key, value) => {
        strings.add(key);
        if (typeof value === "string") strings.add(value);
        return value;
      });
    }
    expect(strings).toContain(evil(name));
  });

  it("is exactly itself after an export and an import", async () => {
    await printed(["threads", "cp", thread, evil("again")], 0);
    await printed(["threads", "export", evil("again"), "--out", "again.jsonl"], 0);
    expect(await readFile(path.join(folder, "again.jsonl"), "utf8")).toMatch(
      /^[^\p{Cc}\p{Cs}]*(\n[^\p{Cc}\p{Cs}]*)*$/u,
    );
    await printed(["threads", "rm", evil("again"), "--yes"], 0);
    await printed(["threads", "import", "again.jsonl"], 0);
    const ids = (await printed(["threads", "ls", "--json"], 0)).trim().split("\n");
    expect(ids.map((line) => JSON.parse(line).threadId)).toContain(evil("again"));
    await printed(["threads", "rm", evil("again"), "--yes"], 0);
  });

  it.each([
    [1, ["threads", "show", evil("none")]],
    [1, ["threads", "show", thread, "--checkpoint", evil("none")]],
    [1, ["threads", "history", thread, "--ns", evil("none")]],
    [1, ["threads", "export", evil("none")]],
    [1, ["threads", "cp", evil("none"), "x"]],
    [1, ["threads", "cp", thread, thread]],
    [1, ["threads", "rm", evil("none"), "--yes"]],
    [1, ["threads", "import", evil("none")]],
    [1, ["threads", "import", "hostile.jsonl"]],
    [1, ["threads", "export", thread, "--out", `none/${evil("file")}`]],
    [2, ["threads", "rm", thread]],
    [2, ["threads", evil("none")]],
    [2, ["threads", `--${evil("none")}`]],
    [2, ["threads", "ls", `--${evil("none")}`]],
    [2, ["threads", "ls", evil("none")]],
    [2, ["threads", "ls", "--status", evil("none")]],
    [2, ["threads", "ls", "--limit", evil("none")]],
    [2, ["threads", "ls", "--url", evil("http://x")]],
    [2, [evil("none")]],
    [2, ["serve", "--schema", evil("none")]],
    [2, ["serve", "--log-level", evil("none")]],
    [1, ["serve", "--data-dir", `hostile.jsonl/${evil("none")}`]],
    [2, ["migrate", "--schema", evil("none"), "--database-url", "postgres://127.0.0.1:1/x"]],
    [1, ["migrate", "--database-url", `postgres://${encodeURIComponent(evil("u"))}@127.0.0.1:1/x`]],
  ])("is shown in escapes by errors: exit code %j of %j", async (code, args) => {
    const line = { checkpointd: "thread", version: 1, threadId: evil("new") };
    await writeFile(
      path.join(folder, "hostile.jsonl"),
      `${JSON.stringify(line)}\n${JSON.stringify({ [evil("field")]: evil("value") })}\n`,
    );
    await printed(args, code);
  });
});
