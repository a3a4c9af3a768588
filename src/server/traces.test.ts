/** The spans of calls, as a collector gets them from a real server. */
import { Code } from "@connectrpc/connect";
import { afterEach, describe, expect, it, onTestFinished, test } from "vitest";
import { createAuthFile, everything } from "../testing/auth_file.js";
import { block, untilBlocked } from "../testing/blocking.js";
import { captureLog } from "../testing/captured_log.js";
import { createClients, failureOf, startEdge, type Way, ways } from "../testing/edge.js";
import {
  type OtlpReceiver,
  type ReceivedSpan,
  startOtlpReceiver,
} from "../testing/otlp_receiver.js";
import { createDatabase } from "../testing/postgres.js";
import { scrape } from "../testing/prometheus.js";
import { startServe } from "../testing/serve_process.js";
import { startTestServer } from "../testing/test_server.js";
import type { ServerOptions } from "./server.js";
import { createLimit } from "./trace_export.js";
import { isTraced } from "./traces.js";

const variables = new Set<string>();
function setVariables(values: Record<string, string>): void {
  for (const [name, value] of Object.entries(values)) {
    variables.add(name);
    process.env[name] = value;
  }
}
afterEach(() => {
  for (const name of variables) delete process.env[name];
});

/** A server that exports to a receiver, both stopped at the test's end. */
async function startTraced(options: Partial<ServerOptions> = {}, env: Record<string, string> = {}) {
  const receiver = await startOtlpReceiver();
  onTestFinished(() => receiver.close());
  setVariables({
    OTEL_EXPORTER_OTLP_ENDPOINT: receiver.endpoint,
    OTEL_BSP_SCHEDULE_DELAY: "20",
    ...env,
  });
  const edge = await startEdge(options);
  onTestFinished(() => edge.stop());
  return { receiver, edge };
}

let lastId = 0;
/** The headers of a new trace, and its ids. */
function newTrace(flags = "01") {
  const traceId = `${(++lastId).toString(16).padStart(8, "0")}${"ab".repeat(12)}`;
  const spanId = "00f067aa0ba902b7";
  return { traceId, spanId, headers: { traceparent: `00-${traceId}-${spanId}-${flags}` } };
}

/** The spans of a trace, once there are so many, the server's among them. */
async function spansOf({ spans }: OtlpReceiver, traceId: string, least = 2) {
  const found = () => spans.filter((span) => span.traceId === traceId);
  await expect.poll(() => server(found())).toBeDefined();
  await expect.poll(() => found().length).toBeGreaterThanOrEqual(least);
  return found();
}

const server = (spans: readonly ReceivedSpan[]) => spans.find(({ kind }) => kind === 2)!;
const statements = (spans: readonly ReceivedSpan[]) => spans.filter(({ kind }) => kind === 3);

const checkpoint = (threadId: string, checkpointId = "1") => ({
  threadId,
  checkpointId,
  checkpointJson: `{"v":4,"channel_versions":{"c":1}}`,
  blobs: [{ channel: "c", version: "1", value: { type: "bytes", data: new Uint8Array(3) } }],
});

