/** An agent's spans, the service's and its statements' are one trace, whatever carries the calls. */
import { Annotation, END, START, StateGraph } from "@langchain/langgraph";
import { context, type Span, SpanKind, trace } from "@opentelemetry/api";
import { AsyncLocalStorageContextManager } from "@opentelemetry/context-async-hooks";
import { OTLPTraceExporter } from "@opentelemetry/exporter-trace-otlp-proto";
import { resourceFromAttributes } from "@opentelemetry/resources";
import {
  AlwaysOffSampler,
  BasicTracerProvider,
  BatchSpanProcessor,
} from "@opentelemetry/sdk-trace-base";
import {
  afterAll,
  afterEach,
  beforeAll,
  beforeEach,
  describe,
  expect,
  it,
  onTestFinished,
} from "vitest";
import type { Server } from "../server/server.js";
import {
  type OtlpReceiver,
  type ReceivedSpan,
  startOtlpReceiver,
} from "../testing/otlp_receiver.js";
import { createDatabase, type TestDatabase } from "../testing/postgres.js";
import { startTestServer } from "../testing/test_server.js";
import { ConnectSaver, type ConnectSaverUrlOptions } from "./saver.js";

let receiver: OtlpReceiver;
let database: TestDatabase;
let server: Server;
beforeAll(async () => {
  receiver = await startOtlpReceiver();
  process.env.OTEL_EXPORTER_OTLP_ENDPOINT = receiver.endpoint;
  process.env.OTEL_BSP_SCHEDULE_DELAY = "20";
  database = await createDatabase();
  server = await startTestServer(database.url);
});
afterAll(async () => {
  await server?.drain();
  await database?.drop();
  await receiver?.close();
});

/** What an application sets up. */
function setUp(options: object = {}): BasicTracerProvider {
  const provider = new BasicTracerProvider({
    resource: resourceFromAttributes({ "service.name": "agent" }),
    spanProcessors: [new BatchSpanProcessor(new OTLPTraceExporter())],
    ...options,
  });
  trace.setGlobalTracerProvider(provider);
  context.setGlobalContextManager(new AsyncLocalStorageContextManager().enable());
  return provider;
}
beforeEach(() => {
  setUp();
});
afterEach(() => {
  trace.disable();
  context.disable();
});

/** Runs something in a span of the application's, and returns its trace's spans once they are all there. */
async function inSpan(use: (span: Span) => Promise<unknown>, isWhole = everyCallIsTold) {
  const traceId = await trace.getTracer("app").startActiveSpan("agent", async (span) => {
    try {
      await use(span);
    } finally {
      span.end();
    }
    return span.spanContext().traceId;
  });
  const spans = () => receiver.spans.filter((span) => span.traceId === traceId);
  await expect.poll(() => isWhole(spans())).toBe(true);
  return spans();
}

const ofAgent = (spans: readonly ReceivedSpan[]) =>
  spans.filter(({ resource, kind }) => resource["service.name"] === "agent" && kind === 3);
const ofServer = (spans: readonly ReceivedSpan[]) => spans.filter(({ kind }) => kind === 2);
const below = (spans: readonly ReceivedSpan[], { spanId }: ReceivedSpan) =>
  spans.filter(({ parentSpanId }) => parentSpanId === spanId);

/** Whether the agent's span is there, each call has its span of the service, and that its statement's. */
function everyCallIsTold(spans: readonly ReceivedSpan[]): boolean {
  const calls = ofAgent(spans);
  return (
    spans.some(({ name }) => name === "agent") &&
    calls.length > 0 &&
    calls.every((call) => below(spans, call).some(({ kind }) => kind === 2)) &&
    ofServer(spans).every((call) => below(spans, call).length > 0)
  );
}

function connect(options: ConnectSaverUrlOptions = {}, url = server.url): ConnectSaver {
  const saver = ConnectSaver.fromUrl(url, options);
  onTestFinished(() => saver.end());
  return saver;
}

const checkpoint = (id: string, value: unknown = "hello") => ({
  v: 4,
  id,
  ts: "2026-01-01T00:00:00Z",
  channel_values: { a: value },
  channel_versions: { a: Number(id) },
  versions_seen: {},
});
const metadata = { source: "loop" as const, step: 1, parents: {} };
const thread = (name: string) => ({ configurable: { thread_id: name, checkpoint_ns: "" } });

