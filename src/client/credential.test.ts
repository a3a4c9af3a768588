/** The token that a saver calls with: asked for once, kept, and asked for anew when it is refused. */
import { inspect } from "node:util";
import { Code, ConnectError } from "@connectrpc/connect";
import { describe, expect, it, onTestFinished } from "vitest";
import type { Authenticator } from "../auth/authenticator.js";
import { operations, type Principal } from "../auth/principal.js";
import { expired, invalid } from "../auth/refusal.js";
import { createLog } from "../log.js";
import { createAudit } from "../server/audit.js";
import type { Call } from "../server/call.js";
import { Usage } from "../server/usage.js";
import { startEchoServer } from "../testing/echo_server.js";
import { Credential } from "./credential.js";
import { ConnectSaver, type ConnectSaverUrlOptions } from "./saver.js";
import { UrlTransport } from "./transport.js";

const ways: [string, ConnectSaverUrlOptions][] = [
  ["sessions", {}],
  ["connect", { session: false }],
  ["grpc", { protocol: "grpc" }],
  ["grpc-web", { protocol: "grpc-web" }],
];

/** A server that believes tokens until they are taken back, and says whose each call is. */
async function start() {
  const living = new Map<string, AbortController>();
  const authenticator: Authenticator = {
    authenticate({ authorization = "" }) {
      const name = authorization.replace("Bearer ", "");
      const ends = living.get(name);
      if (!ends) throw invalid("unknown key");
      return principalOf(name, ends.signal);
    },
    tenants: new Map(),
    stop() {},
  };
  const principals = new Map<string, Principal>();
  const principalOf = (name: string, ends: AbortSignal): Principal => {
    const grants = [{ operations: new Set(operations), threads: [{ kind: "all" as const }] }];
    const expiresAt = expiries.get(name) ?? Number.POSITIVE_INFINITY;
    const known = { name, tenant: "", grants, credential: "key k", expiresAt, limits: {}, ends };
    const found = principals.get(name) ?? known;
    principals.set(name, found);
    return found;
  };
  const expiries = new Map<string, number>();
  /** Set by a test: what is done before an answer. */
  const before = { answer: async () => {} };
  /** What was carried out, also in part. */
  const begun: string[] = [];
  const server = await startEchoServer(
    (name) => {
      begun.push(name);
      if (name === "getTuple" || /^(copyThread|claimThreads)$/.test(name)) {
        return before.answer().then(() => ({}));
      }
      return (async function* () {
        for (let i = 0; i < 3; i++) {
          await before.answer();
          yield { thread: { threadId: `${i}` } };
        }
      })();
    },
    {},
    undefined,
    {
      gate: {
        authenticator,
        usage: new Usage(),
        audit: createAudit(createLog("silent")),
        refused: new Map(),
      },
    },
  );
  onTestFinished(() => server.stop());
  return {
    url: server.url,
    before,
    begun,
    expiries,
    endOf: (name: string) => living.get(name)?.signal as AbortSignal,
    callers: () => server.finished.map((call) => (call as Call).principal?.name),
    allow: (name: string) => void living.set(name, new AbortController()),
    takeBack(name: string) {
      living.get(name)?.abort(expired());
      living.delete(name);
    },
  };
}

/** A token function: `t1`, `t2`, …, and how often it was asked. */
function counting(give: (name: string) => string | Promise<string> = (name) => name) {
  const asked = { times: 0 };
  return { asked, token: () => give(`t${++asked.times}`) };
}

function open(url: string, options: ConnectSaverUrlOptions): ConnectSaver {
  const saver = ConnectSaver.fromUrl(url, options);
  onTestFinished(() => saver.end());
  return saver;
}
const get = (saver: ConnectSaver) => saver.getTuple({ configurable: { thread_id: "t" } });

