/**
 * Writes come back in the order in which LangGraph applies them: by task path, task id and idx, by
 * code point, wherever they are read (LangGraph's compareWritesSortKeys, since checkpoint 1.2).
 */
import { type CheckpointPendingWrite, emptyCheckpoint } from "@langchain/langgraph-checkpoint";
import { afterAll, beforeAll, expect, it } from "vitest";
import type { Server } from "../server/server.js";
import { createDatabase, type TestDatabase } from "../testing/postgres.js";
import { createRandom } from "../testing/random.js";
import { startTestServer } from "../testing/test_server.js";
import { ConnectSaver } from "./saver.js";

let database: TestDatabase;
let server: Server;
let savers: ConnectSaver[];
beforeAll(async () => {
  database = await createDatabase();
  server = await startTestServer(database.url);
  savers = [{}, { session: false }].map((options) => ConnectSaver.fromUrl(server.url, options));
});
afterAll(async () => {
  for (const saver of savers ?? []) await saver.end();
  await server?.drain();
  await database?.drop();
});

const metadata = { source: "loop" as const, step: 1, parents: {} };
// In order: no path first; one in the BMP before one beyond it, which UTF-16 has the other way.
const paths = ["", "~__pregel_pull, a", "~__pregel_pull, b", "~__pregel_push, 0", "\uffee", "😀"];
const tasks = ["A", "a", "é", "\uffee", "😀"];

it("in a tuple, in a list and in a channel's history", async () => {
  const random = createRandom(7);
  const [saver] = savers as [ConnectSaver];
  const config = { configurable: { thread_id: "paths" } };
  const parent = emptyCheckpoint();
  const at = await saver.put(config, parent, metadata, {});
  const expected: CheckpointPendingWrite[] = [];
  const calls: { path: string; task: string }[] = [];
  for (const path of paths) {
    for (const task of tasks) {
      const id = `${task} of ${path}`;
      expected.push([id, "ch", `${id} 0`], [id, "ch", `${id} 1`]);
      calls.push({ path, task: id });
    }
  }
  calls.sort(() => random(3) - 1);
  for (const { path, task } of calls) {
    const writes: [string, string][] = [
      ["ch", `${task} 0`],
      ["ch", `${task} 1`],
    ];
    await saver.putWrites(at, writes, task, path);
  }
  const child = { ...emptyCheckpoint(), id: `${parent.id}~` };
  const childAt = await saver.put(at, child, metadata, {});
  for (const saver of savers) {
    expect((await saver.getTuple(at))?.pendingWrites).toEqual(expected);
    const listed = [];
    for await (const { pendingWrites } of saver.list(config)) listed.push(pendingWrites);
    expect(listed).toEqual([[], expected]);
    const { ch } = await saver.getDeltaChannelHistory({ config: childAt, channels: ["ch"] });
    expect(ch?.writes).toEqual(expected);
  }
});

it("refuses a path that cannot be stored, by its name", async () => {
  const config = { configurable: { thread_id: "t", checkpoint_id: "1" } };
  const putWrites = (path: unknown) =>
    (savers[0] as ConnectSaver).putWrites(config, [["c", 1]], "task", path as string);
  await expect(putWrites("a\0b")).rejects.toThrow("taskPath must not contain a NUL character");
  await expect(putWrites({})).rejects.toThrow("taskPath must be a string, not an object");
});
