import { emptyCheckpoint } from "@langchain/langgraph-checkpoint";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { createDatabase, type TestDatabase } from "../testing/postgres.js";
import { startRelay } from "../testing/relay.js";
import { startTestServer } from "../testing/test_server.js";
import { ConnectSaver } from "./saver.js";

let database: TestDatabase;
beforeAll(async () => {
  database = await createDatabase();
});
afterAll(() => database?.drop());

/** Stores a thread and reads it twice; returns what went over the wire in each direction. */
async function bytesOf(server: boolean, client: boolean, protocol: "connect" | "grpc") {
  const service = await startTestServer(database.url, { compression: server });
  const relay = await startRelay(() => Number(service.port));
  const saver = ConnectSaver.fromUrl(relay.url, { protocol, compression: client });
  try {
    const thread_id = `${server} ${client} ${protocol}`;
    const text = "What the weather is like. ".repeat(4_000);
    const checkpoint = {
      ...emptyCheckpoint(),
      channel_values: { text },
      channel_versions: { text: 1 },
    };
    const metadata = { source: "loop", step: 0, parents: {} } as const;
    const config = { configurable: { thread_id, checkpoint_ns: "" } };
    const stored = await saver.put(config, checkpoint, metadata, { text: 1 });
    await saver.putWrites(stored, [["text", text]], "task");
    const tuple = await saver.getTuple(config);
    expect(tuple?.checkpoint.channel_values).toEqual({ text });
    expect(tuple?.pendingWrites).toEqual([["task", "text", text]]);
    for await (const listed of saver.list(config)) expect(listed).toEqual(tuple);
    return relay.bytes();
  } finally {
    await saver.end();
    relay.close();
    await service.drain();
  }
}

describe.each(["connect", "grpc"] as const)("compression, over %s", (protocol) => {
  it("of requests is the client's choice, of answers the choice of both", async () => {
    const large = 200_000;
    const small = 20_000;
    const neither = await bytesOf(false, false, protocol);
    expect(Math.min(neither.in, neither.out)).toBeGreaterThan(large);
    const client = await bytesOf(false, true, protocol);
    expect(client.in).toBeLessThan(small);
    expect(client.out).toBeGreaterThan(large);
    const server = await bytesOf(true, false, protocol);
    expect(Math.min(server.in, server.out)).toBeGreaterThan(large);
    const both = await bytesOf(true, true, protocol);
    expect(Math.max(both.in, both.out)).toBeLessThan(small);
  });
});
