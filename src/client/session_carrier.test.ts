/** ConnectSaver on sessions, and what breaks between it and the server. */
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { connect as connectHttp2, createServer } from "node:http2";
import {
  type AddressInfo,
  connect as connectTcp,
  createServer as createTcpServer,
  type LookupFunction,
} from "node:net";
import { setTimeout as sleep } from "node:timers/promises";
import { Code, ConnectError } from "@connectrpc/connect";
import type { CheckpointTuple } from "@langchain/langgraph-checkpoint";
import { afterAll, beforeAll, describe, expect, it, onTestFinished, vi } from "vitest";
import { ConnectSaver, errorDetail } from "../index.js";
import { sessionPath } from "../protocol/wire.js";
import { block, untilBlocked } from "../testing/blocking.js";
import { startEdge } from "../testing/edge.js";
import { startForeignSessions } from "../testing/foreign_sessions.js";
import { startRelay } from "../testing/relay.js";
import { startTestServer } from "../testing/test_server.js";
import type { ClientSession } from "./client_session.js";
import { createSessionCarrier } from "./session_carrier.js";

let edge: Awaited<ReturnType<typeof startEdge>>;
beforeAll(async () => {
  edge = await startEdge({ allowedHosts: ["checkpointd.test"] });
});
afterAll(() => edge?.stop());

it("moves to a new session when the old one is of age, and loses nothing", async () => {
  const short = await startTestServer(edge.database.url, { sessionAgeMs: 50 });
  onTestFinished(() => short.drain());
  const saver = ConnectSaver.fromUrl(short.url);
  for (let i = 0; i < 60; i++) {
    await Promise.all([write(saver, `age-${i}`), write(saver, `age-${i}b`), sleep(5)]);
  }
  await saver.end();
  expect(await edge.checkpoints("age-%")).toBe(120);
});

it("moves to a new connection when the old one is of age, also without sessions", async () => {
  const short = await startTestServer(edge.database.url, { sessionAgeMs: 50 });
  onTestFinished(() => short.drain());
  const plain = connectHttp2(short.url);
  await once(plain, "goaway");
  for (const options of [{ session: false }, { protocol: "grpc" as const }]) {
    const saver = ConnectSaver.fromUrl(short.url, options);
    for (let i = 0; i < 60; i++) {
      await Promise.all([write(saver, `old-${i}`), write(saver, `old-${i}b`), sleep(5)]);
    }
    await saver.end();
  }
  expect(await edge.checkpoints("old-%")).toBe(120);
});

it("hands over at a drain: what is under way finishes, what comes next goes elsewhere", async () => {
  const first = await startTestServer(edge.database.url, { drainTimeoutMs: 20_000 });
  const second = await startTestServer(edge.database.url);
  onTestFinished(() => second.drain());
  let target = first;
  const relay = await startRelay(() => Number(target.port));
  onTestFinished(() => relay.close());
  const saver = ConnectSaver.fromUrl(relay.url);
  await write(saver, "drain-0");
  const blocker = await block(edge.database.url, "lock table checkpoints in exclusive mode");
  const slow = write(saver, "drain-slow");
  await untilBlocked(edge.sql, 1);
  target = second;
  const drained = first.drain();
  const later = write(saver, "drain-later");
  await blocker.release();
  await Promise.all([slow, later, drained]);
  await saver.end();
  expect(await edge.checkpoints("drain-%")).toBe(3);
});

it("survives connections that are cut under load", async () => {
  const relay = await startRelay(() => Number(edge.server.port));
  onTestFinished(() => relay.close());
  const saver = ConnectSaver.fromUrl(relay.url);
  const cutting = setInterval(() => relay.cut(), 40);
  onTestFinished(() => clearInterval(cutting));
  for (let round = 0; round < 20; round++) {
    await Promise.all(Array.from({ length: 16 }, (_, i) => write(saver, `cut-${round}-${i}`)));
  }
  clearInterval(cutting);
  await saver.end();
  expect(await edge.checkpoints("cut-%")).toBe(320);
});

