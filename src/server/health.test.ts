import { once, setMaxListeners } from "node:events";
import * as http2 from "node:http2";
import { Code, ConnectError, createClient } from "@connectrpc/connect";
import {
  connectNodeAdapter,
  createConnectTransport,
  createGrpcTransport,
} from "@connectrpc/connect-node";
import { afterEach, expect, test } from "vitest";
import { Health } from "../../gen/health/v1/health_pb.js";
import { createLog } from "../log.js";
import { createHealth, ServingStatus } from "./health.js";
import { type Listener, startListener } from "./http.js";

const { NOT_SERVING, SERVING, SERVICE_UNKNOWN } = ServingStatus;
const started: Listener[] = [];
afterEach(() => Promise.all(started.splice(0).map((listener) => listener.drain(0))));

async function startHealth(...services: string[]) {
  const health = createHealth(...services);
  const listener = await startListener({
    host: "127.0.0.1",
    port: 0,
    handler: connectNodeAdapter({ routes: (router) => router.service(Health, health.service) }),
    log: createLog("silent"),
  });
  started.push(listener);
  const baseUrl = `http://127.0.0.1:${listener.port}`;
  return {
    health,
    listener,
    grpc: createClient(Health, createGrpcTransport({ baseUrl })),
    http1: createClient(Health, createConnectTransport({ baseUrl, httpVersion: "1.1" })),
  };
}

/** Takes messages one by one, so that a test can act between them. */
function reader(stream: AsyncIterable<{ status: ServingStatus }>) {
  const messages = stream[Symbol.asyncIterator]();
  return async () => {
    const next = await messages.next();
    return next.done ? undefined : next.value.status;
  };
}

test("a service is NOT_SERVING until it is set", async () => {
  const { health, grpc } = await startHealth("a");
  expect(await grpc.check({})).toMatchObject({ status: NOT_SERVING });
  expect(await grpc.check({ service: "a" })).toMatchObject({ status: NOT_SERVING });
  health.set("a", SERVING);
  expect(await grpc.check({})).toMatchObject({ status: NOT_SERVING });
  expect(await grpc.check({ service: "a" })).toMatchObject({ status: SERVING });
  health.setAll(SERVING);
  expect(await grpc.check({})).toMatchObject({ status: SERVING });
});

test("Check of an unknown service is NOT_FOUND", async () => {
  const { grpc } = await startHealth();
  const error = await grpc.check({ service: "nobody" }).catch(ConnectError.from);
  expect(error).toMatchObject({ code: Code.NotFound });
});

test("List tells every service", async () => {
  const { health, grpc } = await startHealth("a");
  health.set("a", SERVING);
  const { statuses } = await grpc.list({});
  expect(statuses).toMatchObject({ "": { status: NOT_SERVING }, a: { status: SERVING } });
  expect(Object.keys(statuses)).toHaveLength(2);
});

test("Watch tells the current status and then each change", async () => {
  const { health, grpc, http1 } = await startHealth("a");
  for (const client of [grpc, http1]) {
    health.setAll(NOT_SERVING);
    const next = reader(client.watch({ service: "a" }));
    expect(await next()).toBe(NOT_SERVING);
    health.set("a", SERVING);
    expect(await next()).toBe(SERVING);
    health.set("a", SERVING); // no change, no message
    health.set("", SERVING); // another service
    health.set("a", NOT_SERVING);
    expect(await next()).toBe(NOT_SERVING);
  }
});

test("Watch of an unknown service goes on, and tells when the service becomes known", async () => {
  const { health, grpc } = await startHealth();
  const next = reader(grpc.watch({ service: "later" }));
  expect(await next()).toBe(SERVICE_UNKNOWN);
  health.set("later", SERVING);
  expect(await next()).toBe(SERVING);
});

test("a Watch ends when its client goes away", async () => {
  const { health, grpc, http1 } = await startHealth();
  for (const client of [grpc, http1]) {
    const gone = new AbortController();
    setMaxListeners(0, gone.signal);
    const nexts = Array.from({ length: 20 }, () =>
      reader(client.watch({}, { signal: gone.signal })),
    );
    await Promise.all(nexts.map((next) => next()));
    expect(health.watchers()).toBe(20);
    gone.abort();
    await Promise.allSettled(nexts.map((next) => next()));
    await expect.poll(() => health.watchers()).toBe(0);
  }
});

test("a Watch ends when its deadline passes", async () => {
  const { health, grpc } = await startHealth();
  const next = reader(grpc.watch({}, { timeoutMs: 1_000 }));
  await next();
  const error = await next().catch(ConnectError.from);
  expect(error).toMatchObject({ code: Code.DeadlineExceeded });
  await expect.poll(() => health.watchers()).toBe(0);
});

test("a Watch tells itself that its deadline passed, to clients that leave it to the server", async () => {
  const { listener } = await startHealth();
  const session = http2.connect(`http://127.0.0.1:${listener.port}`);
  const stream = session.request({
    ":method": "POST",
    ":path": "/grpc.health.v1.Health/Watch",
    "content-type": "application/grpc",
    te: "trailers",
    "grpc-timeout": "300m",
  });
  stream.end(Buffer.alloc(5)).resume();
  const [trailers] = await once(stream, "trailers");
  expect(trailers["grpc-status"]).toBe(`${Code.DeadlineExceeded}`);
  session.close();
});

test("close tells NOT_SERVING, ends every Watch, and is final", async () => {
  const { health, grpc, http1, listener } = await startHealth();
  health.setAll(SERVING);
  const nexts = [grpc, http1].map((client) => reader(client.watch({})));
  for (const next of nexts) expect(await next()).toBe(SERVING);
  health.close();
  health.close();
  health.setAll(SERVING);
  for (const next of nexts) {
    expect(await next()).toBe(NOT_SERVING);
    expect(await next()).toBeUndefined();
  }
  const late = reader(grpc.watch({}));
  expect(await late()).toBe(NOT_SERVING);
  expect(await late()).toBeUndefined();
  expect(health.watchers()).toBe(0);
  await listener.drain(60_000);
});