describe("a call is a span with its statement below it", () => {
  test.each(ways)("%s", async (way) => {
    const { receiver, edge } = await startTraced();
    const put = newTrace();
    await edge.clients[way].put(checkpoint("thread"), { headers: put.headers });
    const get = newTrace();
    await edge.clients[way].getTuple({ threadId: "thread" }, { headers: get.headers });
    const list = newTrace();
    for await (const _ of edge.clients[way].list(
      { threadId: "thread" },
      { headers: list.headers },
    ));

    const isGrpc = way.startsWith("grpc");
    const spans = await spansOf(receiver, put.traceId);
    expect(spans).toHaveLength(2);
    expect(server(spans)).toMatchObject({
      name: "checkpointd.v1.CheckpointService/Put",
      parentSpanId: put.spanId,
      status: 0,
      attributes: {
        "rpc.system.name": isGrpc ? "grpc" : "connectrpc",
        "rpc.method": "checkpointd.v1.CheckpointService/Put",
        "server.address": "127.0.0.1",
        "gen_ai.conversation.id": "thread",
        "checkpointd.carrier": carrierOf(way),
        "checkpointd.queue_wait_ms": expect.any(Number),
        "checkpointd.request_bytes": expect.any(Number),
        ...(isGrpc ? { "rpc.status_code": "OK" } : {}),
      },
      resource: { "service.name": "checkpointd", "service.version": expect.any(String) },
    });
    const [statement] = statements(spans);
    const database = new URL(edge.database.url);
    expect(statement).toMatchObject({
      name: "INSERT checkpoint_blobs checkpoints",
      parentSpanId: server(spans).spanId,
      attributes: {
        "db.system.name": "postgresql",
        "db.query.summary": "INSERT checkpoint_blobs checkpoints",
        "db.namespace": `${database.pathname.slice(1)}|public`,
        "server.port": Number(database.port),
      },
    });
    expect(statement!.start).toBeGreaterThanOrEqual(server(spans).start);
    expect(statement!.end).toBeGreaterThan(statement!.start);
    expect(statement!.end).toBeLessThanOrEqual(server(spans).end);

    const read = await spansOf(receiver, get.traceId);
    expect(server(read).name).toBe("checkpointd.v1.CheckpointService/GetTuple");
    expect(statements(read).map(({ name }) => name)).toEqual([
      "SELECT checkpoints checkpoint_blobs checkpoint_writes",
    ]);
    const listed = await spansOf(receiver, list.traceId);
    expect(server(listed)).toMatchObject({
      name: way.startsWith("session")
        ? "checkpointd.v1.SessionService/ListPage"
        : "checkpointd.v1.CheckpointService/List",
      attributes: { "gen_ai.conversation.id": "thread" },
    });
    expect(statements(listed).length).toBeGreaterThan(0);
    // Of health, reflection and the opening of a session there are none, nor of what nobody asked.
    expect(new Set(receiver.spans.map(({ name }) => name.split("/")[0]?.split(" ")[0]))).toEqual(
      new Set([
        "checkpointd.v1.CheckpointService",
        ...(way.startsWith("session") ? ["checkpointd.v1.SessionService"] : []),
        "INSERT",
        "SELECT",
      ]),
    );
  });

  const carrierOf = (way: Way) =>
    way.startsWith("session") ? "session" : way === "connect-json" ? "connect" : way;

  test("also of a call that is part of nothing, which begins a trace", async () => {
    const { receiver, edge } = await startTraced();
    await edge.clients.connect.getTuple({ threadId: "alone" });
    const mine = () =>
      receiver.spans.find((span) => span.attributes["gen_ai.conversation.id"] === "alone");
    await expect.poll(mine).toMatchObject({ parentSpanId: "" });
  });

  test("each of those that travel together, with its statement", async () => {
    const { receiver, edge } = await startTraced({ poolSize: 1 });
    const lock = await block(edge.database.url, "lock table checkpoints");
    onTestFinished(() => lock.release());
    const traces = Array.from({ length: 20 }, () => newTrace());
    const puts = traces.map(({ headers }, i) =>
      edge.clients.session.put(checkpoint(`t-${i}`), { headers }),
    );
    await untilBlocked(edge.sql, 1);
    await lock.release();
    await Promise.all(puts);
    let together = 0;
    for (const [i, { traceId }] of traces.entries()) {
      const spans = await spansOf(receiver, traceId);
      expect(spans).toHaveLength(2);
      expect(server(spans).attributes["gen_ai.conversation.id"]).toBe(`t-${i}`);
      const [statement] = statements(spans);
      expect(statement?.parentSpanId).toBe(server(spans).spanId);
      const size = statement?.attributes["db.operation.batch.size"];
      if (size === undefined) continue;
      expect(statement?.name).toBe("BATCH INSERT checkpoint_blobs checkpoints");
      expect(server(spans).attributes).toMatchObject({
        "checkpointd.batch_size": size,
        "checkpointd.queue_wait_ms": expect.any(Number),
      });
      together++;
    }
    expect(together).toBeGreaterThan(1);
  });
});

