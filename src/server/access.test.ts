/** Who may do what: every RPC, operation and field, between tenants and within one. */
import { readFileSync, statSync } from "node:fs";
import http from "node:http";
import path from "node:path";
import { create, type DescField, type DescMessage, type Message } from "@bufbuild/protobuf";
import { Code, ConnectError, createClient, type Transport } from "@connectrpc/connect";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { ErrorDetailSchema } from "../../gen/checkpointd/v1/checkpoint_pb.js";
import { ThreadOrder, ThreadService } from "../../gen/checkpointd/v1/thread_service_pb.js";
import { ServerReflection } from "../../gen/grpc/reflection/v1/reflection_pb.js";
import { Health } from "../../gen/health/v1/health_pb.js";
import { type CallName, operations, streams } from "../protocol/operations.js";
import { createAuthFile, everything } from "../testing/auth_file.js";
import { captureLog } from "../testing/captured_log.js";
import { createClients, createTransport, make, protocols, ways } from "../testing/edge.js";
import { createDatabase, type TestDatabase } from "../testing/postgres.js";
import { createSessionTransport } from "../testing/session_transport.js";
import { startTestServer } from "../testing/test_server.js";
import type { Server } from "./server.js";

const all = ["read", "write", "delete", "lease", "prune", "copy", "admin"];
const auth = createAuthFile(
  { red: { schema: "red" }, blue: { schema: "blue" } },
  {
    red: { tenant: "red", grants: everything },
    blue: { tenant: "blue", grants: everything },
    mine: { tenant: "red", grants: [{ operations: all, threads: ["mine/*", "one"] }] },
    unread: {
      tenant: "red",
      grants: [{ operations: all.filter((each) => each !== "read"), threads: ["*"] }],
    },
    reader: { tenant: "red", grants: [{ operations: ["read"], threads: ["*"] }] },
    ops: { grants: everything },
  },
);
let database: TestDatabase;
let server: Server;
const captured = captureLog();
beforeAll(async () => {
  database = await createDatabase();
  server = await startTestServer(database.url, { authFile: auth.file, log: captured.log });
});
afterAll(async () => {
  await server?.drain();
  await database?.drop();
  auth.remove();
});

const checkpoint = (threadId: string) => ({
  threadId,
  checkpointId: "1",
  checkpointJson: '{"v": 4, "channel_versions": {"c": "1"}}',
  metadataJson: '{"run_id": "run"}',
  blobs: [{ channel: "c", version: "1", value: { type: "json", data: Buffer.from('"kept"') } }],
});

/** What a call tells: everything that its caller can see of it. */
async function told(transport: Transport, name: CallName, request: object): Promise<string> {
  const method = { localName: name, ...{ ...operations, ...streams }[name] };
  try {
    if (name in streams) {
      const input = (async function* () {
        yield request as never;
      })();
      const { message } = await transport.stream(
        method as never,
        undefined,
        undefined,
        undefined,
        input,
      );
      const messages = [];
      for await (const each of message) messages.push(each);
      return JSON.stringify(messages, plain);
    }
    const { message } = await transport.unary(
      method as never,
      undefined,
      undefined,
      undefined,
      request as never,
    );
    return JSON.stringify(message, plain);
  } catch (error) {
    const told = ConnectError.from(error);
    const details = told.findDetails(ErrorDetailSchema);
    return JSON.stringify([Code[told.code], told.rawMessage, details], plain);
  }
}
const plain = (key: string, value: unknown) =>
  typeof value === "bigint" ? `${value}` : key === "leaseToken" ? "a token" : value;

/**
 * Every field of every request. "thread": it names threads, and is tried below with those that are
 * not granted. Everything else has a reason not to.
 */