it("notices a peer that vanished without a word, long before the deadline", {
  timeout: 60_000,
}, async () => {
  const relay = await startRelay(() => Number(edge.server.port));
  onTestFinished(() => relay.close());
  for (const options of [{}, { session: false }]) {
    const saver = ConnectSaver.fromUrl(relay.url, { ...options, timeoutMs: 15_000 });
    await write(saver, "vanished-before");
    relay.freeze();
    await Promise.all([write(saver, "vanished-1"), write(saver, "vanished-2")]);
    await saver.end();
  }
  expect(await edge.checkpoints("vanished-%")).toBe(3);
});

it("takes a server for alive that works on as many operations as it may", {
  timeout: 60_000,
}, async () => {
  const relay = await startRelay(() => Number(edge.server.port));
  onTestFinished(() => relay.close());
  const saver = ConnectSaver.fromUrl(relay.url);
  await write(saver, "busy-0");
  const blocker = await block(edge.database.url, "lock table checkpoints in exclusive mode");
  const writes = Promise.all(Array.from({ length: 300 }, (_, i) => write(saver, `busy-${i}`)));
  await sleep(7_000);
  await blocker.release();
  await writes;
  await saver.end();
  expect(relay.http1()).toBe(1);
  expect(await edge.checkpoints("busy-%")).toBe(300);
});

it("keeps a session beside which its agent was busy for long", { timeout: 60_000 }, async () => {
  const relay = await startRelay(() => Number(edge.server.port));
  onTestFinished(() => relay.close());
  const saver = ConnectSaver.fromUrl(relay.url);
  await write(saver, "agent-busy-0");
  const blocker = await block(edge.database.url, "lock table checkpoints in exclusive mode");
  const slow = write(saver, "agent-busy-1");
  // The ping goes out, and its answer waits here.
  await sleep(2_300);
  const until = performance.now() + 4_000;
  while (performance.now() < until);
  await sleep(200);
  await blocker.release();
  await slow;
  await saver.end();
  expect(relay.http1()).toBe(1);
});

it("takes a server for alive to which a large request is on its way for long", {
  timeout: 60_000,
}, async () => {
  // 1 MB takes 10 s, most of which the system holds for us.
  const relay = await startRelay(() => Number(edge.server.port), "lets them through", {
    sentBytesPerMs: 100,
  });
  onTestFinished(() => relay.close());
  const data = new Uint8Array(randomBytes(1_000_000));
  for (const options of [{}, { session: false }]) {
    const saver = ConnectSaver.fromUrl(relay.url, options);
    await write(saver, "upload-0");
    const checkpoint = {
      v: 4,
      id: "1",
      ts: "",
      channel_values: { data },
      channel_versions: { data: 1 },
      versions_seen: {},
    };
    const metadata = { source: "input" as const, step: -1, parents: {} };
    const config = { configurable: { thread_id: "upload", checkpoint_ns: "" } };
    const before = relay.http1() + relay.http2();
    await saver.put(config, checkpoint, metadata, { data: 1 });
    // Large requests have a session of their own.
    expect(relay.http1() + relay.http2()).toBeLessThanOrEqual(before + 1);
    await saver.end();
  }
});

it("comes back to sessions soon after a proxy answered 502", { timeout: 60_000 }, async () => {
  const proxy = await startProxy(edge.server.url, 502);
  let port = Number(new URL(proxy.url).port);
  const relay = await startRelay(() => port);
  onTestFinished(() => proxy.close());
  onTestFinished(() => relay.close());
  const saver = ConnectSaver.fromUrl(relay.url);
  await write(saver, "proxy-0");
  expect(relay.http1()).toBe(1);
  port = Number(edge.server.port);
  await expect
    .poll(
      async () => {
        await write(saver, "proxy-1");
        return relay.http1();
      },
      { timeout: 20_000 },
    )
    .toBe(2);
  await saver.end();
});

it.each([
  [true, 4_000],
  [false, 600_000],
])(
  "rests where there were no sessions: trouble that passes %s, so long at the most",
  async (isPassing, most) => {
    let now = 0;
    const clock = vi.spyOn(performance, "now").mockImplementation(() => now);
    onTestFinished(() => clock.mockRestore());
    let opened = 0;
    const { carrier } = createSessionCarrier(() => {
      opened++;
      const session = { isLeaving: true, foundNone: { at: now, isPassing }, run: async () => ({}) };
      return session as unknown as ClientSession;
    });
    let longest = 0;
    for (let since = 0; opened < 20; now += 1_000) {
      const before = opened;
      await carrier.getThread({}, { deadline: 0 }).catch(() => {});
      if (opened > before) {
        longest = Math.max(longest, now - since);
        since = now;
      }
    }
    expect(longest).toBe(most);
  },
);

