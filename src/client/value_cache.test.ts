/** Of large values that have most of the one before, only the rest is sent. */
import { Code } from "@connectrpc/connect";
import { MemorySaver } from "@langchain/langgraph-checkpoint";
import { afterAll, beforeAll, expect, it, onTestFinished } from "vitest";
import { ConnectSaver, LEASE_TOKEN } from "../index.js";
import { operationFields } from "../protocol/operations.js";
import { startEdge } from "../testing/edge.js";
import { type SessionAnswer, startForeignSessions } from "../testing/foreign_sessions.js";
import { createRandom } from "../testing/random.js";
import { startRelay } from "../testing/relay.js";

let edge: Awaited<ReturnType<typeof startEdge>>;
beforeAll(async () => {
  edge = await startEdge();
});
afterAll(() => edge?.stop());

/** Puts a checkpoint whose channels have these values, each new. */
function put(saver: ConnectSaver, thread: string, values: Record<string, unknown>, lease = "") {
  count++;
  const id = String(count).padStart(9, "0");
  const versions = Object.fromEntries(
    Object.keys(values).map((channel) => [channel, saver.getNextVersion(count)]),
  );
  return saver.put(
    { configurable: { thread_id: thread, ...(lease && { [LEASE_TOKEN]: lease }) } },
    { v: 4, id, ts: "", channel_values: values, channel_versions: versions, versions_seen: {} },
    { source: "loop", step: count, parents: {} },
    versions,
  );
}
let count = 0;

const latest = async (saver: ConnectSaver, thread: string) =>
  (await saver.getTuple({ configurable: { thread_id: thread } }))?.checkpoint.channel_values;

/** How often each operation was answered on the sessions of a saver with that request id. */
function operations(requestId: string): Record<string, number> {
  const counts: Record<string, number> = {};
  for (const line of edge.captured.lines()) {
    if (!String(line.requestId).startsWith(`${requestId}/`)) continue;
    const [, operation] = String(line.rpc).split("/") as [string, string];
    const key = line.code === "Ok" ? operation : `${operation} ${line.code}`;
    counts[key] = (counts[key] ?? 0) + 1;
  }
  return counts;
}

const message = (i: number) => ({ id: `message-${i}`, content: `é漢😀 ${i} `.repeat(50) });
const messages = (length: number) => Array.from({ length }, (_, i) => message(i));

it("sends a conversation once, and stores every step whole", async () => {
  const relay = await startRelay(() => Number(edge.server.port));
  onTestFinished(() => relay.close());
  const saver = ConnectSaver.fromUrl(relay.url);
  for (let i = 1; i <= 120; i++) await put(saver, "conversation", { messages: messages(i), i });
  expect(await latest(saver, "conversation")).toEqual({ messages: messages(120), i: 120 });
  let length = 120;
  for await (const { checkpoint } of saver.list({ configurable: { thread_id: "conversation" } })) {
    expect(checkpoint.channel_values).toEqual({ messages: messages(length), i: length });
    length--;
  }
  expect(length).toBe(0);
  await saver.end();
  const { rows } = await edge.sql.query(
    "select sum(octet_length(blob))::int as bytes from checkpoint_blobs where thread_id = 'conversation'",
  );
  // All steps up to 16 KiB, and then little more than the messages.
  expect(rows[0].bytes).toBeGreaterThan(4_000_000);
  expect(relay.bytes().in).toBeLessThan(500_000);
});

it("sends a conversation in msgpack once, whose length stands before it", async () => {
  const relay = await startRelay(() => Number(edge.server.port));
  onTestFinished(() => relay.close());
  const saver = ConnectSaver.fromUrl(relay.url);
  const packed = (length: number) =>
    new Uint8Array(
      Buffer.concat([
        Buffer.from(length < 16 ? [0x90 | length] : [0xdc, 0, length]),
        ...messages(length).map((each) => Buffer.from(JSON.stringify(each))),
      ]),
    );
  for (let i = 1; i <= 120; i++) await put(saver, "msgpack", { messages: packed(i) });
  let length = 120;
  for await (const { checkpoint } of saver.list({ configurable: { thread_id: "msgpack" } })) {
    const found = checkpoint.channel_values.messages as Uint8Array;
    expect(Buffer.compare(found, packed(length--))).toBe(0);
  }
  expect(length).toBe(0);
  await saver.end();
  expect(relay.bytes().in).toBeLessThan(500_000);
});

