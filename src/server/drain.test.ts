/** A server that is to stop waits for who still reads, and for nobody who is done or was frozen. */
import { once } from "node:events";
import * as http2 from "node:http2";
import * as net from "node:net";
import { setTimeout as delay } from "node:timers/promises";
import { Code, ConnectError, createClient, type Transport } from "@connectrpc/connect";
import { createGrpcTransport } from "@connectrpc/connect-node";
import { emptyCheckpoint } from "@langchain/langgraph-checkpoint";
import { afterEach, describe, expect, it, onTestFinished } from "vitest";
import { CheckpointService } from "../../gen/checkpointd/v1/checkpoint_service_pb.js";
import { ThreadService } from "../../gen/checkpointd/v1/thread_service_pb.js";
import { ConnectSaver } from "../client/saver.js";
import { createLog } from "../log.js";
import { createTransport, protocols } from "../testing/edge.js";
import { createDatabase } from "../testing/postgres.js";
import { startRelay } from "../testing/relay.js";
import { startTestServer } from "../testing/test_server.js";
import { type Listener, type ListenerOptions, startListener } from "./http.js";

const log = createLog("silent");
const started: Listener[] = [];
afterEach(async () => {
  await Promise.all(started.splice(0).map((listener) => listener.drain(0)));
});

async function start(handler: ListenerOptions["handler"]) {
  const listener = await startListener({ host: "127.0.0.1", port: 0, handler, log });
  started.push(listener);
  return { listener, baseUrl: `http://127.0.0.1:${listener.port}` };
}

/** How long a drain takes that would wait a minute. */
async function drainMs({ drain }: Pick<Listener, "drain">): Promise<number> {
  const began = performance.now();
  await drain(60_000);
  return performance.now() - began;
}

/** What a drain must not take: far more than the second it may, and far less than its minute. */
const tooLongMs = 15_000;

describe("a drain does not wait for a client", () => {
  it("that keeps a connection for a stream which it does not read", async () => {
    const { listener, baseUrl } = await start((_, response) => void response.end("answer"));
    const client = http2.connect(baseUrl);
    onTestFinished(() => client.destroy());
    client.on("error", () => {});
    const stream = client.request({ ":path": "/" });
    stream.on("error", () => {});
    await once(stream, "response");
    await expect.poll(() => stream.closed).toBe(true);
    expect(stream.destroyed).toBe(false);
    expect(await drainMs(listener)).toBeLessThan(tooLongMs);
  });

  it.each(["reads", "is frozen"])("that %s and never closes its side", async (how) => {
    const { listener } = await start((_, response) => void response.end());
    const socket = connectRaw(listener);
    await once(socket, "readable");
    if (how === "reads") socket.resume();
    expect(await drainMs(listener)).toBeLessThan(tooLongMs);
  });

  it.each(["before", "during"])(
    "that has its answer %s it and never ends its request",
    async (when) => {
      let asked = 0;
      let answer = () => {};
      const { listener } = await start((request, response) => {
        asked++;
        // Node itself ends a stream of which nothing was read.
        request.resume();
        answer = () => void response.end("the answer");
        if (when === "before") answer();
      });
      const socket = connectRaw(listener);
      // The headers of a GET, without the end of the request.
      const headers = Buffer.from([0x82, 0x84, 0x86, 0x41, 9, ...Buffer.from("localhost")]);
      socket.write(Buffer.from([0, 0, headers.length, 1, 4, 0, 0, 0, 1, ...headers]));
      let bytes = "";
      socket.setEncoding("latin1").on("data", (part) => {
        bytes += part;
      });
      await expect.poll(() => asked).toBe(1);
      const drained = drainMs(listener);
      answer();
      // Without a drain it would have five seconds.
      expect(await drained).toBeLessThan(4_500);
      expect(bytes).toContain("the answer");
    },
  );
});

