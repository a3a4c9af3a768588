/**
 * Every field that the descriptors have, of every operation and stream, arrives as it was sent, and
 * so does the answer, on every carrier: what is forgotten anywhere between the two is found here.
 */
import { lookup } from "node:dns";
import { type DescMessage, toBinary } from "@bufbuild/protobuf";
import { ConnectError } from "@connectrpc/connect";
import { afterAll, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { type CallName, type OperationName, operations, streams } from "../protocol/operations.js";
import { type EchoServer, startEchoServer } from "../testing/echo_server.js";
import { createTransport, type Protocol, protocols } from "../testing/edge.js";
import { createRandom } from "../testing/random.js";
import { randomMessage } from "../testing/random_message.js";
import { startRelay } from "../testing/relay.js";
import { type Carrier, NotCarried, type Service, type TryContext } from "./carrier.js";
import { ClientSession } from "./client_session.js";
import { Endpoint } from "./endpoint.js";
import { createSessionCarrier } from "./session_carrier.js";
import { openHttp2Stream, openUpgraded } from "./session_socket.js";
import { UrlTransport } from "./transport.js";
import { createUnaryCarrier } from "./unary_carrier.js";

const seed = Date.now() % 1_000_000;
const all = { ...operations, ...streams };
const names = Object.keys(operations) as OperationName[];
const rounds = 20;

let server: EchoServer;
let answers: unknown;
let received: { name: CallName; request: unknown }[] = [];
beforeAll(async () => {
  server = await startEchoServer((name, request) => {
    received.push({ name, request });
    return answers;
  });
});
afterAll(() => server.stop());
beforeEach(() => {
  received = [];
});

const bytes = (schema: DescMessage, message: unknown) => toBinary(schema, message as never);
const context = (): TryContext => ({ deadline: performance.now() + 20_000 });

type Ask = (request: unknown, context: TryContext) => Promise<unknown>;

async function expectCarried(carrier: Carrier, name: OperationName): Promise<void> {
  const random = createRandom(seed);
  const { input, output } = all[name] as { input: DescMessage; output: DescMessage };
  for (let i = 0; i < rounds; i++) {
    const request = randomMessage(input, random);
    answers = randomMessage(output, random);
    const answer = await (carrier[name] as Ask)(request, context());
    const got = received.pop();
    expect(got?.name).toBe(name);
    expect(bytes(input, got?.request)).toEqual(bytes(input, request));
    expect(bytes(output, answer)).toEqual(bytes(output, answers));
  }
}

describe.each([
  ["an upgraded connection", openUpgraded],
  ["a stream of HTTP/2", openHttp2Stream],
])(`on a session, on %s, seed ${seed}`, (_, open) => {
  let sessions: ReturnType<typeof createSessionCarrier>;
  beforeAll(() => {
    const address = { endpoint: new Endpoint(server.url, lookup as never), headers: undefined };
    sessions = createSessionCarrier(
      () => new ClientSession((signal) => open(address, signal), 2 ** 30),
    );
  });
  afterAll(() => sessions.abort(new ConnectError("the test is over")));

  it.each(names)("%s", (name) => expectCarried(sessions.carrier, name));
});

const http1 = ["connect over HTTP/1.1", "grpc-web over HTTP/1.1"] as const;

describe.each([...protocols, ...http1])(`as RPCs over %s, seed ${seed}`, (way) => {
  let service: Service;
  let stop: (() => void) | undefined;
  beforeAll(async () => {
    const [protocol, version] = way.split(" over ");
    if (version === undefined) {
      service = createUnaryCarrier(createTransport(protocol as Protocol, server.url), undefined);
      return;
    }
    const port = Number(new URL(server.url).port);
    const relay = await startRelay(() => port, "lets them through", { toHttp2: "refuses them" });
    const transport = new UrlTransport(relay.url, { protocol: protocol as "connect" });
    service = createUnaryCarrier(transport, undefined);
    stop = () => {
      transport.close();
      relay.close();
    };
  });
  afterAll(() => stop?.());

  const rpcs = names.filter((name) => "kind" in operations[name]);
  it.each(rpcs)("%s", (name) => expectCarried(service, name));

  it.each(names.filter((name) => !rpcs.includes(name)))("%s is not carried", async (name) => {
    await expect((service[name] as Ask)({}, context())).rejects.toBeInstanceOf(NotCarried);
  });

  it.each(Object.keys(streams) as (keyof typeof streams)[])("%s", async (name) => {
    const random = createRandom(seed);
    const { input, output } = streams[name];
    for (let i = 0; i < rounds; i++) {
      const request = randomMessage(input, random);
      const sent = Array.from({ length: i % 4 }, () => randomMessage(output, random));
      answers = sent;
      const ask = service[name] as (request: unknown, context: object) => AsyncIterable<unknown>;
      const got = [];
      for await (const message of ask(request, context())) got.push(bytes(output, message));
      expect(bytes(input, received.pop()?.request)).toEqual(bytes(input, request));
      expect(got).toEqual(sent.map((message) => bytes(output, message)));
    }
  });
});

it("ends each call once, with its bytes and its carrier", () => {
  const { finished } = server;
  const ids = finished.map(({ requestId }) => requestId);
  expect(new Set(ids).size).toBe(ids.length);
  expect(new Set(finished.map(({ carrier }) => carrier))).toEqual(
    new Set(["connect", "grpc", "grpc-web", "session"]),
  );
  for (const carrier of ["connect", "session"]) {
    const some = finished.filter((call) => call.carrier === carrier);
    expect(some.some(({ requestBytes }) => requestBytes > 100)).toBe(true);
    expect(some.some(({ answerBytes }) => answerBytes > 100)).toBe(true);
  }
});
