/** Everything that the service can be asked for, an agent can ask for: by a method of the saver. */
import { create, type DescMessage } from "@bufbuild/protobuf";
import { emptyCheckpoint } from "@langchain/langgraph-checkpoint";
import { afterAll, beforeAll, beforeEach, expect, it } from "vitest";
import { type CallName, operations, streams } from "../protocol/operations.js";
import { type EchoServer, startEchoServer } from "../testing/echo_server.js";
import { ConnectSaver } from "./saver.js";

let server: EchoServer;
let savers: { session: ConnectSaver; unary: ConnectSaver };
let asked: CallName[] = [];
beforeAll(async () => {
  const all: Record<CallName, { output: DescMessage }> = { ...operations, ...streams };
  server = await startEchoServer((name) => {
    asked.push(name);
    return name in streams ? [] : create(all[name].output);
  });
  savers = {
    session: ConnectSaver.fromUrl(server.url),
    unary: ConnectSaver.fromUrl(server.url, { session: false }),
  };
});
afterAll(async () => {
  await savers.session.end();
  await savers.unary.end();
  await server.stop();
});
beforeEach(() => {
  asked = [];
});

const config = { configurable: { thread_id: "t", checkpoint_id: "1" } };
const metadata = { source: "loop" as const, step: 1, parents: {} };
const put = (saver: ConnectSaver, value: string) =>
  saver.put(config, { ...emptyCheckpoint(), channel_values: { c: value } }, metadata, { c: 1 });

async function drain(messages: AsyncIterable<unknown>): Promise<void> {
  for await (const _ of messages);
}

/** A name that is missing here does not compile. */
const methods: Record<CallName, (saver: ConnectSaver) => Promise<unknown>> = {
  getTuple: (saver) => saver.getTuple(config),
  put: (saver) => put(saver, "short"),
  putExtending: (saver) => put(saver, "long".repeat(10_000)),
  putWrites: (saver) => saver.putWrites(config, [["c", 1]], "task"),
  deleteThread: (saver) => saver.deleteThread("t"),
  listPage: (saver) => drain(saver.list(config)),
  list: (saver) => drain(saver.list(config)),
  getThread: (saver) => saver.threads.get("t"),
  claimThreads: (saver) => saver.threads.claim({ owner: "o" }),
  renewClaim: (saver) => saver.threads.renew("t", "l"),
  releaseClaim: (saver) => saver.threads.release("t", "l"),
  copyThread: (saver) => saver.threads.copy("t", "u"),
  deleteRuns: (saver) => saver.threads.deleteRuns(["r"]),
  listThreads: (saver) => drain(saver.threads.list()),
  getChannelHistory: (saver) => saver.getDeltaChannelHistory({ config, channels: ["c"] }),
  pruneThreads: (saver) => drain(saver.threads.prune({ keepLast: 1 })),
};

it.each(Object.entries(methods))("%s", async (name, use) => {
  const isOnSession = name in operations;
  await use(isOnSession ? savers.session : savers.unary);
  expect(asked).toEqual([name]);
});