const fields: Record<CallName, Record<string, string>> = {
  getTuple: { thread_id: "thread", checkpoint_ns: "in it", checkpoint_id: "in it" },
  put: {
    thread_id: "thread",
    checkpoint_ns: "in it",
    checkpoint_id: "in it",
    parent_checkpoint_id: "in it",
    checkpoint_json: "content",
    metadata_json: "content",
    "blobs.channel": "content",
    "blobs.version": "content",
    "blobs.value.type": "content",
    "blobs.value.data": "content",
    lease_token: "secret",
  },
  putWrites: {
    thread_id: "thread",
    checkpoint_ns: "in it",
    checkpoint_id: "in it",
    task_id: "in it",
    task_path: "in it",
    "writes.idx": "content",
    "writes.channel": "content",
    "writes.value.type": "content",
    "writes.value.data": "content",
    lease_token: "secret",
  },
  putExtending: {
    "put.thread_id": "thread",
    "put.checkpoint_ns": "in it",
    "put.checkpoint_id": "in it",
    "put.parent_checkpoint_id": "in it",
    "put.checkpoint_json": "content",
    "put.metadata_json": "content",
    "put.blobs.channel": "content",
    "put.blobs.version": "content",
    "put.blobs.value.type": "content",
    "put.blobs.value.data": "content",
    "put.lease_token": "secret",
    "prefixes.blob_index": "in it",
    "prefixes.version": "in it",
    "prefixes.transaction_id": "in it",
    "prefixes.length": "in it",
    "prefixes.offset": "in it",
    "prefixes.head_length": "in it",
  },
  deleteThread: { thread_id: "thread" },
  list: {
    thread_id: "thread",
    checkpoint_ns: "in it",
    checkpoint_id: "in it",
    before_checkpoint_id: "in it",
    metadata_filter_json: "of what may be read",
    limit: "number",
    view: "form",
    "after.thread_id": "thread",
    "after.checkpoint_ns": "in it",
    "after.checkpoint_id": "in it",
    omit_unchanged: "form",
    max_value_bytes: "number",
    "only_values.channel": "in it",
    "only_values.task_id": "in it",
    "only_values.idx": "in it",
  },
  listPage: {},
  listThreads: {
    "filter.statuses": "of what may be read",
    "filter.thread_id_prefix": "prefix",
    "filter.metadata_filter_json": "of what may be read",
    "filter.updated_after.seconds": "of what may be read",
    "filter.updated_after.nanos": "of what may be read",
    "filter.updated_before.seconds": "of what may be read",
    "filter.updated_before.nanos": "of what may be read",
    "filter.graph": "of what may be read",
    order: "order",
    limit: "number",
    with_counts: "form",
    with_reasons: "form",
    examine_limit: "number",
    "after.thread_id": "thread",
    "after.update_time.seconds": "in it",
    "after.update_time.nanos": "in it",
  },
  getThread: { thread_id: "thread", with_counts: "form", with_reasons: "form" },
  getChannelHistory: {
    thread_id: "thread",
    checkpoint_ns: "in it",
    checkpoint_id: "in it",
    channels: "in it",
    with_seals: "form",
  },
  claimThreads: {
    owner: "a name that the principal's stands before",
    "lease_duration.seconds": "number",
    "lease_duration.nanos": "number",
    limit: "number",
    "grace.seconds": "number",
    "grace.nanos": "number",
    "filter.statuses": "of what may be leased",
    "filter.thread_id_prefix": "prefix",
    "filter.metadata_filter_json": "of what may be leased",
    "filter.updated_after.seconds": "of what may be leased",
    "filter.updated_after.nanos": "of what may be leased",
    "filter.updated_before.seconds": "of what may be leased",
    "filter.updated_before.nanos": "of what may be leased",
    "filter.graph": "of what may be leased",
    thread_id: "thread",
    except_thread_ids: "fewer of what may be leased",
  },
  renewClaim: {
    thread_id: "thread",
    lease_token: "secret",
    "lease_duration.seconds": "number",
    "lease_duration.nanos": "number",
  },
  releaseClaim: { thread_id: "thread", lease_token: "secret", force: "admin" },
  copyThread: { source_thread_id: "thread", target_thread_id: "thread" },
  deleteRuns: { run_ids: "all threads" },
  pruneThreads: {
    "filter.statuses": "of what may be pruned",
    "filter.thread_id_prefix": "prefix",
    "filter.metadata_filter_json": "of what may be pruned",
    "filter.updated_after.seconds": "of what may be pruned",
    "filter.updated_after.nanos": "of what may be pruned",
    "filter.updated_before.seconds": "of what may be pruned",
    "filter.updated_before.nanos": "of what may be pruned",
    "filter.graph": "of what may be pruned",
    thread_ids: "threads",
    keep_last: "number",
    delete: "form",
    "older_than.seconds": "number",
    "older_than.nanos": "number",
    dry_run: "form",
    after_thread_id: "thread",
  },
};
fields.listPage = {
  ...Object.fromEntries(
    Object.entries(fields.list).map(([field, reason]) => [`list.${field}`, reason]),
  ),
  max_tuples: "number",
  after_checkpoint_json: "content that the client has",
};