it("turns over the addresses of a name, and leaves out the one that is dead", async () => {
  const { port } = edge.server;
  const second = createTcpServer((socket) => {
    reached.add("127.0.0.2");
    socket.pipe(connectTcp(port, "127.0.0.1")).pipe(socket);
    socket.on("error", () => {});
  });
  onTestFinished(() => void second.close());
  const reached = new Set<string>();
  const lookup: LookupFunction = (_, __, callback) =>
    callback(null, [
      { address: "127.0.0.1", family: 4 },
      { address: "127.0.0.2", family: 4 },
    ]);
  const use = async (name: string) => {
    for (const options of [{}, { session: false }]) {
      const url = `http://checkpointd.test:${port}`;
      const saver = ConnectSaver.fromUrl(url, { ...options, lookup, timeoutMs: 10_000 });
      await write(saver, name);
      await saver.end();
    }
  };
  // Nobody listens on the second one yet.
  for (let i = 0; i < 10; i++) await use(`addresses-${i}`);
  await new Promise<void>((resolve) => second.listen(port, "127.0.0.2", resolve));
  // Of twenty connections not one begins there once in a million times.
  for (let i = 0; i < 10; i++) await use(`addresses-${i}`);
  expect([...reached]).toEqual(["127.0.0.2"]);
  expect(await edge.checkpoints("addresses-%")).toBe(10);
});

it("runs more operations than the server lets it have under way", async () => {
  const saver = ConnectSaver.fromUrl(edge.server.url);
  await Promise.all(Array.from({ length: 700 }, (_, i) => write(saver, `many-${i}`)));
  await saver.end();
  expect(await edge.checkpoints("many-%")).toBe(700);
});

it("carries large values", async () => {
  const saver = ConnectSaver.fromUrl(edge.server.url);
  for (const size of [200_000, 2_000_000]) {
    const bytes = new Uint8Array(size).map((_, i) => i % 251);
    const config = await write(saver, `large-${size}`, bytes);
    const tuple = await saver.getTuple(config);
    expect(Buffer.compare(tuple?.checkpoint.channel_values.a as Uint8Array, bytes)).toBe(0);
  }
  await saver.end();
});

it("tells the same errors as unary calls", async () => {
  for (const session of [true, false]) {
    const headers = { "x-request-id": `agent-${session}` };
    const saver = ConnectSaver.fromUrl(edge.server.url, { session, headers });
    const error = await write(saver, "x".repeat(65_537)).catch((refused) => refused);
    expect(error).toBeInstanceOf(ConnectError);
    expect(error.code).toBe(Code.InvalidArgument);
    expect(errorDetail(error)).toMatchObject({
      reason: "TOO_LONG",
      field: "thread_id",
      limit: 65_536n,
    });
    // The one that the server's log has it by.
    const requestId = error.metadata.get("x-request-id");
    expect(requestId).toMatch(session ? /^agent-true\/\d+$/ : /^agent-false$/);
    expect(edge.captured.lines({ requestId })).toHaveLength(1);
    await saver.end();
  }
});

it("sends nothing above its own limit", async () => {
  const saver = ConnectSaver.fromUrl(edge.server.url, { maxRequestBytes: 10_000 });
  const large = write(saver, "above-own-limit", "x".repeat(10_000)).catch((error) => error);
  await write(saver, "above-own-limit-not", "x".repeat(9_000));
  expect(await large).toMatchObject({ code: Code.ResourceExhausted });
  expect((await large).rawMessage).toContain("writeMaxBytes");
  await saver.end();
  expect(await edge.checkpoints("above-own-limit%")).toBe(1);
});

