/** What JavaScript lets a caller hand in, and TypeScript does not: each has a sentence. */
import { createServer } from "node:http";
import { inspect } from "node:util";
import { createRouterTransport } from "@connectrpc/connect";
import { emptyCheckpoint } from "@langchain/langgraph-checkpoint";
import { afterAll, describe, expect, it } from "vitest";
import { ConnectSaver } from "./saver.js";

// Nothing is asked: where it would be, nobody listens, and the error would be another one.
const saver = ConnectSaver.fromUrl("http://127.0.0.1:1", { timeoutMs: 500 });
afterAll(() => saver.end());
const { threads } = saver;

/** As from JavaScript. */
// biome-ignore lint/suspicious/noExplicitAny: the types are what is gone.
type Anything = any;

class UUID {
  toString() {
    return "0b5c";
  }
}

const config = { configurable: { thread_id: "t" } };
const metadata = { source: "loop" as const, step: 0, parents: {} };
const put = (configurable: object, more: object = {}, checkpoint: object = {}) =>
  saver.put(
    { configurable },
    { ...emptyCheckpoint(), ...checkpoint },
    { ...metadata, ...more } as Anything,
    {},
  );
const list = (options: Anything) => saver.list(config, options).next();
const circle: Record<string, unknown> = {};
circle.itself = circle;

const calls: [string, () => Promise<unknown>, string][] = [
  [
    "a limit as text",
    () => list({ limit: "2" }),
    'limit must be a whole number from 0, not the text "2", of which Number(…) makes one',
  ],
  [
    "a limit of threads as text",
    () => threads.list({ limit: "2" } as Anything).next(),
    'limit must be a whole number from 0, not the text "2", of which',
  ],
  [
    "a limit of no number",
    () => list({ limit: Number.NaN }),
    "limit must be a whole number from 0, not NaN",
  ],
  [
    "a limit of claims as text",
    () => threads.claim({ owner: "o", limit: "3" } as Anything),
    'limit must be a whole number from 0 to 2147483647, not the text "3"',
  ],
  [
    "a BigInt in metadata",
    () => put({ thread_id: "t" }, { user: { id: 5n } }),
    'metadata cannot be stored as JSON: there is a BigInt under "user.id"; give it as a number or as text, String(value)',
  ],
  [
    "metadata that is a text",
    () => saver.put(config, emptyCheckpoint(), "loop" as Anything, {}),
    "metadata must be an object that can be written as JSON",
  ],
  [
    "a BigInt in a filter",
    () => list({ filter: { id: 5n } }),
    'filter cannot be written as JSON: there is a BigInt under "id"',
  ],
  ["a circle in a filter", () => list({ filter: circle }), "filter cannot be written as JSON"],
  [
    "a BigInt in a filter of threads",
    () => threads.list({ metadata: { id: 5n } }).next(),
    'metadata cannot be written as JSON: there is a BigInt under "id"',
  ],
  [
    "a BigInt in a checkpoint",
    () => put({ thread_id: "t" }, {}, { channel_versions: { a: 5n } }),
    'checkpoint cannot be written as JSON: there is a BigInt under "channel_versions.a"',
  ],
  [
    "a UUID object as thread_id",
    () => saver.getTuple({ configurable: { thread_id: new UUID() } }),
    "configurable.thread_id must be a string, not an object of UUID; give its text, which String(…) makes",
  ],
  [
    "a UUID object as thread_id of a put",
    () => put({ thread_id: new UUID() }),
    "configurable.thread_id must be a string, not an object of UUID; give its text",
  ],
  [
    "a BigInt as thread_id",
    () => put({ thread_id: 5n }),
    "configurable.thread_id must be a string, not a bigint; give its text",
  ],
  [
    "a Date as checkpoint_id",
    () => put({ thread_id: "t", checkpoint_id: new Date(0) }),
    "configurable.checkpoint_id must be a string, not an object of Date",
  ],
  [
    "an array as threadId",
    () => saver.deleteThread(["t"] as Anything),
    "threadId must be a string, not an array",
  ],
  [
    "no threadId",
    () => threads.get(undefined as Anything),
    "threadId must be a string, not undefined",
  ],
  [
    "a text as threadIds",
    () => threads.prune({ threadIds: "abc", delete: true } as Anything).next(),
    'threadIds must be an array, not the text "abc"; for one write [threadIds]',
  ],
  [
    "a number among threadIds",
    () => threads.prune({ threadIds: [{}], delete: true } as Anything).next(),
    "threadIds[0] must be a string, not an object",
  ],
  [
    "a text as runIds",
    () => threads.deleteRuns("abc" as Anything),
    "runIds must be an array, not the text",
  ],
  [
    "a misspelled dryRun",
    () => threads.prune({ keepLast: 1, dryrun: true } as Anything).next(),
    'threads.prune has no option "dryrun". Did you mean dryRun?',
  ],
  [
    "dryRun as text",
    () => threads.prune({ keepLast: 1, dryRun: "false" } as Anything).next(),
    'dryRun must be true or false, not the text "false"',
  ],
  [
    "delete as text",
    () => threads.prune({ delete: "no" } as Anything).next(),
    'delete must be true or false, not the text "no"',
  ],
  [
    "keepLast as text",
    () => threads.prune({ keepLast: "1" } as Anything).next(),
    "keepLast must be a whole number from 0",
  ],
  [
    "olderThanMs as text",
    () => threads.prune({ keepLast: 1, olderThanMs: "7d" } as Anything).next(),
    'olderThanMs must be a number of milliseconds from 0, not the text "7d"',
  ],
  [
    "leaseMs of no number",
    () => threads.claim({ owner: "o", leaseMs: Number.NaN }),
    "leaseMs must be a number of milliseconds from 0, not NaN",
  ],
  [
    "leaseMs of a renewal as text",
    () => threads.renew("t", "l", "9" as Anything),
    'leaseMs must be a number of milliseconds from 0, not the text "9", of which',
  ],
  [
    "no token",
    () => threads.renew("t", undefined as Anything),
    "token must be a string, not undefined",
  ],
  ["no owner", () => threads.claim({} as Anything), "owner must be a string, not undefined"],
  [
    "updatedAfter as text",
    () => threads.list({ updatedAfter: "2026-01-01" } as Anything).next(),
    'updatedAfter must be a Date, not the text "2026-01-01"; new Date(…) makes one',
  ],
  [
    "an invalid Date",
    () => threads.list({ updatedBefore: new Date("x") }).next(),
    "updatedBefore must be a Date, not an invalid one",
  ],
  [
    "an unknown status",
    () => threads.list({ status: "done" } as Anything).next(),
    "status must be one of completed, pending, interrupted, failed, not done",
  ],
  [
    "an unknown order",
    () => threads.list({ order: "newst" } as Anything).next(),
    "order must be one of newest, id, not newst",
  ],
  [
    "a misspelled filter",
    () => threads.list({ statuses: "failed" } as Anything).next(),
    'threads.list has no option "statuses". Did you mean status?',
  ],
  [
    "an unknown option of get",
    () => threads.get("t", { count: true } as Anything),
    'threads.get has no option "count". Did you mean counts?',
  ],
  [
    "an unknown option of claim",
    () => threads.claim({ owner: "o", lease: 1 } as Anything),
    'threads.claim has no option "lease". Did you mean leaseMs?',
  ],
];