/** A request of each that `mine` may make, with `thread` in the place of its thread. */
const requests: Record<CallName, (thread: string) => object> = {
  getTuple: (threadId) => ({ threadId }),
  put: checkpoint,
  putWrites: (threadId) => ({
    threadId,
    checkpointId: "1",
    taskId: "t",
    writes: [{ idx: 0, channel: "c", value: { type: "json", data: Buffer.from("1") } }],
  }),
  putExtending: (threadId) => ({ put: checkpoint(threadId), prefixes: [] }),
  deleteThread: (threadId) => ({ threadId }),
  list: (threadId) => ({ threadId }),
  listPage: (threadId) => ({ list: { threadId } }),
  listThreads: (threadIdPrefix) => ({ filter: { threadIdPrefix }, order: ThreadOrder.BY_ID }),
  getThread: (threadId) => ({ threadId }),
  getChannelHistory: (threadId) => ({ threadId, channels: ["c"] }),
  claimThreads: (threadId) => ({ threadId, owner: "w" }),
  renewClaim: (threadId) => ({ threadId, leaseToken: "none" }),
  releaseClaim: (threadId) => ({ threadId, leaseToken: "none" }),
  copyThread: (sourceThreadId) => ({ sourceThreadId, targetThreadId: "mine/copy" }),
  deleteRuns: () => ({ runIds: ["run"] }),
  pruneThreads: (thread) => ({
    threadIds: [thread],
    strategy: { case: "delete", value: true },
    dryRun: true,
  }),
};
const names = Object.keys(requests) as CallName[];
const schemaOf = (name: CallName): DescMessage => ({ ...operations, ...streams })[name].input;

function leaves(message: DescMessage, at = ""): string[] {
  return message.fields.flatMap((field: DescField) =>
    field.message && field.fieldKind !== "map"
      ? leaves(field.message, `${at}${field.name}.`)
      : [at + field.name],
  );
}