const seed = Date.now() % 1_000_000;

it(`stores what was put, whatever changed, by several savers at a time, seed ${seed}`, async () => {
  const random = createRandom(seed);
  const pick = <T>(values: readonly T[]): T => values[random(values.length)] as T;
  // The last has room for few values.
  const savers = [{}, {}, { valueCacheBytes: 240_000 }].map((options) =>
    ConnectSaver.fromUrl(edge.server.url, options),
  );
  const threads = ["random-1", "random-2"];
  const text = (length: number) =>
    Array.from({ length }, () => pick(["a", "é", "漢", "😀", "\n", '"'])).join("");
  const states = new Map(
    threads.map((thread) => [
      thread,
      { list: [text(9_000)], text: "", bytes: new Uint8Array(), window: new Uint8Array() },
    ]),
  );
  for (let i = 0; i < 150; i++) {
    const thread = pick(threads);
    let { list, text: long, bytes, window } = states.get(thread)!;
    const what = random(6);
    if (what === 0) list = list.slice(0, random(list.length) + 1);
    else if (what === 1) list = list.with(random(list.length), text(random(3_000)));
    else list = [...list, text(random(4_000))];
    long = pick([long, long + text(random(9_000)), long.slice(0, random(long.length + 1)), ""]);
    bytes = pick([
      bytes,
      new Uint8Array(Buffer.concat([bytes, Buffer.alloc(random(20_000), random(256))])),
      new Uint8Array(bytes.subarray(0, random(bytes.length + 1))),
    ]);
    // Moves, loses its beginning, or gets another one; sometimes it consists of few different bytes.
    const head = Buffer.alloc(random(300), random(256));
    const more = Buffer.alloc(random(20_000), text(1 + random(200)));
    window = new Uint8Array(
      Buffer.concat([head, window.subarray(random(pick([10, 3_000, 60_000]))), more]),
    );
    const state = { list, text: long, bytes, window };
    states.set(thread, state);
    const saver = pick(savers);
    if (random(20) === 0) await saver.deleteThread(thread);
    await put(saver, thread, state);
    const found = (await latest(pick(savers), thread)) as typeof state;
    expect({ list: found.list, text: found.text }).toEqual({ list, text: long });
    expect(Buffer.compare(found.bytes, bytes)).toBe(0);
    expect(Buffer.compare(found.window, window)).toBe(0);
  }
  for (const saver of savers) await saver.end();
});

it("sends whole what is no longer stored, and goes on from there", async () => {
  const headers = { "x-request-id": "gone" };
  const saver = ConnectSaver.fromUrl(edge.server.url, { headers });
  await put(saver, "gone", { messages: messages(100) });
  await put(saver, "gone", { messages: messages(101) });
  await edge.sql.query("delete from checkpoint_blobs where thread_id = 'gone'");
  await put(saver, "gone", { messages: messages(102) });
  expect(await latest(saver, "gone")).toEqual({ messages: messages(102) });
  await put(saver, "gone", { messages: messages(103) });
  expect(await latest(saver, "gone")).toEqual({ messages: messages(103) });
  await saver.end();
  expect(operations("gone")).toEqual({
    putExtending: 4,
    "putExtending FailedPrecondition": 1,
    getTuple: 2,
  });
});

it("keeps the values of many threads apart, and no more of them than it may", async () => {
  const headers = { "x-request-id": "many" };
  const saver = ConnectSaver.fromUrl(edge.server.url, { headers, valueCacheBytes: 500_000 });
  for (let step = 0; step < 3; step++) {
    await Promise.all(
      Array.from({ length: 20 }, (_, i) =>
        put(saver, `apart-${i}`, { messages: [{ i }, ...messages(60 + step)] }),
      ),
    );
  }
  for (let i = 0; i < 20; i++) {
    expect(await latest(saver, `apart-${i}`)).toEqual({ messages: [{ i }, ...messages(62)] });
  }
  await saver.end();
});

it.each([
  ["a small value", { messages: messages(10) }, {}],
  ["a value too large to keep", { messages: messages(100) }, { valueCacheBytes: 400_000 }],
  ["anything without a cache", { messages: messages(100) }, { valueCacheBytes: 0 }],
])("sends %s as it is", async (name, values, options) => {
  const requestId = name.replaceAll(" ", "-");
  const saver = ConnectSaver.fromUrl(edge.server.url, {
    ...options,
    headers: { "x-request-id": requestId },
  });
  await put(saver, name, values);
  await put(saver, name, values);
  expect(await latest(saver, name)).toEqual(values);
  await saver.end();
  expect(operations(requestId)).toEqual({ put: 2, getTuple: 1 });
});

