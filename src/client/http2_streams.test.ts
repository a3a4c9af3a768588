/** What a saver leaves of the connections and streams of HTTP/2 that it opens: nothing. */
import { spawn } from "node:child_process";
import http2 from "node:http2";
import type { AddressInfo } from "node:net";
import { setTimeout as delay } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { create } from "@bufbuild/protobuf";
import { Code, ConnectError } from "@connectrpc/connect";
import type { SerializerProtocol } from "@langchain/langgraph-checkpoint";
import { afterEach, describe, expect, it, onTestFinished } from "vitest";
import { streams } from "../protocol/operations.js";
import { startEchoServer } from "../testing/echo_server.js";
import { type OpenedHttp2, watchHttp2 } from "../testing/http2_streams.js";
import { ConnectSaver, type ConnectSaverUrlOptions } from "./saver.js";

let opened: OpenedHttp2;
afterEach(() => opened?.stop());

const ways: [string, ConnectSaverUrlOptions][] = [
  ["connect", { session: false }],
  ["JSON", { json: true }],
  ["gzip", { compression: true }],
  ["grpc", { protocol: "grpc" }],
  ["grpc-web", { protocol: "grpc-web" }],
];
const retry = { attempts: 1 };
/** Within which a whole answer is there, unread, and its stream is closed by both sides. */
const arrivalMs = 5;

const value = { type: "json", data: Buffer.from('"x"') };
const messages: Record<keyof typeof streams, object> = {
  list: {
    tuple: {
      key: { threadId: "t", checkpointId: "1" },
      checkpointJson: '{"v":4,"id":"1"}',
      metadataJson: "{}",
    },
  },
  listThreads: { thread: { threadId: "t" } },
  getChannelHistory: { writes: [{ taskId: "t", channel: "c", value }] },
  pruneThreads: { threadId: "t" },
};

type Read = (saver: ConnectSaver, limit: number, signal?: AbortSignal) => AsyncIterable<unknown>;
const config = { configurable: { thread_id: "t" } };
const reads: Record<keyof typeof streams, Read> = {
  list: (saver, limit, signal) =>
    saver.list({ ...config, ...(signal ? { signal } : {}) }, { limit }),
  listThreads: (saver, limit, signal) => saver.threads.list({ limit, signal }),
  pruneThreads: (saver, _, signal) => saver.threads.prune({ keepLast: 1, signal }),
  async *getChannelHistory(saver, _, signal) {
    yield await saver.getDeltaChannelHistory({
      config: { ...config, ...(signal ? { signal } : {}) },
      channels: ["c"],
    });
  },
};

async function start(options: ConnectSaverUrlOptions, after: () => void = () => {}) {
  const server = await startEchoServer((name) => {
    if (!(name in streams)) throw new ConnectError("as asked", Code.InvalidArgument);
    const stream = name as keyof typeof streams;
    const message = create(streams[stream].output, messages[stream]);
    return (function* () {
      for (let i = 0; i < 3; i++) yield message;
      after();
    })();
  });
  opened = watchHttp2();
  const saver = ConnectSaver.fromUrl(server.url, { ...options, retry });
  onTestFinished(async () => {
    await saver.end();
    await server.stop();
  });
  return saver;
}