const carriers: [string, ConnectSaverUrlOptions, string][] = [
  ["a session", {}, "session"],
  ["Connect", { session: false }, "connect"],
  ["Connect with JSON", { json: true }, "connect"],
  ["gRPC", { protocol: "grpc" }, "grpc"],
  ["gRPC-Web", { protocol: "grpc-web" }, "grpc-web"],
];

describe.each(carriers)("over %s", (_, options, carrier) => {
  it("each call is a span between the agent's and the service's", async () => {
    const saver = connect(options);
    const spans = await inSpan(async () => {
      const config = await saver.put(thread("t"), checkpoint("1"), metadata, { a: 1 });
      await saver.putWrites(config, [["a", 1]], "task");
      await saver.getTuple(config);
      for await (const _ of saver.list(thread("t")));
      await saver.deleteThread("t");
    });
    const [root] = spans.filter(({ name }) => name === "agent");
    const calls = ofAgent(spans);
    const list =
      carrier === "session"
        ? "checkpointd.v1.SessionService/ListPage"
        : "checkpointd.v1.CheckpointService/List";
    const told = calls.map(({ name }) => name);
    expect(told.filter((name) => name !== list)).toEqual([
      "checkpointd.v1.CheckpointService/Put",
      "checkpointd.v1.CheckpointService/PutWrites",
      "checkpointd.v1.CheckpointService/GetTuple",
      "checkpointd.v1.CheckpointService/DeleteThread",
    ]);
    expect(told).toContain(list);
    const { hostname, port } = new URL(server.url);
    for (const call of calls) {
      expect(call).toMatchObject({
        parentSpanId: root?.spanId,
        kind: 3,
        status: 0,
        attributes: {
          "rpc.system.name": carrier.startsWith("grpc") ? "grpc" : "connectrpc",
          "rpc.method": call.name,
          "server.address": hostname,
          "server.port": Number(port),
          "gen_ai.conversation.id": "t",
        },
      });
      const [served] = below(spans, call);
      expect(served).toMatchObject({
        name: call.name,
        attributes: { "checkpointd.carrier": carrier },
      });
      expect(below(spans, served!)[0]?.attributes["db.system.name"]).toBe("postgresql");
    }
  });

  it("a graph's run is one trace", async () => {
    const State = Annotation.Root({
      log: Annotation<string[]>({ reducer: (a, b) => [...a, ...b], default: () => [] }),
    });
    const graph = new StateGraph(State)
      .addNode("one", () => ({ log: ["one"] }))
      .addNode("two", () => ({ log: ["two"] }))
      .addEdge(START, "one")
      .addEdge("one", "two")
      .addEdge("two", END)
      .compile({ checkpointer: connect(options) });
    const spans = await inSpan(() => graph.invoke({ log: ["in"] }, thread(`graph ${carrier}`)));
    const names = ofServer(spans).map(({ name }) => name.split("/")[1]);
    // A checkpoint for the input and each step, and the writes between.
    expect(names.filter((name) => name === "Put")).toHaveLength(4);
    expect(names).toEqual(expect.arrayContaining(["GetTuple", "PutWrites"]));
    for (const call of ofServer(spans)) {
      expect(call.attributes["gen_ai.conversation.id"]).toBe(`graph ${carrier}`);
      expect(ofAgent(spans).map(({ spanId }) => spanId)).toContain(call.parentSpanId);
    }
  });

  it("threads are listed in a span, also where the reader leaves", async () => {
    const saver = connect(options);
    for (let i = 0; i < 5; i++)
      await saver.put(thread(`many ${i}`), checkpoint("1"), metadata, { a: 1 });
    const spans = await inSpan(async () => {
      for await (const _ of saver.threads.list()) break;
    });
    expect(ofAgent(spans)).toMatchObject([
      { name: "checkpointd.v1.ThreadService/ListThreads", status: 0 },
    ]);
  });

  it("what is not sampled is told so", async () => {
    trace.disable();
    const silent = setUp({ sampler: new AlwaysOffSampler() });
    const saver = connect(options);
    const before = receiver.spans.length;
    await silent.getTracer("app").startActiveSpan("agent", async (span) => {
      await saver.getTuple(thread("silent"));
      span.end();
    });
    // Another comes after it, which is.
    await saver.getTuple(thread("loud"));
    const isLoud = ({ attributes }: ReceivedSpan) =>
      attributes["gen_ai.conversation.id"] === "loud";
    await expect.poll(() => receiver.spans.slice(before).some(isLoud)).toBe(true);
    const ids = receiver.spans.map(({ attributes }) => attributes["gen_ai.conversation.id"]);
    expect(ids).not.toContain("silent");
  });

  it("without a span there is none of the agent's, and nothing is sent", async () => {
    const saver = connect(options);
    await saver.getTuple(thread(`alone ${carrier}`));
    const mine = () =>
      receiver.spans.filter(
        ({ attributes }) => attributes["gen_ai.conversation.id"] === `alone ${carrier}`,
      );
    await expect.poll(mine).toMatchObject([{ kind: 2, parentSpanId: "" }]);
  });

  it("an error of the service is the span's", async () => {
    const saver = connect(options);
    const spans = await inSpan(
      () => saver.getTuple(thread("x".repeat(70_000))).catch(() => {}),
      (all) => ofServer(all).length > 0 && ofAgent(all).length > 0,
    );
    const code = carrier.startsWith("grpc") ? "INVALID_ARGUMENT" : "invalid_argument";
    expect(ofAgent(spans)).toMatchObject([
      { status: 2, attributes: { "rpc.status_code": code, "error.type": code } },
    ]);
  });
});