it("fails only the operation that is too large for the server, as a unary call would", async () => {
  const small = await startTestServer(edge.database.url, { maxMessageSize: 16_384 });
  onTestFinished(() => small.drain());
  const saver = ConnectSaver.fromUrl(small.url);
  const large = write(saver, "too-large", "x".repeat(20_000)).catch((error) => error);
  await Promise.all(Array.from({ length: 20 }, (_, i) => write(saver, `beside-large-${i}`)));
  expect(await large).toMatchObject({ code: Code.ResourceExhausted });
  expect((await large).rawMessage).toContain("16384");
  await write(saver, "beside-large-after");
  await saver.end();
  expect(await edge.checkpoints("beside-large-%")).toBe(21);
});

it.each([404, 415, 501, "silence"] as const)(
  "makes unary calls where a session is answered with %s",
  async (answer) => {
    const proxy = await startProxy(edge.server.url, answer);
    onTestFinished(() => proxy.close());
    const saver = ConnectSaver.fromUrl(proxy.url);
    await write(saver, `without-${answer}`);
    await write(saver, `without-${answer}-2`);
    await saver.end();
    expect(await edge.checkpoints(`without-${answer}%`)).toBe(2);
    expect(proxy.sessions()).toBe(1);
  },
);

it.each(["refuses them", "cuts them", "says nothing to them"] as const)(
  "takes a stream of HTTP/2 where something %s that ask to upgrade",
  async (does) => {
    const relay = await startRelay(() => Number(edge.server.port), does);
    onTestFinished(() => relay.close());
    const requestId = `relayd-${does.replaceAll(" ", "-")}`;
    const saver = ConnectSaver.fromUrl(relay.url, { headers: { "x-request-id": requestId } });
    await write(saver, requestId);
    await saver.end();
    await expect
      .poll(() => edge.captured.lines({ rpc: "checkpointd.v1.SessionService/put" }).at(-1))
      .toMatchObject({ requestId: `${requestId}/1` });
    expect(relay.http1()).toBe(1);
  },
);

it("fails what is under way when it is sent what is no message", async () => {
  const relay = await startRelay(() => Number(edge.server.port), "answers them with noise");
  onTestFinished(() => relay.close());
  const saver = ConnectSaver.fromUrl(relay.url, { retry: { attempts: 2, initialDelayMs: 1 } });
  await expect(write(saver, "noise")).rejects.toMatchObject({ code: Code.Unavailable });
  expect(relay.http1()).toBe(2);
  await saver.end();
});

it("upgrades where nothing is in the way", async () => {
  const relay = await startRelay(() => Number(edge.server.port), "lets them through");
  onTestFinished(() => relay.close());
  const saver = ConnectSaver.fromUrl(`${relay.url}/`);
  await write(saver, "upgraded");
  await saver.end();
  expect([relay.http1(), relay.http2()]).toEqual([1, 0]);
});

it("fails at its deadline, and everything after end()", async () => {
  const blocker = await block(edge.database.url, "lock table checkpoints");
  onTestFinished(() => blocker.release());
  const saver = ConnectSaver.fromUrl(edge.server.url, { timeoutMs: 2_000 });
  await expect(write(saver, "late")).rejects.toMatchObject({ code: Code.DeadlineExceeded });
  await blocker.release();
  await write(saver, "in-time");
  await saver.end();
  await expect(write(saver, "after")).rejects.toThrow("end() was called");
});