describe("an error", () => {
  test.each(["connect", "grpc", "session"] as const)(
    "of the client is none of the span's: %s",
    async (way) => {
      const { receiver, edge } = await startTraced();
      const { traceId, headers } = newTrace();
      await failureOf(edge.clients[way].getTuple({ threadId: "" }, { headers }));
      const [span] = await spansOf(receiver, traceId, 1);
      expect(span).toMatchObject({
        status: 0,
        attributes: {
          "rpc.status_code": way === "grpc" ? "INVALID_ARGUMENT" : "invalid_argument",
          "checkpointd.error_reason": "REQUIRED",
        },
      });
      expect(span?.attributes).not.toHaveProperty("error.type");
    },
  );

  test.each(["connect", "grpc", "session"] as const)("of ours is: %s", async (way) => {
    const { receiver, edge } = await startTraced();
    await edge.sql.query("alter table checkpoints rename to elsewhere");
    const { traceId, headers } = newTrace();
    await failureOf(edge.clients[way].put(checkpoint("t"), { headers }));
    const spans = await spansOf(receiver, traceId);
    const name = way === "grpc" ? "UNAVAILABLE" : "unavailable";
    expect(server(spans)).toMatchObject({
      status: 2,
      attributes: { "rpc.status_code": name, "error.type": name },
    });
    expect(statements(spans)[0]).toMatchObject({
      status: 2,
      attributes: { "db.response.status_code": "42P01", "error.type": "42P01" },
    });
  });

  test("at a deadline ends the span, and the statement's when Postgres has ended it", async () => {
    const { receiver, edge } = await startTraced();
    const lock = await block(edge.database.url, "lock table checkpoints");
    onTestFinished(() => lock.release());
    const { traceId, headers } = newTrace();
    await failureOf(edge.clients.session.put(checkpoint("t"), { headers, timeoutMs: 300 }));
    const spans = await spansOf(receiver, traceId);
    expect(server(spans)).toMatchObject({
      status: 2,
      attributes: { "rpc.status_code": "deadline_exceeded" },
    });
    expect(statements(spans)[0]?.attributes).toMatchObject({ "error.type": expect.any(String) });
  });

  test("of a reader that leaves a stream ends the span", async () => {
    const { receiver, edge } = await startTraced();
    for (let i = 0; i < 500; i++) await edge.clients.session.put(checkpoint("long", `${i}`));
    const { traceId, headers } = newTrace();
    for await (const _ of edge.clients.grpc.list({ threadId: "long" }, { headers })) break;
    const spans = await spansOf(receiver, traceId);
    expect(server(spans).attributes["rpc.status_code"]).toMatch(/^(CANCELLED|OK)$/);
  });
});

describe("what a client says of its trace", () => {
  const valid = `00-${"4b".repeat(16)}-00f067aa0ba902b7-01`;
  const malformed = [
    "",
    "x",
    valid.toUpperCase(),
    valid.slice(0, -1),
    `${valid}-more`,
    `${valid}\t`,
    valid.replace(/^00/, "ff"),
    valid.replace(/4b/g, "00"),
    valid.replace("00f067aa0ba902b7", "0000000000000000"),
    valid.replace("4b4b", "4b4g"),
    `${valid.replace(/^00/, "01")}-${"x".repeat(8_000)}`,
    "-".repeat(55),
  ];
  test.each(["connect", "grpc", "session"] as const)(
    "is not heeded where it is malformed: %s",
    async (way) => {
      const { receiver, edge } = await startTraced();
      for (const [i, traceparent] of malformed.entries()) {
        const headers = { traceparent: traceparent.trim(), tracestate: "a=b" };
        if (traceparent.trim() === valid) continue;
        await edge.clients[way].getTuple({ threadId: `bad-${i}` }, { headers });
      }
      await expect
        .poll(() => receiver.spans.filter(({ kind }) => kind === 2).length)
        .toBeGreaterThanOrEqual(malformed.length - 1);
      expect(receiver.spans.filter(({ kind, parentSpanId }) => kind === 2 && parentSpanId)).toEqual(
        [],
      );
      expect(receiver.spans.filter(({ traceState }) => traceState)).toEqual([]);
    },
  );

  test("is heeded from a later version of the format", async () => {
    const { receiver, edge } = await startTraced();
    const { traceId, spanId } = newTrace();
    const headers = { traceparent: `01-${traceId}-${spanId}-01-what-comes` };
    await edge.clients.session.getTuple({ threadId: "later" }, { headers });
    expect(server(await spansOf(receiver, traceId)).parentSpanId).toBe(spanId);
  });

  test.each(["grpc", "session"] as const)(
    "is passed on with its state, up to 512 bytes: %s",
    async (way) => {
      const { receiver, edge } = await startTraced();
      const short = newTrace();
      const long = newTrace();
      const state = "congo=t61rcWkgMzE,rojo=00f067aa0ba902b7";
      const call = (headers: Record<string, string>) =>
        edge.clients[way].getTuple({ threadId: "t" }, { headers });
      await call({ ...short.headers, tracestate: state, baggage: "user=somebody" });
      await call({ ...long.headers, tracestate: `a=${"x".repeat(511)}` });
      expect(server(await spansOf(receiver, short.traceId)).traceState).toBe(state);
      expect(server(await spansOf(receiver, long.traceId))).toMatchObject({
        traceState: "",
        parentSpanId: long.spanId,
      });
      expect(JSON.stringify(receiver.spans.map(({ attributes }) => attributes))).not.toContain(
        "somebody",
      );
    },
  );

  test("decides whether it is sampled, which the log tells the trace of all the same", async () => {
    const { receiver, edge } = await startTraced();
    const not = newTrace("00");
    await edge.clients.session.getTuple({ threadId: "not" }, { headers: not.headers });
    const sampled = newTrace();
    await edge.clients.session.getTuple({ threadId: "sampled" }, { headers: sampled.headers });
    const spans = await spansOf(receiver, sampled.traceId);
    expect(receiver.spans.filter(({ traceId }) => traceId === not.traceId)).toEqual([]);
    expect(edge.captured.lines({ msg: "call", trace_id: not.traceId })).toHaveLength(1);
    expect(edge.captured.lines({ msg: "call", trace_id: sampled.traceId })).toMatchObject([
      { span_id: server(spans).spanId },
    ]);
  });

  test.each([
    ["always_off", undefined],
    ["traceidratio", "0"],
  ])("does not where the sampler is %s", async (sampler, ratio) => {
    const { receiver, edge } = await startTraced(
      {},
      { OTEL_TRACES_SAMPLER: sampler, ...(ratio ? { OTEL_TRACES_SAMPLER_ARG: ratio } : {}) },
    );
    await edge.clients.session.getTuple({ threadId: "t" }, { headers: newTrace().headers });
    await edge.server.drain();
    expect(receiver.spans).toEqual([]);
  });

  test("does for so many calls a second", async () => {
    const { receiver, edge } = await startTraced({ traceLimit: 0 });
    for (let i = 0; i < 10; i++) {
      await edge.clients.session.getTuple({ threadId: "t" }, { headers: newTrace().headers });
    }
    await edge.server.drain();
    expect(receiver.spans).toEqual([]);
    const warnings = edge.captured.lines({ level: 40 });
    expect(warnings).toMatchObject([{ msg: expect.stringContaining("--trace-limit") }]);
  });
});