describe.each(ways)("over %s, no stream is left", (_, options) => {
  const rounds = 10;

  it.each(Object.entries(reads))("of %s, read to its end", async (name, read) => {
    const saver = await start(options);
    for (let i = 0; i < rounds; i++) {
      let count = 0;
      // With a limit the reader knows the last message when it sees it.
      for await (const _ of read(saver, i % 2 ? 3 : 10)) {
        count++;
        await delay(arrivalMs);
      }
      expect(count).toBe(name === "getChannelHistory" ? 1 : 3);
    }
    expect(opened.streams.length).toBe(rounds);
    await expect.poll(opened.kept).toBe(0);
  });

  it.each(Object.entries(reads))("of %s, left early", async (_, read) => {
    const saver = await start(options);
    for (let i = 0; i < rounds; i++) {
      for await (const _ of read(saver, 10)) {
        // In every other round on the way.
        if (i % 2) await delay(arrivalMs);
        break;
      }
    }
    expect(opened.streams.length).toBe(rounds);
    await expect.poll(opened.kept).toBe(0);
  });

  it.each(Object.entries(reads))("of %s, failed by the server", async (_, read) => {
    const saver = await start(options, () => {
      throw new ConnectError("as asked", Code.InvalidArgument);
    });
    for (let i = 0; i < rounds; i++) {
      const all = async () => {
        for await (const _ of read(saver, 10)) await delay(arrivalMs);
      };
      await expect(all()).rejects.toMatchObject({ rawMessage: "as asked" });
    }
    await expect.poll(opened.kept).toBe(0);
  });

  it.each(Object.entries(reads))("of %s, aborted", async (_, read) => {
    const saver = await start(options);
    for (let i = 0; i < rounds; i++) {
      const controller = new AbortController();
      const all = async () => {
        for await (const _ of read(saver, 10, controller.signal))
          controller.abort(new Error("enough"));
      };
      setTimeout(() => controller.abort(new Error("enough")), i % 4);
      await all().catch((error) => expect(error.message).toBe("enough"));
    }
    await expect.poll(opened.kept).toBe(0);
  });

  it("of a refused call", async () => {
    const saver = await start(options);
    for (let i = 0; i < rounds; i++) {
      await expect(saver.getTuple(config)).rejects.toThrow("as asked");
    }
    expect(opened.streams.length).toBe(rounds);
    await expect.poll(opened.kept).toBe(0);
  });

  it("of a history that its reader cannot read", async () => {
    const serde: SerializerProtocol = {
      dumpsTyped: async () => ["json", new Uint8Array()],
      loadsTyped: async () => {
        await delay(arrivalMs);
        throw new Error("not mine");
      },
    };
    const saver = await start({ ...options, serde });
    for (let i = 0; i < rounds; i++) {
      const history = saver.getDeltaChannelHistory({ config, channels: ["c"] });
      await expect(history).rejects.toThrow("not mine");
    }
    await expect.poll(opened.kept).toBe(0);
  });
});

/** A server that answers each call with nothing, and asks the client to go when it has the answer. */
async function startRetiringServer(method: string): Promise<string> {
  const server = http2.createServer();
  server.on("session", (session) => session.on("error", () => {}));
  server.on("stream", (stream, headers) => {
    stream.on("error", () => {});
    stream.resume();
    const path = String(headers[":path"]);
    if (path.endsWith("OpenSession")) {
      stream.respond({ ":status": 404 }, { endStream: true });
    } else if (method === "getTuple") {
      stream.respond({ ":status": 200, "content-type": "application/proto" });
      stream.end();
    } else {
      stream.respond({ ":status": 200, "content-type": "application/connect+proto" });
      stream.end(Buffer.from([2, 0, 0, 0, 2, ...Buffer.from("{}")]));
    }
    const { session } = stream;
    stream.on("close", () => {
      // When nothing is open on it, and the client knows.
      setTimeout(() => session?.destroyed || session?.goaway(0), 5);
    });
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  onTestFinished(() => void server.close());
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
}

async function runAgent(...args: string[]) {
  const path = (file: string) => fileURLToPath(new URL(`../testing/${file}`, import.meta.url));
  const child = spawn(process.execPath, [path("run_ts.mjs"), path("goaway_agent.ts"), ...args], {
    stdio: ["ignore", "pipe", "pipe"],
  });
  onTestFinished(() => void child.kill());
  let out = "";
  for (const stream of [child.stdout, child.stderr]) {
    stream.setEncoding("utf8").on("data", (chunk: string) => {
      out += chunk;
    });
  }
  const code = await new Promise((resolve) => child.on("exit", resolve));
  return { out, code };
}

describe.each(["unary", "sessions"])("a GOAWAY on an idle connection, %s", (session) => {
  it.each(["getTuple", "threads.list"])("does not end an agent that calls %s", async (method) => {
    const url = await startRetiringServer(method);
    expect(await runAgent(url, session, method, "20")).toEqual({ out: "20 calls\n", code: 0 });
  });
});