it("puts under a lease without it", async () => {
  const saver = ConnectSaver.fromUrl(edge.server.url, { headers: { "x-request-id": "leased" } });
  await put(saver, "leased", { messages: messages(100) });
  const [lease] = await saver.threads.claim({ owner: "me", threadId: "leased", leaseMs: 60_000 });
  const { token = "" } = lease ?? {};
  await put(saver, "leased", { messages: messages(101) }, token);
  await put(saver, "leased", { messages: messages(102) }, token);
  expect(await latest(saver, "leased")).toEqual({ messages: messages(102) });
  await saver.threads.release("leased", token);
  await saver.end();
  expect(operations("leased")).toMatchObject({ putExtending: 1, put: 2 });
});

it("stores what a serde wrote, though it writes the next value into the same memory", async () => {
  const memory = new Uint8Array(100_000);
  const serde = {
    async dumpsTyped(value: string): Promise<[string, Uint8Array]> {
      const { written } = new TextEncoder().encodeInto(value, memory);
      return ["text", memory.subarray(0, written)];
    },
    async loadsTyped(_: string, data: Uint8Array | string) {
      return typeof data === "string" ? data : new TextDecoder().decode(data);
    },
  };
  const saver = ConnectSaver.fromUrl(edge.server.url, { serde });
  await put(saver, "memory", { text: "a".repeat(50_000) });
  await put(saver, "memory", { text: "b".repeat(50_000) });
  expect(await latest(saver, "memory")).toEqual({ text: "b".repeat(50_000) });
  await saver.end();
});

it("sends the whole value where the stored one was lost meanwhile", async () => {
  const seen: string[] = [];
  const url = await startForeignSessions(function* ({ id, operation }) {
    if (operation.case !== "putExtending") throw new Error(`unexpected: ${operation.case}`);
    const { prefixes } = operation.value;
    seen.push(prefixes.length > 0 ? "prefix" : "whole");
    const lost = { code: Code.FailedPrecondition, message: "", detail: { reason: "NOT_STORED" } };
    if (prefixes.length > 0) yield { id, result: { case: "error", value: lost } };
    else yield { id, result: { case: "putExtending", value: { transactionId: "7" } } };
  });
  const saver = ConnectSaver.fromUrl(url, { serde: new MemorySaver().serde });
  await put(saver, "lost", { messages: messages(100) });
  await put(saver, "lost", { messages: messages(101) });
  expect(seen).toEqual(["whole", "prefix", "whole"]);
  await saver.end();
});

it("sends what moved whole to a server whose sessions would overlook where it is", async () => {
  const seen: [string | undefined, number][] = [];
  const url = await startForeignSessions(
    function* ({ id, operation }): Generator<SessionAnswer> {
      const { value } = operation;
      seen.push([operation.case, value && "prefixes" in value ? value.prefixes.length : 0]);
      if (operation.case === "put") yield { id, result: { case: "put", value: {} } };
      else yield { id, result: { case: "putExtending", value: { transactionId: "7" } } };
    },
    {},
    Object.values(operationFields),
  );
  const saver = ConnectSaver.fromUrl(url, { serde: new MemorySaver().serde });
  await put(saver, "older", { messages: messages(100) });
  await put(saver, "older", { messages: [{ id: "another" }, ...messages(100)] });
  await put(saver, "older", { messages: messages(101) });
  expect(seen).toEqual([
    ["putExtending", 0],
    ["put", 0],
    ["putExtending", 1],
  ]);
  await saver.end();
});

it("puts without it where the server's sessions do not know it", async () => {
  const seen: (string | undefined)[] = [];
  const url = await startForeignSessions(
    function* ({ id, operation }) {
      seen.push(operation.case);
      yield { id, result: { case: "put", value: {} } };
    },
    {},
    ["get_tuple", "put"],
  );
  const saver = ConnectSaver.fromUrl(url, { serde: new MemorySaver().serde });
  await put(saver, "older", { messages: messages(100) });
  await put(saver, "older", { messages: messages(101) });
  expect(seen).toEqual(["put", "put"]);
  await saver.end();
});
