/** grpcurl, which has to be on the PATH: `npm run test:grpcurl`. In `npm test` buf curl stands for it. */
import { afterAll, beforeAll, expect, test } from "vitest";
import { startEdge } from "../testing/edge.js";
import { rpcs, run, service, tellAll } from "../testing/foreign_tool.js";

let edge: Awaited<ReturnType<typeof startEdge>>;
beforeAll(async () => {
  edge = await startEdge();
});
afterAll(() => edge.stop());

const curl = (args: string[], then: string[] = []) =>
  run("grpcurl", ["-plaintext", ...args, `127.0.0.1:${edge.server.port}`, ...then]);

test("list", async () => {
  const { out } = await curl([], ["list"]);
  expect(out.trim().split("\n")).toEqual([
    service,
    "checkpointd.v1.SessionService",
    "checkpointd.v1.ThreadService",
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
  ]);
  const methods = await curl([], ["list", service]);
  expect(methods.out.trim().split("\n").toSorted()).toEqual(
    rpcs.map((rpc) => `${service}.${rpc}`).toSorted(),
  );
});

test("describe: a service, a message, a field's type, another package", async () => {
  const described = await curl([], ["describe", service]);
  expect(described.out).toContain("rpc List");
  expect(described.out).toContain("returns ( stream .checkpointd.v1.ListResponse )");
  for (const [symbol, expected] of [
    ["checkpointd.v1.PutRequest", "repeated .checkpointd.v1.ChannelBlob blobs = 7;"],
    ["checkpointd.v1.ListView", "LIST_VIEW_METADATA = 2;"],
    ["grpc.health.v1.Health", "rpc Watch"],
  ] as const) {
    expect((await curl([], ["describe", symbol])).out).toContain(expected);
  }
});

test("describe documents: what a service, a call, a field and a value of an enum mean", async () => {
  for (const [symbol, comment] of [
    [service, "// Keeps LangGraph checkpoints in Postgres, in LangGraph's own tables."],
    [
      service,
      "  // Returns one checkpoint: the named one, or the latest of a thread and namespace.",
    ],
    ["checkpointd.v1.GetTupleRequest", "  // The thread. Required,"],
    ["checkpointd.v1.ThreadStatus", "  // There is nothing left to run."],
  ] as const) {
    expect((await curl([], ["describe", symbol])).out).toContain(comment);
  }
});

test("all five RPCs", () =>
  tellAll("grpcurl", (rpc, request) =>
    curl(["-d", JSON.stringify(request)], [`${service}/${rpc}`]),
  ));

test("health, and a deadline", async () => {
  const health = await curl([], ["grpc.health.v1.Health/Check"]);
  expect(JSON.parse(health.out)).toEqual({ status: "SERVING" });
  const watch = await curl(["-max-time", "1"], ["grpc.health.v1.Health/Watch"]);
  expect(watch.out).toContain("SERVING");
  expect(watch.err).toContain("DeadlineExceeded");
});
