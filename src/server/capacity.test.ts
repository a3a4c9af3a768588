import { setMaxListeners } from "node:events";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { createClient } from "@connectrpc/connect";
import { createConnectTransport } from "@connectrpc/connect-node";
import pg from "pg";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { CheckpointService } from "../../gen/checkpointd/v1/checkpoint_service_pb.js";
import { ConnectSaver } from "../index.js";
import { type Embedded, startEmbedded } from "../store/embedded.js";
import { residentBytes, type ServeProcess, startServe } from "../testing/serve_process.js";

/** A thread "long" of 10,000 checkpoints with 5 KB each, and "heavy" of 12 with 50 MB each. */
const fill = `
insert into checkpoints (thread_id, checkpoint_id, checkpoint, metadata)
select 'long', lpad(i::text, 12, '0'), jsonb_build_object('v', 4, 'channel_versions',
  jsonb_build_object('a', i, 'b', i)), '{"source": "loop"}' from generate_series(1, 10000) as i;
insert into checkpoint_blobs (thread_id, channel, version, type, blob)
select 'long', channel, i::text, 'bytes', convert_to(repeat(md5(i || channel), 80), 'UTF8')
from generate_series(1, 10000) as i, unnest(array['a', 'b']) as channel;
insert into checkpoints (thread_id, checkpoint_id, checkpoint, metadata)
select 'heavy', i::text, jsonb_build_object('v', 4, 'channel_versions', jsonb_build_object('a', i)),
  '{}' from generate_series(10, 21) as i;
insert into checkpoint_blobs (thread_id, channel, version, type, blob)
select 'heavy', 'a', i::text, 'bytes', convert_to(repeat(md5(i::text), 1600 * 1024), 'UTF8')
from generate_series(10, 21) as i`;

const megabyte = 1024 * 1024;

describe("a server of its own on a Postgres with max_connections=20", () => {
  let folder: string;
  let postgres: Embedded;
  let server: ServeProcess;

  beforeAll(async () => {
    folder = await mkdtemp(path.join(tmpdir(), "checkpointd-capacity-"));
    postgres = await startEmbedded({
      dataDir: folder,
      onProgress: () => {},
      settings: { max_connections: "20", fsync: "off" },
    });
    server = await startServe(["--database-url", postgres.databaseUrl, "--pool-size", "8"]);
    await server.printed("is ready");
    const client = new pg.Client({ connectionString: postgres.databaseUrl });
    await client.connect();
    await client.query(fill);
    await client.query("analyze");
    await client.end();
  });
  afterAll(async () => {
    await server?.stop();
    await postgres?.stop();
    await rm(folder, { recursive: true, force: true });
  });

  const connect = () =>
    createClient(
      CheckpointService,
      createConnectTransport({
        baseUrl: server.url,
        httpVersion: "2",
        acceptCompression: [],
        readMaxBytes: 256 * megabyte,
      }),
    );

  it("streams 10,000 checkpoints to a slow reader in constant memory", async () => {
    const client = connect();
    // A server that has streamed once: what V8 grows to at first is not the history's.
    for await (const _ of client.list({ threadId: "long", checkpointNs: "", limit: 5000 }));
    await sleep(500);
    const pid = server.child.pid as number;
    const idle = residentBytes(pid);
    let highest = 0;
    let count = 0;
    let previous = "~";
    for await (const { tuple } of client.list({ threadId: "long", checkpointNs: "" })) {
      const id = tuple?.key?.checkpointId as string;
      expect(id < previous).toBe(true);
      previous = id;
      expect(tuple?.blobs).toHaveLength(2);
      if (++count % 100 === 0) {
        await sleep(20);
        highest = Math.max(highest, residentBytes(pid));
      }
    }
    expect(count).toBe(10_000);
    expect((highest - idle) / megabyte).toBeLessThan(50);
  });

  it("streams checkpoints of 50 MB one at a time", { timeout: 120_000 }, async () => {
    const pid = server.child.pid as number;
    let count = 0;
    let lowestOfLater = Number.POSITIVE_INFINITY;
    let highestOfFirst = 0;
    for await (const { tuple } of connect().list({ threadId: "heavy" })) {
      expect(tuple?.blobs[0]?.value?.data).toHaveLength(1600 * 1024 * 32);
      count++;
      if (count <= 6) highestOfFirst = Math.max(highestOfFirst, residentBytes(pid));
      else lowestOfLater = Math.min(lowestOfLater, residentBytes(pid));
    }
    expect(count).toBe(12);
    // The second half needs no more than the first did: nothing piles up.
    expect(lowestOfLater).toBeLessThan(highestOfFirst * 1.25);
  });

  it("serves a Put while 200 readers have stalled, and costs them little", async () => {
    const stop = new AbortController();
    setMaxListeners(200, stop.signal);
    const pid = server.child.pid as number;
    const idle = residentBytes(pid);
    const client = connect();
    const readers = await Promise.all(
      Array.from({ length: 200 }, async () => {
        const stream = client
          .list({ threadId: "long", checkpointNs: "" }, { signal: stop.signal })
          [Symbol.asyncIterator]();
        await stream.next();
        return stream;
      }),
    );
    expect(readers).toHaveLength(200);
    const saver = ConnectSaver.fromUrl(server.url);
    for (let i = 0; i < 20; i++) {
      await saver.put(
        { configurable: { thread_id: `while-stalled-${i}` } },
        checkpoint(`0${i}`),
        { source: "loop", step: i, parents: {} },
        { messages: 1 },
      );
    }
    await saver.end();
    expect((residentBytes(pid) - idle) / megabyte).toBeLessThan(400);
    stop.abort();
    await Promise.allSettled(readers.map((reader) => reader.next()));
  });

  it("takes the puts of 500 agents that are connected at once", async () => {
    const agents = Array.from({ length: 500 }, () => ConnectSaver.fromUrl(server.url));
    const puts = await Promise.allSettled(
      agents.flatMap((agent, i) =>
        [0, 1].map((step) =>
          agent.put(
            { configurable: { thread_id: `agent-${i}` } },
            checkpoint(`000${step}`),
            { source: "loop", step, parents: {} },
            { messages: step + 1 },
          ),
        ),
      ),
    );
    expect(puts.filter((put) => put.status === "rejected")).toEqual([]);
    const client = new pg.Client({ connectionString: postgres.databaseUrl });
    await client.connect();
    const held = await client.query(
      "select count(*)::int as n from pg_stat_activity where application_name = 'checkpointd'",
    );
    const stored = await client.query(
      "select count(*)::int as n from checkpoints where thread_id like 'agent-%'",
    );
    await client.end();
    expect(held.rows[0].n).toBeLessThanOrEqual(8);
    expect(stored.rows[0].n).toBe(1000);
    await Promise.all(agents.map((agent) => agent.end()));
  });
});

function checkpoint(id: string) {
  return {
    v: 4,
    id,
    ts: "2026-11-21T00:00:00.000Z",
    channel_values: { messages: ["hello"] },
    channel_versions: { messages: Number(id) + 1 },
    versions_seen: {},
  };
}