test("the limit is of a second, and told of once a minute", () => {
  let now = 0;
  const captured = captureLog();
  const tally = { limitedCalls: 0 };
  const mayTrace = createLimit(10, captured.log, tally, () => now);
  const take = (n: number) => Array.from({ length: n }, mayTrace).filter(Boolean).length;
  expect(take(100)).toBe(10);
  now += 500;
  expect(take(100)).toBe(5);
  now += 3_600_000;
  expect(take(100)).toBe(10);
  expect(captured.lines()).toHaveLength(2);
  expect(tally.limitedCalls).toBe(275);
});

test("spans are counted: what ended, what was sent and what the collector refused", async () => {
  const { receiver, edge } = await startTraced({ metricsPort: "main", traceLimit: 5 });
  const call = () =>
    edge.clients.connect.getTuple({ threadId: "t" }, { headers: newTrace().headers });
  const count = async (name: string) =>
    (await scrape(edge.server.metricsUrl as string)).get(`checkpointd_trace_${name}`) ?? 0;
  await call();
  await expect.poll(() => count(`spans_exported_total{result="sent"}`)).toBeGreaterThan(0);
  expect(await count(`spans_exported_total{result="failed"}`)).toBe(0);
  receiver.status = 400;
  await call();
  await expect.poll(() => count(`spans_exported_total{result="failed"}`)).toBeGreaterThan(0);
  const exported = async () =>
    (await count(`spans_exported_total{result="sent"}`)) +
    (await count(`spans_exported_total{result="failed"}`));
  await expect.poll(async () => (await count("spans_ended_total")) - (await exported())).toBe(0);
  expect(receiver.spans).toHaveLength(await count(`spans_exported_total{result="sent"}`));
  // Faster than they may be traced.
  while ((await count("limited_calls_total")) === 0) {
    await Promise.all(Array.from({ length: 20 }, call));
  }
});

test("no span names a thread where that is turned off", async () => {
  const { receiver, edge } = await startTraced({ traceThreads: false });
  const { traceId, headers } = newTrace();
  await edge.clients.session.put(checkpoint("somebody"), { headers });
  await spansOf(receiver, traceId);
  expect(
    JSON.stringify(receiver.spans, (_, it) => (typeof it === "bigint" ? 0 : it)),
  ).not.toContain("somebody");
});