describe.each(ways)("a token, over %s,", (way, options) => {
  it("is sent as a bearer", async () => {
    const server = await start();
    server.allow("fixed");
    await get(open(server.url, { ...options, token: "fixed", headers: { "x-other": "1" } }));
    expect(server.callers()).toEqual(["fixed"]);
    const error = await get(open(server.url, { ...options, token: "wrong" })).catch((it) => it);
    expect(error).toMatchObject({ code: Code.Unauthenticated });
    expect(inspect(error, { depth: 20 })).not.toContain("wrong");
  });

  it("is asked for once by 32 calls at a time, and kept", async () => {
    const server = await start();
    server.allow("t1");
    const { asked, token } = counting(async (name) => {
      await new Promise((resolve) => setTimeout(resolve, 20));
      return name;
    });
    const saver = open(server.url, { ...options, token });
    await Promise.all(Array.from({ length: 32 }, () => get(saver)));
    await get(saver);
    expect(asked.times).toBe(1);
    expect(new Set(server.callers())).toEqual(new Set(["t1"]));
  });

  it("is asked for anew, once by 32 calls, when it was taken back", async () => {
    const server = await start();
    const { asked, token } = counting();
    const saver = open(server.url, { ...options, token });
    for (let turn = 1; turn <= 3; turn++) {
      server.allow(`t${turn}`);
      await Promise.all(Array.from({ length: 32 }, () => get(saver)));
      expect(asked.times).toBe(turn);
      server.takeBack(`t${turn}`);
    }
    // While calls are under way, which the server gives up.
    server.allow("t4");
    await get(saver);
    server.before.answer = () => new Promise((resolve) => setTimeout(resolve, 100));
    const under = Promise.all(Array.from({ length: 32 }, () => get(saver)));
    await new Promise((resolve) => setTimeout(resolve, 50));
    server.takeBack("t4");
    server.allow("t5");
    await under;
    expect(asked.times).toBeLessThanOrEqual(5);
  });

  it("is asked for no more than once by a call that is refused all the same", async () => {
    const server = await start();
    const { asked, token } = counting();
    const saver = open(server.url, { ...options, token });
    await expect(get(saver)).rejects.toMatchObject({ code: Code.Unauthenticated });
    expect(asked.times).toBe(2);
  });

  it("is asked for anew for a stream, at its beginning and in the middle", async () => {
    const server = await start();
    server.allow("t2");
    const { asked, token } = counting();
    const saver = open(server.url, { ...options, token });
    let listed = 0;
    for await (const _ of saver.threads.list()) listed++;
    expect([listed, asked.times]).toEqual([3, 2]);

    server.allow("t3");
    server.before.answer = async () => {
      server.before.answer = async () => {};
      setTimeout(() => server.takeBack("t2"), 10);
      await new Promise((resolve) => setTimeout(resolve, 200));
    };
    for await (const _ of saver.threads.list()) listed++;
    expect([listed, asked.times]).toEqual([6, 3]);
  });

  it("whose function throws fails the call with that, and is asked for by the next", async () => {
    const server = await start();
    server.allow("t3");
    const failure = Object.assign(new Error("the vault is sealed"), { code: "ECONNREFUSED" });
    const { asked, token } = counting((name) => {
      if (name === "t1") throw failure;
      return name === "t2" ? ({ token: name } as never) : name;
    });
    const saver = open(server.url, { ...options, token });
    const began = performance.now();
    const error = await get(saver).catch((it) => it);
    expect(error).toBeInstanceOf(ConnectError);
    expect(error.rawMessage).toBe("the token function failed: the vault is sealed");
    expect(error.cause).toBe(failure);
    expect(asked.times).toBe(1);
    await expect(get(saver)).rejects.toThrow("the token function must give text");
    expect(asked.times).toBe(2);
    await get(saver);
    expect(performance.now() - began).toBeLessThan(20_000);
  });

  it("that never comes is waited for until the call's deadline", async () => {
    const server = await start();
    const token = () => new Promise<string>(() => {});
    const saver = open(server.url, { ...options, token, timeoutMs: 300 });
    await expect(get(saver)).rejects.toMatchObject({ code: Code.DeadlineExceeded });
    const given = AbortSignal.abort(new Error("enough"));
    await expect(
      saver.getTuple({ configurable: { thread_id: "t" }, signal: given }),
    ).rejects.toThrow("enough");
    if (way === "sessions") return;
    await expect(saver.threads.list().next()).rejects.toMatchObject({
      code: Code.DeadlineExceeded,
    });
  });
});