it.each(calls)("%s", async (_, call, told) => {
  const error = await call().then(
    () => undefined,
    (reason: unknown) => reason,
  );
  expect(error).toBeInstanceOf(TypeError);
  expect((error as Error).message).toContain(told);
});

it("numbers of any size are limits, and undefined is all", async () => {
  for (const limit of [2 ** 31, 2 ** 53])
    await expect(list({ limit })).rejects.toThrow("nothing listens");
  await expect(list({ limit: undefined })).rejects.toThrow("nothing listens");
});

describe("options of a saver", () => {
  const fromUrl = (options: Anything, url: Anything = "http://h:1") =>
    ConnectSaver.fromUrl(url, options);

  it.each<[Anything, string]>([
    [{ timeout: 5 }, 'ConnectSaver.fromUrl has no option "timeout". Did you mean timeoutMs?'],
    [{ header: {} }, 'ConnectSaver.fromUrl has no option "header". Did you mean headers?'],
    [{ Protocol: "grpc" }, 'ConnectSaver.fromUrl has no option "Protocol". Did you mean protocol?'],
    [{ wibble: 1 }, 'ConnectSaver.fromUrl has no option "wibble". It has serde, timeoutMs, '],
    [{ retry: { attempt: 1 } }, 'retry has no option "attempt". Did you mean attempts?'],
    [{ retry: 3 }, "the options of retry must be an object, not 3"],
    [null, "the options of ConnectSaver.fromUrl must be an object, not null"],
    [
      { timeoutMs: "30000" },
      'timeoutMs must be a whole number from 1 to 2147483647, not the text "30000", of which',
    ],
    [{ headers: "authorization: x" }, "headers must be an object"],
  ])("%j", (options, told) => {
    expect(() => fromUrl(options)).toThrow(TypeError);
    expect(() => fromUrl(options)).toThrow(told);
  });

  it("over a transport of one's own are those of no URL", () => {
    const transport = createRouterTransport(() => {});
    expect(() => new ConnectSaver(transport, { protocol: "grpc" } as Anything)).toThrow(
      'ConnectSaver has no option "protocol"',
    );
    expect(new ConnectSaver(transport, { timeoutMs: 5 })).toBeInstanceOf(ConnectSaver);
  });

  it.each<[string, Anything]>([
    ["a line break within", { authorization: "Bearer 5ecr3t\nx" }],
    ["a control character", { authorization: "Bearer 5ecr3t\u0001" }],
    ["a character beyond Latin-1", new Map([["authorization", "Bearer 5ecr3t\u2019"]])],
    ["nothing", { authorization: undefined }],
    ["a header of the connection", { "Transfer-Encoding": "5ecr3t" }],
    ["a name that is none", { "a b": "5ecr3t" }],
  ])("headers with %s are refused without their value", (_, headers) => {
    let error: unknown;
    try {
      fromUrl({ headers });
    } catch (thrown) {
      error = thrown;
    }
    expect(error).toBeInstanceOf(TypeError);
    expect(inspect(error, { depth: 20 })).not.toContain("5ecr3t");
  });

  it("a URL that cannot be read is not repeated with its password", () => {
    expect(() => fromUrl({}, "http://me:5ecr3t@host:99999")).toThrow(/^(?!.*5ecr3t).*not a URL/);
  });

  it("headers of each kind are sent", async () => {
    const seen: unknown[] = [];
    const server = createServer((request, response) => {
      if (!request.headers.upgrade) seen.push(request.headers.authorization);
      response.end();
    });
    server.on("upgrade", ({ headers }, socket) => {
      seen.push(headers.authorization);
      socket.destroy();
    });
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    const { port } = server.address() as { port: number };
    for (const headers of [
      { authorization: "a" },
      new Headers({ authorization: "b" }),
      new Map([["authorization", "c"]]),
    ]) {
      const each = fromUrl({ headers, retry: { attempts: 1 } }, `http://127.0.0.1:${port}`);
      await each.getTuple(config).catch(() => {});
      await each.end();
    }
    server.close();
    expect(seen).toEqual(expect.arrayContaining(["a", "b", "c"]));
  });
});