test("a tenant's spans have its name and its schema, and the audit log their ids", async () => {
  const auth = createAuthFile(
    { red: { schema: "red" } },
    { red: { tenant: "red", grants: everything } },
  );
  onTestFinished(() => auth.remove());
  const receiver = await startOtlpReceiver();
  onTestFinished(() => receiver.close());
  setVariables({ OTEL_EXPORTER_OTLP_ENDPOINT: receiver.endpoint, OTEL_BSP_SCHEDULE_DELAY: "20" });
  const database = await createDatabase();
  onTestFinished(() => database.drop());
  const captured = captureLog();
  const started = await startTestServer(database.url, { authFile: auth.file, log: captured.log });
  onTestFinished(() => started.drain());
  const clients = createClients(started.url, auth.keys.red);
  const { traceId, headers } = newTrace();
  await clients.session.deleteThread({ threadId: "t" }, { headers });
  const spans = await spansOf(receiver, traceId);
  expect(server(spans).attributes).toMatchObject({
    "checkpointd.tenant": "red",
    "gen_ai.conversation.id": "t",
  });
  expect(statements(spans)[0]).toMatchObject({
    name: "DELETE checkpoint_writes checkpoint_blobs checkpointd_claims checkpoints",
    attributes: { "db.namespace": expect.stringMatching(/\|red$/) },
  });
  expect(captured.lines({ msg: "audit", trace_id: traceId })).toMatchObject([
    { action: "deleteThread", span_id: server(spans).spanId },
  ]);
  // Who is refused for what it may not has a span too, and no statement.
  const denied = newTrace();
  const nobody = createClients(started.url, "none");
  const error = await failureOf(nobody.connect.getTuple({ threadId: "t" }, denied));
  expect(error.code).toBe(Code.Unauthenticated);
  expect(await spansOf(receiver, denied.traceId, 1)).toMatchObject([
    { attributes: { "rpc.status_code": "unauthenticated" } },
  ]);
});

describe("a collector", () => {
  test("that is down costs spans and one line, until it is there", async () => {
    const gone = await startOtlpReceiver();
    await gone.close();
    const { edge } = await startTraced(
      {},
      { OTEL_EXPORTER_OTLP_ENDPOINT: gone.endpoint, OTEL_EXPORTER_OTLP_TIMEOUT: "200" },
    );
    const warnings = () => edge.captured.lines({ level: 40 });
    const call = () =>
      edge.clients.session.getTuple({ threadId: "t" }, { headers: newTrace().headers });
    await expect
      .poll(async () => {
        await call();
        return warnings().length;
      })
      .toBe(1);
    // More than wait to be exported.
    for (let i = 0; i < 25; i++) await Promise.all(Array.from({ length: 200 }, call));
    expect(warnings()).toMatchObject([{ msg: expect.stringContaining("cannot be exported") }]);
    const back = await startOtlpReceiver(Number(new URL(gone.endpoint).port));
    onTestFinished(() => back.close());
    await expect
      .poll(async () => {
        await call();
        return back.spans.length;
      })
      .toBeGreaterThan(0);
    await expect
      .poll(() => edge.captured.lines({ msg: "spans are exported again" }).length)
      .toBe(1);
    expect(warnings()).toHaveLength(1);
  });

  test("that answers nothing holds up neither calls nor the end", async () => {
    const { receiver, edge } = await startTraced();
    receiver.isMute = true;
    for (let i = 0; i < 100; i++) {
      await edge.clients.session.getTuple({ threadId: "t" }, { headers: newTrace().headers });
    }
    await expect.poll(() => receiver.requests.length).toBeGreaterThan(0);
    const began = performance.now();
    await edge.server.drain();
    // It waits for two seconds; OpenTelemetry itself would wait for ten.
    expect(performance.now() - began).toBeLessThan(9_000);
  });

  test("gets what there is when the server drains, with the headers it asks for", async () => {
    const { receiver, edge } = await startTraced(
      {},
      {
        OTEL_BSP_SCHEDULE_DELAY: "3600000",
        OTEL_EXPORTER_OTLP_HEADERS: "x-key=some%20key",
        OTEL_SERVICE_NAME: "checkpoints",
        OTEL_RESOURCE_ATTRIBUTES: "deployment.environment.name=test",
      },
    );
    const { traceId, headers } = newTrace();
    await edge.clients.session.put(checkpoint("t"), { headers });
    expect(receiver.spans).toEqual([]);
    await edge.server.drain();
    const spans = await spansOf(receiver, traceId);
    expect(receiver.requests[0]?.["x-key"]).toBe("some key");
    expect(spans[0]?.resource).toMatchObject({
      "service.name": "checkpoints",
      "deployment.environment.name": "test",
      "service.instance.id": expect.any(String),
    });
  });
});