it("a put of what is new of a value is one of the agent's, by what carries it the service's", async () => {
  const saver = connect();
  const long = "x".repeat(20_000);
  await saver.put(thread("long"), checkpoint("1", long), metadata, { a: 1 });
  const spans = await inSpan(() =>
    saver.put(thread("long"), checkpoint("2", `${long}y`), metadata, { a: 2 }),
  );
  expect(ofAgent(spans)).toMatchObject([{ name: "checkpointd.v1.CheckpointService/Put" }]);
  expect(ofServer(spans)).toMatchObject([
    {
      name: "checkpointd.v1.SessionService/PutExtending",
      attributes: { "gen_ai.conversation.id": "long" },
    },
  ]);
});

it("each try is a span, of which those that found no server tell so", async () => {
  const other = await startTestServer(database.url);
  await other.drain();
  const saver = connect({ retry: { attempts: 3, initialDelayMs: 1 } }, other.url);
  const spans = await inSpan(
    () => saver.getTuple(thread("t")).catch(() => {}),
    (all) => ofAgent(all).length === 3,
  );
  for (const span of ofAgent(spans)) {
    expect(span).toMatchObject({ status: 2, attributes: { "error.type": "unavailable" } });
  }
});

it("state of the trace is passed on", async () => {
  const saver = connect();
  const state = { serialize: () => "vendor=value" };
  const traceId = "5c".repeat(16);
  const spanContext = { traceId, spanId: "00f067aa0ba902b7", traceFlags: 1, traceState: state };
  const parent = trace.setSpanContext(context.active(), spanContext as never);
  await context.with(parent, () => saver.getTuple(thread("state")));
  const served = () => ofServer(receiver.spans.filter((span) => span.traceId === traceId));
  await expect.poll(served).toMatchObject([{ traceState: "vendor=value" }]);
});

it("an application without a provider of its own has its trace go on", async () => {
  trace.disable();
  const saver = connect();
  const spanContext = { traceId: "6d".repeat(16), spanId: "00f067aa0ba902b7", traceFlags: 1 };
  const parent = trace.setSpanContext(context.active(), spanContext);
  await context.with(parent, () => saver.getTuple(thread("t")));
  const served = () =>
    ofServer(receiver.spans.filter((span) => span.traceId === spanContext.traceId));
  await expect.poll(served).toMatchObject([{ parentSpanId: spanContext.spanId }]);
});

it("no call fails for what is registered", async () => {
  const saver = connect();
  const fail = () => {
    throw new Error("broken");
  };
  trace.disable();
  trace.setGlobalTracerProvider({ getTracer: () => ({ startSpan: fail }) as never });
  const spanContext = { traceId: "7e".repeat(16), spanId: "00f067aa0ba902b7", traceFlags: 1 };
  const parent = trace.setSpanContext(context.active(), spanContext);
  await context.with(parent, () => saver.getTuple(thread("t")));
  context.disable();
  const disable = () => {};
  context.setGlobalContextManager({ active: fail, with: fail, bind: fail, disable } as never);
  await saver.getTuple(thread("t"));
});

it("knows the kinds by OpenTelemetry's numbers", () => {
  expect(SpanKind.CLIENT).toBe(2);
});
