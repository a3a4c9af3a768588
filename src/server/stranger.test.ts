/** What somebody takes of a server that asks who calls, before it knows: nothing that others need. */
import { once } from "node:events";
import { readFileSync, writeFileSync } from "node:fs";
import http2 from "node:http2";
import net from "node:net";
import { Code, ConnectError, createClient } from "@connectrpc/connect";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { CheckpointService } from "../../gen/checkpointd/v1/checkpoint_service_pb.js";
import { Health } from "../../gen/health/v1/health_pb.js";
import { createAuthFile, everything } from "../testing/auth_file.js";
import { createTransport, protocols } from "../testing/edge.js";
import { createDatabase, type TestDatabase } from "../testing/postgres.js";
import { startTestServer } from "../testing/test_server.js";
import {
  createSigningKey,
  type KeyServer,
  type SigningKey,
  startKeyServer,
} from "../testing/token_issuer.js";
import type { Server } from "./server.js";

const streamsInAll = 6;
const auth = createAuthFile(
  {},
  { known: { grants: everything }, few: { grants: everything, limits: { callsAtOnce: 1 } } },
);
const issuer = "https://idp.test";
let database: TestDatabase;
let server: Server;
let keys: KeyServer;
let signing: SigningKey;
/** Answers whoever waits for the issuer's keys. */
let giveKeys = () => {};
const unhandled: unknown[] = [];
const onUnhandled = (reason: unknown) => unhandled.push(reason);

beforeAll(async () => {
  process.on("unhandledRejection", onUnhandled);
  signing = await createSigningKey("ES256", "k");
  keys = await startKeyServer((_, response) => {
    giveKeys = () => response.end(JSON.stringify({ keys: [signing.jwk] }));
  });
  const file = JSON.parse(readFileSync(auth.file, "utf8"));
  file.jwt = [{ issuer, audience: "checkpointd", jwksUrl: keys.url, algorithms: ["ES256"] }];
  file.principals.push({ name: "user/{sub}", jwt: { issuer }, grants: everything });
  writeFileSync(auth.file, JSON.stringify(file));
  database = await createDatabase();
  server = await startTestServer(database.url, { authFile: auth.file }, { streamsInAll });
});
afterAll(async () => {
  process.off("unhandledRejection", onUnhandled);
  await server?.drain();
  await keys?.stop();
  await database?.drop();
  auth.remove();
});

const clientOf = (key = auth.keys.known) =>
  createClient(CheckpointService, createTransport("connect", server.url, key));

/** That one who is known gets an answer to a stream. */
async function expectServed(): Promise<void> {
  for await (const _ of clientOf().list({ threadId: "none" }));
}

/** Sends a request without a Host, or one that makes no URL, and returns the line of its answer. */
async function ask(rpc: string, host: string | undefined, bearer?: string): Promise<string> {
  const socket = net.connect(server.port, "127.0.0.1").on("error", () => {});
  const type = rpc === "List" ? "application/connect+json" : "application/json";
  const body = rpc === "List" ? "\0\0\0\0\x02{}" : "{}";
  socket.write(
    [
      `POST /${CheckpointService.typeName}/${rpc} HTTP/1.${host === undefined ? 0 : 1}`,
      ...(host === undefined ? [] : [`host: ${host}`, "connection: close"]),
      ...(bearer === undefined ? [] : [`authorization: Bearer ${bearer}`]),
      `content-type: ${type}\r\ncontent-length: ${body.length}\r\n\r\n${body}`,
    ].join("\r\n"),
  );
  const [answer] = await once(socket, "data");
  socket.destroy();
  return String(answer).split("\r\n", 1)[0] as string;
}

const laterToken = (sub: string) =>
  signing.sign({ iss: issuer, aud: "checkpointd", sub, exp: Math.floor(Date.now() / 1000) + 600 });

// The keys of the issuer are given in the first of these.
describe("who goes away while its token is verified", () => {
  it("holds no stream, session or call for ever", async () => {
    const session = http2.connect(server.url).on("error", () => {});
    const streams = [];
    for (let i = 0; i < 2 * streamsInAll; i++) {
      const isSession = i % 2 === 0;
      const stream = session.request({
        ":method": "POST",
        ":path": isSession
          ? "/checkpointd.v1.SessionService/OpenSession"
          : `/${CheckpointService.typeName}/List`,
        "content-type": isSession ? "application/connect+json" : "application/connect+proto",
        authorization: `Bearer ${await laterToken(`gone-${i}`)}`,
      });
      streams.push(stream.on("error", () => {}));
    }
    await new Promise((resolve) => session.ping(resolve));
    session.destroy();
    await Promise.all(streams.map((stream) => stream.closed || once(stream, "close")));
    giveKeys();
    await clientOf(await laterToken("stays")).getTuple({ threadId: "none" });
    await expectServed();
  });
});

describe("a Host that makes no URL, or none", () => {
  it.each([
    ["List", "[", undefined],
    ["List", undefined, undefined],
    ["List", "[", "known"],
    ["GetTuple", "[", "few"],
    ["GetTuple", undefined, "few"],
  ])("of %s with Host %s by %s leaves nothing behind", async (rpc, host, name) => {
    for (let i = 0; i < streamsInAll + 1; i++) {
      expect(await ask(rpc, host, name && auth.keys[name])).toMatch(/ 40[01] /);
    }
    await expectServed();
    await clientOf(auth.keys.few).getTuple({ threadId: "none" });
  });

  it("is answered too where the token has to be verified", async () => {
    const isHis = await laterToken("host");
    for (const token of [isHis, `${isHis.slice(0, -8)}AAAAAAAA`]) {
      expect(await ask("GetTuple", "[", token)).toMatch(/ 40[01] /);
    }
    expect(unhandled).toEqual([]);
  });
});

it("who does not read refusals keeps nobody out", async () => {
  const settings = { initialWindowSize: 0 };
  const session = http2.connect(server.url, { settings }).on("error", () => {});
  const answered: Promise<unknown>[] = [];
  for (let i = 0; i < 2 * streamsInAll; i++) {
    const stream = session.request({
      ":method": "POST",
      ":path": `/${CheckpointService.typeName}/List`,
      "content-type": "application/connect+proto",
    });
    stream.on("error", () => {}).end(Buffer.alloc(5));
    answered.push(once(stream, "response"));
  }
  await Promise.all(answered);
  await expectServed();
  session.destroy();
});

it.each(protocols)(
  "whoever asks for health over %s sends no more than a name",
  async (protocol) => {
    const health = createClient(Health, createTransport(protocol, server.url));
    const error = await health.check({ service: "x".repeat(5_000) }).catch(ConnectError.from);
    expect(error).toMatchObject({ code: Code.ResourceExhausted });
    expect((await health.check({ service: CheckpointService.typeName })).status).toBe(1);
  },
);
