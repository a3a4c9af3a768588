import { createClient, ConnectError } from "@connectrpc/connect";
import { createConnectTransport, createGrpcTransport, Http2SessionManager } from "@connectrpc/connect-node";
import { test } from "vitest";
import { startEdge, secret } from "../testing/edge.js";
import { openTransport } from "../client/transport.js";
import { CheckpointService } from "../../gen/checkpointd/v1/checkpoint_service_pb.js";
test("p", async () => {
  const edge = await startEdge();
  for (const size of [5, 20, 60]) for (const [name, transport] of Object.entries({
    saver: openTransport(edge.server.url, {}).transport,
    saverGrpc: openTransport(edge.server.url, { protocol: "grpc" }).transport,
    mem: createConnectTransport({ baseUrl: edge.server.url, httpVersion: "2", sessionManager: new Http2SessionManager(edge.server.url, {}, { maxSessionMemory: 1000 } as never) }),
    memGrpc: createGrpcTransport({ baseUrl: edge.server.url, sessionManager: new Http2SessionManager(edge.server.url, {}, { maxSessionMemory: 1000 } as never) }),
  })) {
    const client = createClient(CheckpointService, transport);
    await client.getTuple({ threadId: "x" });
    let done = false;
    const put = client.put({ threadId: "big", checkpointId: "1", checkpointJson: "{}", blobs: [{ channel: "c", version: "1", value: { type: "bytes", data: new Uint8Array(size * 1024 * 1024) } }] }).then(() => "ok", (e) => String(e)).finally(() => { done = true; });
    const seen: Record<string, number> = {};
    while (!done) {
      await Promise.all(Array.from({ length: 8 }, () => client.getTuple({ threadId: `${secret}-seed` }).then(() => "ok", (e) => String(e)).then((r) => { seen[r] = (seen[r] ?? 0) + 1; })));
    }
    console.log(size, name, await put, seen);
    // over the limit
    console.log(name, await client.put({ threadId: "big", checkpointId: "1", checkpointJson: "{}", blobs: [{ channel: "c", version: "1", value: { type: "bytes", data: new Uint8Array(65 * 1024 * 1024) } }] }).then(() => "ok", (e) => String(e)));
  }
  await edge.stop();
});