describe("lists", () => {
  const config = { configurable: { thread_id: "history" } };
  const stored = Array.from({ length: 400 }, (_, i) => String(i + 1).padStart(4, "0")).reverse();
  beforeAll(async () => {
    const saver = ConnectSaver.fromUrl(edge.server.url);
    // One value stays for ten checkpoints, one changes with each.
    await Promise.all(stored.map((id) => write(saver, "history", `${id} `.repeat(1000), id)));
    await saver.end();
  });

  async function idsOf(list: AsyncIterable<CheckpointTuple>, onTuple = () => {}) {
    const ids: string[] = [];
    for await (const { checkpoint } of list) {
      ids.push(checkpoint.id);
      const { a, b } = checkpoint.channel_values as { a: string; b: string };
      expect([a.slice(0, 4), b]).toEqual([checkpoint.id, `shared ${checkpoint.id.slice(0, 3)}`]);
      onTuple();
    }
    return ids;
  }

  it("come in pages, each once and complete", async () => {
    const saver = ConnectSaver.fromUrl(edge.server.url);
    for (const limit of [undefined, 1, 15, 16, 17, 48, 399, 400, 401]) {
      const options = limit === undefined ? {} : { limit };
      expect(await idsOf(saver.list(config, options))).toEqual(stored.slice(0, limit));
    }
    const after = { before: { configurable: { checkpoint_id: "0050" } } };
    expect(await idsOf(saver.list(config, after))).toEqual(stored.slice(-49));
    await saver.end();
    expect(edge.captured.lines({ rpc: "checkpointd.v1.CheckpointService/List" })).toEqual([]);
  });

  it("go on where the connection was cut", async () => {
    const relay = await startRelay(() => Number(edge.server.port));
    onTestFinished(() => relay.close());
    const saver = ConnectSaver.fromUrl(relay.url);
    let seen = 0;
    const ids = await idsOf(saver.list(config), () => {
      if (++seen % 20 === 0) relay.cut();
    });
    await saver.end();
    expect(ids).toEqual(stored);
    expect(relay.http1()).toBeGreaterThan(3);
  });

  it("go on when the server is back, however long the reader was busy meanwhile", async () => {
    let port = Number(edge.server.port);
    const relay = await startRelay(() => port);
    onTestFinished(() => relay.close());
    const saver = ConnectSaver.fromUrl(relay.url, { retry: { attempts: 2, initialDelayMs: 1 } });
    const list = saver.list(config);
    const ids: string[] = [];
    for (let i = 0; i < 17; i++) ids.push((await list.next()).value?.checkpoint.id);
    port = 1;
    relay.cut();
    const seen = relay.http1();
    // The page that is read ahead has used up its tries.
    await expect.poll(relay.http1).toBe(seen + 1);
    await sleep(50);
    port = Number(edge.server.port);
    for await (const { checkpoint } of list) ids.push(checkpoint.id);
    expect(ids).toEqual(stored);
    await saver.end();
  });

  it("try nothing more when they are left", async () => {
    let port = Number(edge.server.port);
    const relay = await startRelay(() => port);
    onTestFinished(() => relay.close());
    const saver = ConnectSaver.fromUrl(relay.url, { retry: { initialDelayMs: 50 } });
    const list = saver.list(config);
    for (let i = 0; i < 17; i++) await list.next();
    port = 1;
    relay.cut();
    await list.return(undefined);
    const seen = relay.http1();
    await sleep(200);
    expect(relay.http1()).toBe(seen);
    await saver.end();
  });

  it("may take longer for a page than for a tuple, as long as it arrives", async () => {
    const relay = await startRelay(() => Number(edge.server.port), "lets them through", {
      answeredBytesPerMs: 100,
    });
    onTestFinished(() => relay.close());
    const saver = ConnectSaver.fromUrl(relay.url, { timeoutMs: 1_000 });
    // The second page has 160 KB.
    expect(await idsOf(saver.list(config, { limit: 48 }))).toEqual(stored.slice(0, 48));
    await saver.end();
  });

  it("do not hold up small operations", async () => {
    const relay = await startRelay(() => Number(edge.server.port));
    onTestFinished(() => relay.close());
    const saver = ConnectSaver.fromUrl(relay.url);
    await Promise.all([idsOf(saver.list(config)), write(saver, "beside-list")]);
    expect(relay.http1()).toBe(2);
    await saver.end();
  });

  it("go on as a stream where there are no sessions any more", async () => {
    const proxy = await startProxy(edge.server.url, 404);
    let port = Number(edge.server.port);
    const relay = await startRelay(() => port);
    onTestFinished(() => proxy.close());
    onTestFinished(() => relay.close());
    const saver = ConnectSaver.fromUrl(relay.url);
    let seen = 0;
    const ids = await idsOf(saver.list(config, { limit: 300 }), () => {
      if (++seen !== 50) return;
      port = Number(new URL(proxy.url).port);
      relay.cut();
    });
    await saver.end();
    expect(ids).toEqual(stored.slice(0, 300));
    expect(proxy.sessions()).toBe(1);
  });

  it("are a stream where the server's sessions have none", async () => {
    const url = await startForeignSessions(
      () => [],
      {
        async *list({ threadId }) {
          const key = { threadId: String(threadId), checkpointId: "1" };
          yield { tuple: { key, checkpointJson: '{"v":4,"id":"1"}', metadataJson: "{}" } };
        },
      },
      ["get_tuple", "put"],
    );
    const saver = ConnectSaver.fromUrl(url);
    const ids = [];
    for await (const { checkpoint } of saver.list(config)) ids.push(checkpoint.id);
    expect(ids).toEqual(["1"]);
    await saver.end();
  });

  it("read one page ahead, which is cancelled when the loop is left", async () => {
    const saver = ConnectSaver.fromUrl(edge.server.url, { headers: { "x-request-id": "left" } });
    const list = saver.list(config);
    for (let i = 0; i < 16; i++) await list.next();
    // The second page waits for the first lock, the third for the second.
    const first = await block(edge.database.url, "lock table checkpoints");
    onTestFinished(() => first.release());
    const second = list.next();
    await untilBlocked(edge.sql, 1);
    const other = block(edge.database.url, "lock table checkpoints");
    onTestFinished(async () => (await other).release());
    await expect.poll(waiting).toBe(2);
    await first.release();
    expect((await second).value?.checkpoint.id).toBe(stored[16]);
    await untilBlocked(edge.sql, 1);
    await list.return(undefined);
    await untilBlocked(edge.sql, 0);
    expect(edge.captured.lines({ requestId: "left/3" })).toMatchObject([{ code: "Canceled" }]);
    await saver.end();
  });

  it("fail at their deadline, and when the saver is ended", async () => {
    const saver = ConnectSaver.fromUrl(edge.server.url, { timeoutMs: 2_000 });
    const list = saver.list(config);
    await list.next();
    const blocker = await block(edge.database.url, "lock table checkpoints");
    onTestFinished(() => blocker.release());
    await expect(idsOf(saver.list(config))).rejects.toMatchObject({ code: Code.DeadlineExceeded });
    const late = idsOf(saver.list(config));
    await untilBlocked(edge.sql, 1);
    await Promise.all([expect(late).rejects.toThrow("end() was called"), saver.end()]);
    await expect(list.next()).rejects.toThrow("end() was called");
    await untilBlocked(edge.sql, 0);
  });
});