describe("a process", () => {
  async function serve(receiver: OtlpReceiver, ...args: string[]) {
    onTestFinished(() => receiver.close());
    const database = await createDatabase();
    onTestFinished(() => database.drop());
    const process = await startServe(["--trace-limit", "1000", ...args], {
      DATABASE_URL: database.url,
      OTEL_EXPORTER_OTLP_ENDPOINT: receiver.endpoint,
      OTEL_BSP_SCHEDULE_DELAY: "3600000",
    });
    onTestFinished(() => void process.child.kill("SIGKILL"));
    await process.printed("is ready");
    return process;
  }

  test("exports what there is before it ends, each worker its own", async () => {
    const receiver = await startOtlpReceiver();
    const process = await serve(receiver, "--workers", "2");
    for (let i = 0; i < 8; i++) {
      // A connection each, which the workers get in turn.
      const { connect } = createClients(process.url);
      await connect.getTuple({ threadId: `t-${i}` }, { headers: newTrace().headers });
    }
    expect(receiver.spans).toEqual([]);
    expect(await process.stop()).toMatchObject({ code: 0 });
    const served = receiver.spans.filter(({ kind }) => kind === 2);
    expect(served.map(({ attributes }) => attributes["gen_ai.conversation.id"]).sort()).toEqual(
      Array.from({ length: 8 }, (_, i) => `t-${i}`),
    );
    const workers = new Set(served.map(({ resource }) => resource["service.instance.id"]));
    expect(workers.size).toBe(2);
  });

  test("ends all the same where the collector is mute", async () => {
    const receiver = await startOtlpReceiver();
    receiver.isMute = true;
    const process = await serve(receiver);
    const { session } = createClients(process.url);
    await session.getTuple({ threadId: "t" }, { headers: newTrace().headers });
    expect(await process.stop()).toMatchObject({ code: 0 });
  });
});

describe("OpenTelemetry's variables", () => {
  it.each([
    [{}, false],
    [{ OTEL_EXPORTER_OTLP_ENDPOINT: "http://c:4318" }, true],
    [{ OTEL_EXPORTER_OTLP_TRACES_ENDPOINT: "https://c/v1/traces" }, true],
    [{ OTEL_TRACES_EXPORTER: "otlp" }, true],
    [{ OTEL_EXPORTER_OTLP_ENDPOINT: "http://c:4318", OTEL_SDK_DISABLED: "TRUE" }, false],
    [{ OTEL_EXPORTER_OTLP_ENDPOINT: "http://c:4318", OTEL_TRACES_EXPORTER: "none" }, false],
    [{ OTEL_EXPORTER_OTLP_ENDPOINT: " " }, false],
    [{ OTEL_EXPORTER_OTLP_ENDPOINT: "c:4318" }, /must be an http: or https: URL/],
    [{ OTEL_TRACES_EXPORTER: "console" }, /must be otlp or none, not "console"/],
    [
      { OTEL_EXPORTER_OTLP_ENDPOINT: "http://c:4317", OTEL_EXPORTER_OTLP_PROTOCOL: "grpc" },
      /must be http\/protobuf, not "grpc": collectors take it on port 4318/,
    ],
  ])("%o: %s", (env, expected) => {
    const asked = isTraced(env);
    if (expected instanceof RegExp) expect(asked).toMatch(expected);
    else expect(asked).toBe(expected);
  });

  test("that ask for what there is not are told of, and calls go on", async () => {
    const { receiver, edge } = await startTraced({}, { OTEL_EXPORTER_OTLP_PROTOCOL: "grpc" });
    await edge.clients.session.getTuple({ threadId: "t" }, { headers: newTrace().headers });
    expect(edge.captured.lines({ level: 40 })).toMatchObject([
      { msg: expect.stringContaining("no traces: OTEL_EXPORTER_OTLP_PROTOCOL") },
    ]);
    await edge.server.drain();
    expect(receiver.spans).toEqual([]);
  });

  test("that cannot be read are told of", async () => {
    const { edge } = await startTraced({}, { OTEL_TRACES_SAMPLER: "sometimes" });
    expect(edge.captured.lines({ level: 40 })).toMatchObject([
      { error: expect.stringContaining("OTEL_TRACES_SAMPLER") },
    ]);
  });
});
