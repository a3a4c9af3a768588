/**
 * A server to be called wrongly: clients of every protocol and of sessions, and a look at what they are told,
 * at what is stored and at what is logged.
 */
import { create, type DescMessage, type MessageInitShape, toJsonString } from "@bufbuild/protobuf";
import {
  type Client,
  Code,
  ConnectError,
  createClient,
  type Interceptor,
  type Transport,
} from "@connectrpc/connect";
import {
  createConnectTransport,
  createGrpcTransport,
  createGrpcWebTransport,
  Http2SessionManager,
} from "@connectrpc/connect-node";
import pg from "pg";
import { expect } from "vitest";
import { ErrorDetailSchema } from "../../gen/checkpointd/v1/checkpoint_pb.js";
import {
  CheckpointService,
  type DeleteThreadRequestSchema,
  type GetTupleRequestSchema,
  type ListRequestSchema,
  type PutRequestSchema,
  type PutWritesRequestSchema,
} from "../../gen/checkpointd/v1/checkpoint_service_pb.js";
import type { ErrorReason } from "../errors.js";
import type { ServerOptions } from "../server/server.js";
import { captureLog } from "./captured_log.js";
import { createDatabase } from "./postgres.js";
import { createSessionTransport } from "./session_transport.js";
import { startTestServer } from "./test_server.js";

/** The protocols of calls over HTTP, as a client of `@connectrpc/connect-node` names them. */
export const protocols = ["connect", "connect-json", "grpc", "grpc-web"] as const;
export type Protocol = (typeof protocols)[number];

/**
 * Sessions, as the server carries them: straight on the HTTP/2 stream for Connect, and through
 * connect-es for the other protocols.
 */
export const sessions = ["session", "session-grpc"] as const;

/**
 * Every way to the operations of CheckpointService; a session has a List page by page. (What is
 * below the operations, HTTP statuses, headers, compression and JSON, a session does not have;
 * tests of it name `protocols`, or post.)
 */
export const ways = [...protocols, ...sessions] as const;
export type Way = (typeof ways)[number];

/** A request of one of the five RPCs. */
export type Call =
  | { rpc: "getTuple"; request: MessageInitShape<typeof GetTupleRequestSchema> }
  | { rpc: "put"; request: MessageInitShape<typeof PutRequestSchema> }
  | { rpc: "putWrites"; request: MessageInitShape<typeof PutWritesRequestSchema> }
  | { rpc: "list"; request: MessageInitShape<typeof ListRequestSchema> }
  | { rpc: "deleteThread"; request: MessageInitShape<typeof DeleteThreadRequestSchema> };

/** What a refused call is told. The detail is compared whole. */
export interface Refusal {
  code: Code;
  reason: ErrorReason;
  field?: string;
  limit?: number;
}

/** Stands in every thread id and value of these tests; neither log nor error may hold it. */
export const secret = "s3cr3t";

/**
 * Creates a transport to a server by the name of its protocol, over an HTTP/2 connection of
 * its own, with an API key where one is given.
 */
export function createTransport(protocol: Protocol, baseUrl: string, key?: string): Transport {
  // In MB. While more than this waits to be sent, and Node's default is 10, Node's client
  // answers the headers of every response with a reset (ENHANCE_YOUR_CALM).
  const sessionManager = new Http2SessionManager(baseUrl, {}, { maxSessionMemory: 1024 });
  const bearer: Interceptor = (next) => (request) => {
    request.header.set("authorization", `Bearer ${key}`);
    return next(request);
  };
  const interceptors = key === undefined ? [] : [bearer];
  const common = { baseUrl, sessionManager, interceptors, httpVersion: "2" as const };
  switch (protocol) {
    case "grpc":
      return createGrpcTransport(common);
    case "grpc-web":
      return createGrpcWebTransport(common);
    default:
      return createConnectTransport({ ...common, useBinaryFormat: protocol === "connect" });
  }
}

/** Creates a client for every way. */
export function createClients(
  baseUrl: string,
  key?: string,
): Record<Way, Client<typeof CheckpointService>> {
  const client = (transport: Transport) => createClient(CheckpointService, transport);
  const session = (protocol: Protocol) =>
    client(createSessionTransport(createTransport(protocol, baseUrl, key)));
  return {
    connect: client(createTransport("connect", baseUrl, key)),
    "connect-json": client(createTransport("connect-json", baseUrl, key)),
    grpc: client(createTransport("grpc", baseUrl, key)),
    "grpc-web": client(createTransport("grpc-web", baseUrl, key)),
    session: session("connect"),
    "session-grpc": session("grpc"),
  };
}

/** Makes a call and reads its answer to the end. */
export async function make(client: Client<typeof CheckpointService>, call: Call): Promise<void> {
  if (call.rpc === "list") {
    for await (const _ of client.list(call.request));
  } else {
    await client[call.rpc](call.request as never);
  }
}

/**
 * Starts a server on a database of its own, with one checkpoint stored; or on the database of
 * `options.databaseUrl`, as it is. The caller stops it.
 */