it.each([
  ["copyThread", "is answered"],
  ["copyThread", "goes with its session"],
  ["claimThreads", "is answered"],
  ["claimThreads", "goes with its session"],
])("that ends while %s is under way, which %s, does not make it twice", async (name, how) => {
  const server = await start();
  server.allow("t1");
  const { asked, token } = counting();
  const saver = open(server.url, { token });
  const make = (saver: ConnectSaver) =>
    name === "copyThread"
      ? saver.threads.copy("a", "b")
      : saver.threads.claim({ owner: "w", threadId: "a" });
  await get(saver);
  server.before.answer = () =>
    new Promise((resolve, reject) => {
      if (how !== "is answered") setTimeout(resolve, 200);
      else server.endOf("t1").addEventListener("abort", () => reject(expired()));
    });
  const under = make(saver).catch((error) => error);
  await expect.poll(() => server.begun).toContain(name);
  server.takeBack("t1");
  server.allow("t2");
  expect(await under).toBeInstanceOf(ConnectError);
  server.before.answer = async () => {};
  await get(saver);
  expect(server.begun.filter((each) => each === name)).toHaveLength(1);
  // What is refused before it was begun is made with another token.
  const { asked: again, token: later } = counting((name) => (name === "t1" ? "old" : "t2"));
  await make(open(server.url, { token: later }));
  expect(server.begun.filter((each) => each === name)).toHaveLength(2);
  expect([asked.times, again.times]).toEqual([2, 2]);
});

it("is asked for anew when a session is followed by another, before anything is refused", async () => {
  const server = await start();
  server.allow("t1");
  server.allow("t2");
  server.expiries.set("t1", Date.now() + 1_000);
  const { asked, token } = counting();
  const saver = open(server.url, { token });
  await get(saver);
  expect(asked.times).toBe(1);
  // At half of its time the server asks to go.
  await expect
    .poll(async () => {
      await get(saver);
      return asked.times;
    })
    .toBe(2);
  expect(server.callers().at(-1)).toBe("t2");
  expect(server.callers()).not.toContain(undefined);
});

it("stays the old one where there is no next one yet", async () => {
  let fails = false;
  const credential = new Credential({ a: "b" }, () => {
    if (fails) throw new Error("later");
    return "first";
  });
  const first = await credential.headers();
  expect([...(first as Headers)]).toEqual([
    ["a", "b"],
    ["authorization", "Bearer first"],
  ]);
  fails = true;
  expect(await credential.nextHeaders()).toBe(first);
  expect(await credential.headers()).toBe(first);
  const refused = new ConnectError("no", Code.Unauthenticated);
  expect(credential.renew(credential.turn, refused)).toBe(true);
  await expect(credential.headers()).rejects.toThrow("the token function failed: later");
  fails = false;
  expect([...((await credential.headers()) as Headers)]).toHaveLength(2);
});

it("is refused at once where it can be sent to nobody", () => {
  const create = (options: object) => ConnectSaver.fromUrl("http://127.0.0.1:1", options);
  const refusal = (options: object) => {
    try {
      create(options);
    } catch (error) {
      expect(error).toBeInstanceOf(TypeError);
      expect(inspect(error)).not.toContain("5ecr3t");
      return (error as Error).message;
    }
    throw new Error("it was taken");
  };
  for (const token of ["", "5ecr3t\n", "5ecr3t 5ecr3t", "5ecr3t\u0141"]) {
    expect(refusal({ token })).toMatch(/^token must be text of the letters/);
  }
  expect(refusal({ token: 7 })).toBe("token must be text or a function that gives it, not 7");
  expect(refusal({ token: "5ecr3t", headers: { Authorization: "Bearer 5ecr3t" } })).toMatch(
    /^give either token or the header authorization/,
  );
  const transport = new UrlTransport("http://127.0.0.1:1", {});
  expect(() => new ConnectSaver(transport, { token: "" })).toThrow(TypeError);
});
