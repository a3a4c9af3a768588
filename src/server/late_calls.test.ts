/**
 * What lay in a server that stood still is not carried out late, when its client has gone elsewhere
 * meanwhile: a write that another server acknowledged and deleted would come back.
 */
import { once } from "node:events";
import { create, type MessageInitShape, toBinary, toJsonString } from "@bufbuild/protobuf";
import { createClient } from "@connectrpc/connect";
import pg from "pg";
import { afterAll, afterEach, beforeAll, expect, test } from "vitest";
import {
  CheckpointService,
  PutWritesRequestSchema,
} from "../../gen/checkpointd/v1/checkpoint_service_pb.js";
import { OpenSessionRequestSchema } from "../../gen/checkpointd/v1/session_service_pb.js";
import { block, blocked, untilBlocked } from "../testing/blocking.js";
import { createClients, createTransport, envelope, postJson, ways } from "../testing/edge.js";
import { createDatabase, type TestDatabase } from "../testing/postgres.js";
import { openUpgraded, type RawStream } from "../testing/raw_session.js";
import { type Relay, startRelay } from "../testing/relay.js";
import { type ServeProcess, startServe } from "../testing/serve_process.js";

let database: TestDatabase;
let sql: pg.Client;
let server: ServeProcess;
let relay: Relay;
beforeAll(async () => {
  database = await createDatabase();
  sql = new pg.Client({ connectionString: database.url });
  await sql.connect();
  server = await startServe(["--database-url", database.url]);
  await server.printed("is ready");
  relay = await startRelay(() => Number(new URL(server.url).port));
});
afterEach(() => {
  server.child.kill("SIGCONT");
});
afterAll(async () => {
  relay.close();
  await server.stop();
  await sql.end();
  await database.drop();
});

const requestOf = (threadId: string) =>
  create(PutWritesRequestSchema, {
    threadId,
    checkpointId: "1",
    taskId: "t",
    writes: [{ idx: 0, channel: "c", value: { type: "t" } }],
  });

async function openSession(): Promise<RawStream> {
  const opened = openUpgraded(relay.url);
  await once(opened.stream, "data");
  opened.stream.resume();
  return opened;
}

let id = 0;
function write(
  stream: RawStream["stream"],
  operation: NonNullable<MessageInitShape<typeof OpenSessionRequestSchema>["operation"]>,
): void {
  const message = create(OpenSessionRequestSchema, { id: ++id, operation });
  stream.write(envelope(toBinary(OpenSessionRequestSchema, message)));
}

/** Resolves when what is sent has come to the server, or to the system it runs on. */
async function passOn(send: () => void): Promise<void> {
  const { in: before } = relay.bytes();
  send();
  await expect.poll(() => relay.bytes().in).toBeGreaterThan(before);
  // What the relay has read it passes on within the same tick.
  await new Promise(setImmediate);
}

/** Opens a connection, and answers how a write is sent on it, of which nobody awaits the answer. */
type Open = () => Promise<(threadId: string) => void>;

const throughClient =
  (way: (typeof ways)[number]): Open =>
  async () => {
    const client = createClients(relay.url)[way];
    await client.getTuple({ threadId: "none" });
    return (threadId) => void client.putWrites(requestOf(threadId)).catch(() => {});
  };

const opens: [string, Open][] = [
  ...ways.map((way): [string, Open] => [way, throughClient(way)]),
  [
    "an upgraded session",
    async () => {
      const { stream } = await openSession();
      return (threadId) => write(stream, { case: "putWrites", value: requestOf(threadId) });
    },
  ],
  [
    "HTTP/1.1",
    async () => (threadId) => {
      const json = toJsonString(PutWritesRequestSchema, requestOf(threadId));
      void postJson(relay.url, "PutWrites", json).catch(() => {});
    },
  ],
];

/** How a client goes. */
const goings: Record<string, () => unknown> = {
  "is reset": () => relay.cut("reset"),
  "is closed": () => relay.cut("close"),
};

let number = 0;
for (const [going, go] of Object.entries(goings)) {
  test.each(opens)(`a write of a client whose connection ${going}: %s`, async (_, open) => {
    const threadId = `late-${number++}`;
    const send = await open();
    server.child.kill("SIGSTOP");
    await passOn(() => send(threadId));
    go();
    server.child.kill("SIGCONT");
    expect(await storedBy(threadId)).toBe(0);
  });
}

test("a deletion whose client has gone, and which would take what was stored since", async () => {
  const threadId = "late-deletion";
  const { stream } = await openSession();
  server.child.kill("SIGSTOP");
  await passOn(() => write(stream, { case: "deleteThread", value: { threadId } }));
  relay.cut("reset");
  await sql.query("insert into checkpoint_writes values ($1, '', '1', 't', 0, 'c', null, '')", [
    threadId,
  ]);
  server.child.kill("SIGCONT");
  expect(await storedBy(threadId)).toBe(1);
});

test("calls that waited for a connection when the server stood still", async () => {
  const { stream } = await openSession();
  const blocker = await block(database.url, "lock table checkpoint_writes");
  const calls = Array.from({ length: 400 }, (_, i) => requestOf(`waiting-${i}`));
  await passOn(() => {
    for (const value of calls) write(stream, { case: "putWrites", value });
  });
  // Each of few connections has a statement with few of the calls.
  await expect.poll(async () => (await blocked(sql)).length).toBeGreaterThan(1);
  server.child.kill("SIGSTOP");
  relay.cut("reset");
  await blocker.release();
  await untilBlocked(sql, 0);
  server.child.kill("SIGCONT");
  expect(await storedBy("waiting-0")).toBe(1);
  expect(await storedBy("waiting-399")).toBe(0);
});

/** Writes of a thread that are stored once the server has read what had come to it before. */
async function storedBy(threadId: string): Promise<number> {
  const later = createClient(CheckpointService, createTransport("connect", server.url));
  for (let i = 0; i < 5; i++) await later.getTuple({ threadId });
  const { rows } = await sql.query("select from checkpoint_writes where thread_id = $1", [
    threadId,
  ]);
  return rows.length;
}