export async function startEdge(options: Partial<ServerOptions> = {}) {
  const database = options.databaseUrl
    ? { url: options.databaseUrl, drop: async () => {} }
    : await createDatabase();
  const captured = captureLog();
  const server = await startTestServer(database.url, { log: captured.log, ...options });
  const sql = new pg.Client({ connectionString: database.url });
  sql.on("error", () => {});
  await sql.connect();
  const clients = createClients(server.url);
  if (options.databaseUrl === undefined) {
    await clients.connect.put({
      threadId: `${secret}-seed`,
      checkpointId: "1",
      checkpointJson: `{"v":4,"channel_versions":{"c":1}}`,
      blobs: [{ channel: "c", version: "1", value: { type: "bytes", data: new Uint8Array(3) } }],
    });
  }

  async function rowCounts(): Promise<string> {
    const { rows } = await sql.query({
      text: `select (select count(*) from checkpoints), (select count(*) from checkpoint_blobs),
        (select count(*) from checkpoint_writes)`,
      rowMode: "array",
    });
    return String(rows[0]);
  }

  return {
    server,
    database,
    sql,
    clients,
    captured,
    /** How many checkpoints, blobs and writes are stored. */
    rowCounts,
    /** How many checkpoints the threads have whose id is LIKE that. */
    async checkpoints(threads: string): Promise<number> {
      const { rows } = await sql.query(
        "select count(*)::int as n from checkpoints where thread_id like $1",
        [threads],
      );
      return rows[0].n;
    },
    /**
     * Makes a call on every way, or on those given, which must be refused with the same words on
     * each, with nothing stored and nothing told that is secret.
     */
    async expectRefused(call: Call, refusal: Refusal, on: readonly Way[] = ways): Promise<void> {
      const before = await rowCounts();
      const errors = [];
      for (const way of on) errors.push(await failureOf(make(clients[way], call)));
      for (const error of errors) expectTold(error, refusal);
      expectSameWords(errors);
      expect(await rowCounts()).toBe(before);
    },
    async stop(): Promise<void> {
      await server.drain();
      await sql.end();
      await database.drop();
    },
  };
}

/** What a raw call was answered: the HTTP status, and Connect's error if there is one. */
export interface RawAnswer {
  status: number;
  headers: Headers;
  /** The body, or a stream's messages with their envelopes, as text. */
  body: string;
  error?: { code: string; message: string; details?: { type: string; debug?: unknown }[] };
}

/** Posts bytes or text to an RPC over HTTP/1.1 and reads Connect's error out of the answer. */
export async function post(
  baseUrl: string,
  rpc: string,
  body: string | Uint8Array<ArrayBuffer>,
  headers: Record<string, string>,
): Promise<RawAnswer> {
  const url = `${baseUrl}/${CheckpointService.typeName}/${rpc}`;
  const response = await fetch(url, { method: "POST", headers, body });
  const text = await response.text();
  const json = /\{"(code|error)":.*\}/s.exec(text)?.[0];
  const parsed = json === undefined ? undefined : JSON.parse(json);
  const error = parsed?.error ?? parsed;
  return {
    status: response.status,
    headers: response.headers,
    body: text,
    ...(error === undefined ? {} : { error }),
  };
}

/** Posts JSON text over the Connect protocol, in an envelope where the RPC streams. */
export function postJson(baseUrl: string, rpc: string, json: string): Promise<RawAnswer> {
  return rpc === "List"
    ? post(baseUrl, rpc, envelope(Buffer.from(json)), {
        "content-type": "application/connect+json",
      })
    : post(baseUrl, rpc, json, { "content-type": "application/json" });
}

/** A message as streams and gRPC carry it: a flag, its length, its bytes. */
export function envelope(message: Uint8Array): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(5 + message.length);
  new DataView(bytes.buffer).setUint32(1, message.length);
  bytes.set(message, 5);
  return bytes;
}

/** The RPC of a call as the protocol spells it, and its request as JSON. */
export function toRaw(call: Call): { rpc: string; json: string } {
  const { name, input } = CheckpointService.method[call.rpc];
  return {
    rpc: name,
    json: toJsonString<DescMessage>(input, create(input, call.request as never)),
  };
}

/** The error of a call that must not succeed. */
export async function failureOf(call: Promise<unknown>): Promise<ConnectError> {
  const error = await call.then(
    () => undefined,
    (reason: unknown) => ConnectError.from(reason),
  );
  if (error === undefined) throw new Error("the call succeeded");
  return error;
}

/** Checks the code and the detail of an error, and that its text is ours. */
export function expectTold(error: ConnectError, refusal: Refusal): void {
  const { code, reason, field = "", limit = 0 } = refusal;
  const details = error
    .findDetails(ErrorDetailSchema)
    .map((detail) => ({ ...detail, limit: Number(detail.limit) }));
  expect({ code: Code[error.code], details, message: error.rawMessage }).toMatchObject({
    code: Code[code],
    details: [{ reason, field, limit }],
  });
  expectHarmless(error.rawMessage);
}

/** Checks that the same was said on every way. */
export function expectSameWords(errors: readonly ConnectError[]): void {
  expect(new Set(errors.map(({ rawMessage }) => rawMessage)).size).toBe(1);
}

/** Checks that a text for clients holds no payload, no SQL and no stack. */
export function expectHarmless(text: string): void {
  expect(text).not.toContain(secret);
  expect(text).not.toMatch(/insert into|select |\bcast\b|\n|\bat \S+:\d+/i);
}
