/** A saver where HTTP/2 does not get through: what it makes of HTTP/1.1, and when it comes back. */
import { setTimeout as delay } from "node:timers/promises";
import { create } from "@bufbuild/protobuf";
import { Code, ConnectError } from "@connectrpc/connect";
import { afterAll, beforeAll, describe, expect, it, onTestFinished, vi } from "vitest";
import { type CallName, streams } from "../protocol/operations.js";
import { type EchoServer, startEchoServer } from "../testing/echo_server.js";
import { startRelay, type ToHttp2 } from "../testing/relay.js";
import { HttpVersions } from "./http_versions.js";
import { ConnectSaver, type ConnectSaverUrlOptions } from "./saver.js";

const config = { configurable: { thread_id: "t", checkpoint_ns: "" } };
const threadMessage = create(streams.listThreads.output, { thread: { threadId: "t" } });

let server: EchoServer;
let asked: CallName[];
/** Called with what is asked; answers in its place if it returns something. */
let answer: (name: CallName) => unknown;
beforeAll(async () => {
  server = await startEchoServer((name) => {
    asked.push(name);
    const own = answer(name);
    if (own !== undefined) return own;
    return name in streams ? [threadMessage, threadMessage, threadMessage] : {};
  });
});
afterAll(() => server.stop());

async function start(options: ConnectSaverUrlOptions, toHttp2: ToHttp2) {
  asked = [];
  answer = () => undefined;
  const port = Number(new URL(server.url).port);
  const relay = await startRelay(() => port, "lets them through", { toHttp2 });
  const saver = ConnectSaver.fromUrl(relay.url, options);
  onTestFinished(async () => {
    await saver.end();
    relay.close();
  });
  return { relay, saver };
}

async function listAll(saver: ConnectSaver): Promise<number> {
  let count = 0;
  for await (const _ of saver.threads.list({ limit: 3 })) count++;
  return count;
}

const ways: [string, ConnectSaverUrlOptions][] = [
  ["sessions", {}],
  ["connect", { session: false }],
  ["JSON", { json: true }],
  ["gzip", { compression: true }],
  ["grpc-web", { protocol: "grpc-web" }],
];

describe.each(ways)("over %s", (name, options) => {
  it.each(["refuses them", "cuts them", "says nothing to them"] as const)(
    "calls and streams go over HTTP/1.1 where something on the way %s that speak HTTP/2",
    async (does) => {
      const { relay, saver } = await start(options, does);
      expect(await saver.getTuple(config)).toBeUndefined();
      expect(await listAll(saver)).toBe(3);
      expect(asked).toEqual(["getTuple", "listThreads"]);
      expect(server.finished.at(-1)).toMatchObject({ rpc: expect.stringContaining("ListThreads") });
      expect(relay.http2()).toBe(1);
      await saver.end();
      await expect.poll(relay.open).toBe(0);
    },
  );

  it("an error of the service is told as it is, and is asked for once", async () => {
    const { saver } = await start(options, "refuses them");
    answer = () => {
      throw new ConnectError("as asked", Code.InvalidArgument);
    };
    for (const call of [() => saver.getTuple(config), () => listAll(saver)]) {
      await expect(call()).rejects.toMatchObject({
        rawMessage: "as asked",
        code: Code.InvalidArgument,
      });
    }
    expect(asked).toEqual(["getTuple", "listThreads"]);
  });

  it("many calls at a time arrive, each once", async () => {
    const { saver } = await start(options, "refuses them");
    await Promise.all(Array.from({ length: 100 }, () => saver.getTuple(config)));
    expect(asked).toHaveLength(100);
    await saver.end();
  });

  it("what is not to be repeated is asked for once", async () => {
    const { saver } = await start(options, "refuses them");
    await saver.threads.claim({ owner: "me", limit: 1 });
    expect(asked).toEqual(["claimThreads"]);
  });

  it("a stream that is left early is over for the service too", async () => {
    const { relay, saver } = await start(options, "refuses them");
    let isOver = false;
    answer = (asked) =>
      asked === "listThreads"
        ? (async function* () {
            try {
              for (;;) {
                yield threadMessage;
                await delay(1);
              }
            } finally {
              isOver = true;
            }
          })()
        : undefined;
    for await (const _ of saver.threads.list()) break;
    await expect.poll(() => isOver).toBe(true);
    await expect.poll(relay.open).toBeLessThanOrEqual(name === "sessions" ? 1 : 0);
  });

  it("a connection that breaks is repeated", async () => {
    const { relay, saver } = await start(options, "refuses them");
    await saver.getTuple(config);
    let broken = 0;
    answer = () => {
      if (broken++ < 2) relay.cut();
      return undefined;
    };
    await saver.getTuple(config);
    expect(broken).toBe(3);
    broken = 0;
    expect(await listAll(saver)).toBe(3);
  });

  it("is over HTTP/2 again once that gets through", async () => {
    const now = vi.spyOn(performance, "now");
    onTestFinished(() => now.mockRestore());
    const { relay, saver } = await start(options, "refuses them");
    await listAll(saver);
    relay.toHttp2 = "lets them through";
    await listAll(saver);
    expect(relay.http2()).toBe(1);
    const real = performance.now.bind(performance);
    const at = real();
    now.mockImplementation(() => at + 2_000);
    await listAll(saver);
    expect(relay.http2()).toBe(2);
    const { length } = asked;
    const accepted = relay.accepted();
    await listAll(saver);
    expect(asked).toHaveLength(length + 1);
    expect(relay.accepted()).toBe(accepted);
  });
});

it("a call that gives up before it is known spares the next ones", async () => {
  const options = { session: false, timeoutMs: 1_000 };
  const { saver } = await start(options, "says nothing to them");
  await expect(saver.getTuple(config)).rejects.toMatchObject({ code: Code.DeadlineExceeded });
  await expect
    .poll(() =>
      saver.getTuple(config).then(
        () => "answered",
        () => "gave up",
      ),
    )
    .toBe("answered");
});

it("gRPC says that it needs HTTP/2, and how to have it", async () => {
  const { saver } = await start({ protocol: "grpc" }, "refuses them");
  for (const call of [() => saver.getTuple(config), () => listAll(saver)]) {
    await expect(call()).rejects.toMatchObject({
      code: Code.Unimplemented,
      rawMessage: expect.stringMatching(
        /gRPC needs HTTP\/2 .+grpc_pass.+protocol "connect" does not/,
      ),
    });
  }
});

it("an answer that takes longer than a connection may rest is waited for", async () => {
  const { saver } = await start({ session: false }, "refuses them");
  answer = () => delay(5_000, {});
  await saver.getTuple(config);
  expect(asked).toEqual(["getTuple"]);
});

it("rests longer and longer, and never for ever", () => {
  const now = vi.spyOn(performance, "now");
  onTestFinished(() => now.mockRestore());
  let at = 0;
  now.mockImplementation(() => at);
  const versions = new HttpVersions();
  const restedMs = () => {
    versions.http2Refused();
    const since = at;
    while (versions.isHttp1) at += 500;
    return at - since;
  };
  expect([restedMs(), restedMs(), restedMs(), restedMs()]).toEqual([1000, 2000, 4000, 8000]);
  for (let i = 0; i < 20; i++) restedMs();
  expect(restedMs()).toBe(600_000);
  versions.http2Came();
  expect(restedMs()).toBe(1000);
});