/** A connection of HTTP/2 by hand, of which nothing but what a test sends is to be expected. */
function connectRaw({ port }: Listener): net.Socket {
  const socket = net.connect({ port, host: "127.0.0.1", allowHalfOpen: true });
  onTestFinished(() => void socket.destroy());
  socket.on("error", () => {});
  socket.write("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
  socket.write(Buffer.from([0, 0, 0, 4, 0, 0, 0, 0, 0]));
  return socket;
}

describe("a drain lets a client read to the end", () => {
  it.each([
    ["small windows", 65_535],
    ["windows for all of it, so that it says nothing meanwhile", 16 * 1024 * 1024],
  ])("that is slow and has %s", async (_, window) => {
    const total = 2 * 1024 * 1024;
    const { listener } = await start((_, response) => void response.end(Buffer.alloc(total)));
    const relay = await startRelay(() => listener.port, "lets them through", {
      answeredBytesPerMs: 1_000,
    });
    onTestFinished(() => relay.close());
    const client = http2.connect(relay.url, { settings: { initialWindowSize: window } });
    await once(client, "connect");
    client.setLocalWindowSize(window);
    const stream = client.request({ ":path": "/" });
    await once(stream, "response");
    const drained = listener.drain(60_000);
    let length = 0;
    for await (const part of stream) length += part.length;
    expect(length).toBe(total);
    await drained;
  });

  it("while fifty others go when they are told, whatever they leave behind", async () => {
    const database = await createDatabase();
    const server = await startTestServer(database.url, { drainTimeoutMs: 60_000 });
    onTestFinished(async () => {
      await server.drain();
      await database.drop();
    });
    const config = { configurable: { thread_id: "t" } };
    const metadata = { source: "loop" as const, step: 0, parents: {} };
    const writer = ConnectSaver.fromUrl(server.url);
    for (let i = 0; i < 60; i++) {
      const channel_values = { a: "x".repeat(20_000) };
      const checkpoint = { ...emptyCheckpoint(), id: String(i).padStart(4, "0"), channel_values };
      await writer.put(config, checkpoint, metadata, { a: i + 1 });
    }
    await writer.end();

    // Of a client of its own: a saver would go on elsewhere.
    const reader = createClient(CheckpointService, createGrpcTransport({ baseUrl: server.url }));
    const read: string[] = [];
    const reading = (async () => {
      for await (const { tuple } of reader.list({ threadId: "t" })) {
        read.push(tuple?.key?.checkpointId ?? "");
        await delay(20);
      }
    })();
    await expect.poll(() => read.length).toBeGreaterThan(0);

    let isOver = false;
    let calls = 0;
    // Leaves each stream when all of it has come, of which connect-node keeps it.
    async function useTransport(transport: Transport): Promise<void> {
      const threads = createClient(ThreadService, transport);
      while (!isOver) {
        for await (const _ of threads.listThreads({})) {
          await delay(5);
          break;
        }
        calls++;
      }
    }
    async function useSaver(session: boolean): Promise<void> {
      const saver = ConnectSaver.fromUrl(server.url, { session, retry: { attempts: 1 } });
      onTestFinished(() => saver.end());
      while (!isOver) {
        for await (const _ of saver.list(config, { limit: 2 }));
        for await (const _ of saver.threads.list({ limit: 1 }));
        calls++;
      }
    }
    const clients = Array.from({ length: 50 }, (_, i) =>
      i % 2
        ? useSaver(i % 4 === 1)
        : useTransport(createTransport(protocols[(i / 2) % protocols.length]!, server.url)),
    );
    // They end when they are refused.
    const left = Promise.allSettled(clients);
    await expect.poll(() => calls, { timeout: 60_000 }).toBeGreaterThan(200);

    const drain = server.drain();
    const stopped = (await left).map((client) => client as PromiseRejectedResult);
    for (const { status, reason } of stopped) {
      expect(status).toBe("rejected");
      expect(reason).toBeInstanceOf(ConnectError);
      expect([Code.Unavailable, Code.Canceled, Code.Internal, Code.Aborted]).toContain(reason.code);
    }
    await reading;
    const began = performance.now();
    await drain;
    isOver = true;
    // From when the last one was read to its end.
    expect(performance.now() - began).toBeLessThan(tooLongMs);
    expect(read).toEqual(Array.from({ length: 60 }, (_, i) => String(59 - i).padStart(4, "0")));
  });
});