describe("every field of every request", () => {
  it.each(names)("of %s is judged or has a reason not to be", (name) => {
    expect(Object.keys(fields[name]).sort()).toEqual(leaves(schemaOf(name)).sort());
  });

  const judged = names.flatMap((name) =>
    Object.entries(fields[name])
      .filter(([, reason]) => /^(threads?|prefix)$/.test(reason))
      .map(([field, reason]) => [name, field, reason] as const),
  );
  it.each(judged)("%s: %s with what is not granted is denied, there or not", async (...tried) => {
    const [name, field, reason] = tried;
    await told(transportOf("red", "put"), "put", checkpoint("other/there"));
    const answers = new Set<string>();
    for (const thread of ["other/there", "other/none", "min", "MINE/x", "mine", "one/", "oneX"]) {
      const request = create(schemaOf(name), requests[name]("mine/x") as never);
      set(request, schemaOf(name), field.split("."), reason === "threads" ? [thread] : thread);
      answers.add(await told(transportOf("mine", name), name, request));
    }
    const [answer = ""] = answers;
    expect([...answers]).toHaveLength(1);
    expect(answer).toMatch(/^\["PermissionDenied",".*the credential may not/);
    // And what is granted is not.
    const granted = create(schemaOf(name), requests[name]("mine/x") as never);
    expect(await told(transportOf("mine", name), name, granted)).not.toMatch(/PermissionDenied/);
  });
});

/** Sets a field, by the path of its names. Parts of a oneof beside it are left as they are. */
function set(message: Message, schema: DescMessage, path: string[], value: unknown): void {
  const [name, ...rest] = path;
  const field = schema.fields.find((each) => each.name === name) as DescField;
  const target = message as unknown as Record<string, unknown>;
  if (rest.length === 0) {
    target[field.localName] = value;
    // A prune takes names or a filter, a claim a name or a filter.
    if (field.name === "thread_id_prefix") return;
    if (field.name === "thread_ids" || field.name === "thread_id") return;
    return;
  }
  target[field.localName] ??= create(field.message as DescMessage);
  if (field.name === "filter") {
    if ("threadIds" in target) target.threadIds = [];
    if ("owner" in target) target.threadId = "";
  }
  set(target[field.localName] as Message, field.message as DescMessage, rest, value);
}

const transports = new Map<string, Transport>();
/** Over sessions for what only they carry, and by RPC what they do not. */
function transportOf(principal: string, name: CallName): Transport {
  const isOfSession = name === "listPage" || name === "putExtending";
  const key = `${principal} ${isOfSession}`;
  const known = transports.get(key);
  if (known) return known;
  const carrier = createTransport("connect", server.url, auth.keys[principal]);
  const transport = isOfSession ? createSessionTransport(carrier) : carrier;
  transports.set(key, transport);
  return transport;
}

describe("two tenants", () => {
  it.each(names)("%s tells one nothing of what the other has", async (name) => {
    await told(transportOf("red", "put"), "put", checkpoint("shared"));
    const of = async (thread: string) =>
      (await told(transportOf("blue", name), name, requests[name](thread))).replaceAll(
        thread,
        "THREAD",
      );
    // Written where they do not exist for blue, they are made anew: asked for once each.
    const shared = await of("shared");
    const none = await of(`none-${name}`);
    expect(shared.replace(/"\d{2,}"/g, "N")).toEqual(none.replace(/"\d{2,}"/g, "N"));
    expect(await told(transportOf("red", "getTuple"), "getTuple", { threadId: "shared" })).toMatch(
      /channel_versions/,
    );
    await told(transportOf("blue", "deleteThread"), "deleteThread", { threadId: "shared" });
    for (const thread of [`none-${name}`, "mine/copy"]) {
      await told(transportOf("blue", "deleteThread"), "deleteThread", { threadId: thread });
    }
  });

  it("with the same names under load never meet", { timeout: 60_000 }, async () => {
    const tenants = ["red", "blue"] as const;
    const ids = Array.from({ length: 5 }, (_, i) => `load-${i}`);
    let crossings = 0;
    let reads = 0;
    const work = async (
      name: (typeof tenants)[number],
      way: "connect" | "session",
      seed: number,
    ) => {
      const client = createClients(server.url, auth.keys[name])[way];
      const foreign = name === "red" ? "blue's" : "red's";
      const look = (seen: unknown) => {
        reads++;
        if (JSON.stringify(seen, plain).includes(foreign)) crossings++;
      };
      for (let i = 0; i < 100; i++) {
        const threadId = ids[(i * seed) % ids.length] as string;
        const mark = `"of": "${name}'s"`;
        await client.put({
          threadId,
          checkpointId: `${seed}-${i % 7}`,
          checkpointJson: `{"v": 4, ${mark}, "channel_versions": {"c": "${i % 3}"}}`,
          metadataJson: `{${mark}}`,
          blobs: [
            {
              channel: "c",
              version: `${i % 3}`,
              value: { type: `${name}'s`, data: new Uint8Array(9) },
            },
          ],
        });
        await client.putWrites({
          threadId,
          checkpointId: `${seed}-${i % 7}`,
          taskId: `${name}'s`,
          writes: [
            { idx: 0, channel: `${name}'s`, value: { type: "json", data: new Uint8Array(1) } },
          ],
        });
        look(await client.getTuple({ threadId }));
        if (i % 10 === 0) {
          for await (const tuple of client.list(i % 20 === 0 ? { threadId } : { limit: 20 }))
            look(tuple);
        }
        if (i % 33 === 32) await client.deleteThread({ threadId });
      }
    };
    await Promise.all(
      tenants.flatMap((name) =>
        [2, 3, 4, 7].map((seed) => work(name, seed % 2 ? "connect" : "session", seed)),
      ),
    );
    expect({ crossings, enough: reads > 800 }).toEqual({ crossings: 0, enough: true });
  });

  it("is listed alone", async () => {
    await told(transportOf("red", "put"), "put", checkpoint("of red"));
    await told(transportOf("blue", "put"), "put", checkpoint("of blue"));
    for (const name of ["list", "listThreads"] as const) {
      const listed = await told(transportOf("blue", name), name, {});
      expect(listed).toContain("of blue");
      expect(listed).not.toContain("of red");
      expect(await told(transportOf("ops", name), name, {})).not.toMatch(/of (red|blue)/);
    }
  });
});

describe("who does not say who it is", () => {
  it.each(ways)("is UNAUTHENTICATED over %s", async (way) => {
    for (const key of [undefined, "ckpd_nobody", "x".repeat(10_000), "a.b.c"]) {
      const clients = createClients(server.url, key);
      const request = { threadId: "shared" };
      for (const rpc of ["getTuple", "deleteThread", "list"] as const) {
        const call = make(clients[way], { rpc, request });
        await expect(call).rejects.toMatchObject({ code: Code.Unauthenticated });
      }
    }
  });

  it("is so with two keys, of which Node shows the first only", async () => {
    const headers = ["red", "blue"].flatMap((name) => [
      "authorization",
      `Bearer ${auth.keys[name]}`,
    ]);
    const { host, hostname, port } = new URL(server.url);
    const answer = await new Promise<http.IncomingMessage>((resolve, reject) => {
      const path = "/checkpointd.v1.CheckpointService/GetTuple";
      const all = ["host", host, "content-type", "application/json", ...headers];
      http
        .request({ hostname, port, path, method: "POST", headers: all })
        .on("response", resolve)
        .on("error", reject)
        .end('{"threadId":"shared"}');
    });
    expect(answer.statusCode).toBe(401);
    answer.destroy();
  });

  it("is so with a GET, which has no body, and before its body is there", async () => {
    const path = `${server.url}/checkpointd.v1.CheckpointService/GetTuple`;
    const message = encodeURIComponent('{"threadId":"shared"}');
    const get = await fetch(`${path}?connect=v1&encoding=json&message=${message}`);
    expect(get.status).toBe(401);
    // A body that never ends is not waited for.
    const body = new ReadableStream({
      start: (controller) => controller.enqueue(Buffer.from("{")),
    });
    const init = { method: "POST", body, duplex: "half" } as RequestInit;
    const headers = { "content-type": "application/json" };
    expect((await fetch(path, { ...init, headers })).status).toBe(401);
  });

  it("may ask for the server's health, and follow it no more than ask for its services", async () => {
    for (const protocol of protocols) {
      const health = createClient(Health, createTransport(protocol, server.url));
      expect((await health.check({})).status).toBe(1);
      const watch = health.watch({})[Symbol.asyncIterator]();
      await expect(watch.next()).rejects.toMatchObject({ code: Code.Unauthenticated });
    }
    const reflection = createClient(ServerReflection, createTransport("grpc", server.url));
    const asked = (async function* () {
      yield { messageRequest: { case: "listServices" as const, value: "" } };
    })();
    const services = reflection.serverReflectionInfo(asked)[Symbol.asyncIterator]();
    await expect(services.next()).rejects.toMatchObject({ code: Code.Unauthenticated });
    expect((await fetch(`${server.url}/healthz`)).status).toBe(200);
  });
});

it("has its audit log in a file of its own, which its owner alone reads", async () => {
  const auditLog = path.join(path.dirname(auth.file), "audit.jsonl");
  const own = await startTestServer(database.url, { authFile: auth.file, auditLog });
  const transport = createTransport("connect", own.url, auth.keys.mine);
  await told(transport, "deleteThread", { threadId: "mine/audited" });
  await told(transport, "deleteThread", { threadId: "other\u202e\n" });
  await own.drain();
  const lines = readFileSync(auditLog, "utf8").trim().split("\n");
  expect(lines.map((line) => JSON.parse(line))).toMatchObject([
    { action: "loadAuthFile", principals: 6, result: "ok" },
    { principal: "mine", action: "deleteThread", threads: ["mine/audited"], result: "ok" },
    { action: "deleteThread", threads: ["other\u202e\n"], result: "NOT_GRANTED" },
  ]);
  expect(statSync(auditLog).mode & 0o777).toBe(0o600);
});

it("has no tenant in the server's own schema", async () => {
  const wrong = createAuthFile({ green: { schema: "public" } }, { green: { grants: everything } });
  await expect(startTestServer(database.url, { authFile: wrong.file })).rejects.toThrow(
    'tenants.green.schema: "public" is the server\'s own schema',
  );
  wrong.remove();
});

describe("a principal", () => {
  it("does what it is granted and nothing else", async () => {
    await told(transportOf("red", "put"), "put", checkpoint("shared"));
    const answers = await Promise.all(
      names.map(async (name) => [
        name,
        /PermissionDenied/.test(
          await told(transportOf("reader", name), name, requests[name]("shared")),
        ),
      ]),
    );
    const mayRead = [
      "getTuple",
      "list",
      "listPage",
      "listThreads",
      "getThread",
      "getChannelHistory",
    ];
    expect(Object.fromEntries(answers)).toEqual(
      Object.fromEntries(names.map((name) => [name, !mayRead.includes(name)])),
    );
  });

  it("is the owner of its leases", async () => {
    const threads = createClient(
      ThreadService,
      createTransport("connect", server.url, auth.keys.mine),
    );
    await told(transportOf("mine", "put"), "put", checkpoint("mine/leased"));
    const filter = { threadIdPrefix: "mine/", statuses: [] };
    const claimed = await threads.claimThreads({ owner: "w1", threadId: "mine/leased" });
    expect(claimed.threads).toHaveLength(1);
    const { thread } = await threads.getThread({ threadId: "mine/leased" });
    expect(thread?.claim?.owner).toBe("mine/w1");
    const again = await threads.claimThreads({ owner: "w2", filter, grace: { seconds: 0n } });
    expect(again.threads.map((each) => each.thread?.threadId)).not.toContain("mine/leased");
  });

  it("has its denials and deletions in the audit log", async () => {
    await told(transportOf("mine", "deleteThread"), "deleteThread", { threadId: "mine/gone" });
    await told(transportOf("mine", "getTuple"), "getTuple", { threadId: "other/one" });
    const lines = captured.lines().filter(({ msg }) => msg === "audit");
    expect(lines).toContainEqual(
      expect.objectContaining({
        principal: "mine",
        tenant: "red",
        credential: "key mine",
        grant: 0,
        action: "deleteThread",
        threads: ["mine/gone"],
        result: "ok",
        peer: expect.stringContaining("127.0.0.1"),
      }),
    );
    expect(lines).toContainEqual(
      expect.objectContaining({
        action: "getTuple",
        threads: ["other/one"],
        result: "NOT_GRANTED",
      }),
    );
  });
});

describe("who may do everything but read", () => {
  const asks: [CallName, (threadId: string) => object][] = [
    ["claimThreads", (threadId) => ({ owner: "o", leaseMs: 1_000n, threadId })],
    [
      "claimThreads",
      (threadIdPrefix) => ({ owner: "o", leaseMs: 1_000n, filter: { threadIdPrefix } }),
    ],
    ["renewClaim", (threadId) => ({ threadId, leaseToken: "t", leaseMs: 1_000n })],
    ["releaseClaim", (threadId) => ({ threadId, leaseToken: "t" })],
    ["releaseClaim", (threadId) => ({ threadId, force: true })],
    ["copyThread", (targetThreadId) => ({ sourceThreadId: "none", targetThreadId })],
    ["copyThread", (sourceThreadId) => ({ sourceThreadId, targetThreadId: "to" })],
    ["pruneThreads", (threadId) => ({ threadIds: [threadId], keepLast: 1, dryRun: true })],
    ["deleteRuns", () => ({ runIds: ["run"], dryRun: true })],
  ];

  it.each(asks)("learns from %s of no thread that it is there", async (name, ask) => {
    const red = createClients(server.url, auth.keys.red);
    await red.connect.put(checkpoint("there"));
    const transport = createTransport("connect", server.url, auth.keys.unread);
    const [there, notThere] = await Promise.all([
      told(transport, name, ask("there")),
      told(transport, name, ask("nowhere")),
    ]);
    expect(there).toBe(notThere);
    expect(there).toContain("PermissionDenied");
  });

  it("still writes and deletes", async () => {
    const { connect } = createClients(server.url, auth.keys.unread);
    await connect.put(checkpoint("blind"));
    await connect.deleteThread({ threadId: "blind" });
  });
});