async function waiting(): Promise<number> {
  const { rows } = await edge.sql.query(
    // Of this database alone: the cluster is shared with the tests of other files.
    `select count(*)::int as n from pg_locks l join pg_database d on d.oid = l.database
     where not l.granted and d.datname = current_database()`,
  );
  return rows[0].n;
}

function write(saver: ConnectSaver, thread: string, value: unknown = "value", id = "1") {
  return saver.put(
    { configurable: { thread_id: thread } },
    {
      v: 4,
      id,
      ts: "",
      channel_values: { a: value, b: `shared ${id.slice(0, 3)}` },
      channel_versions: { a: Number(id), b: Number(id.slice(0, 3)) },
      versions_seen: {},
    },
    { source: "input", step: -1, parents: {} },
    { a: Number(id), b: Number(id.slice(0, 3)) },
  );
}

/** Passes calls on, but knows no sessions. */
async function startProxy(url: string, answer: number | "silence") {
  let sessions = 0;
  const upstream = connectHttp2(url);
  const proxy = createServer();
  proxy.on("stream", (stream, headers) => {
    stream.on("error", () => {});
    if (headers[":path"] === sessionPath) {
      sessions++;
      if (answer !== "silence") stream.respond({ ":status": answer }, { endStream: true });
      return;
    }
    const onward = upstream.request({ ...headers, ":authority": new URL(url).host });
    stream.pipe(onward);
    onward.on("response", (response) => {
      stream.respond(response);
      onward.pipe(stream);
    });
  });
  await new Promise<void>((resolve) => proxy.listen(0, "127.0.0.1", resolve));
  return {
    url: `http://127.0.0.1:${(proxy.address() as AddressInfo).port}`,
    sessions: () => sessions,
    close() {
      proxy.close();
      upstream.destroy();
    },
  };
}
