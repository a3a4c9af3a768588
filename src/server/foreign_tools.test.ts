/** The command-line tools people reach for, without any .proto file: buf curl and grpcurl. */
import { execFile } from "node:child_process";
import { accessSync, constants } from "node:fs";
import { createRequire } from "node:module";
import path from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { startEdge } from "../testing/edge.js";

const service = "checkpointd.v1.CheckpointService";
const rpcs = ["GetTuple", "Put", "PutWrites", "List", "DeleteThread"];

let edge: Awaited<ReturnType<typeof startEdge>>;
beforeAll(async () => {
  edge = await startEdge();
});
afterAll(() => edge.stop());

interface Output {
  code: number;
  out: string;
  err: string;
}

function run(file: string, args: string[]): Promise<Output> {
  return new Promise((resolve) => {
    execFile(file, args, { timeout: 20_000 }, (error, out, err) =>
      resolve({ code: error ? Number(error.code ?? -1) : 0, out, err }),
    );
  });
}

/** The JSON values of an output, one after the other with nothing but white space between. */
function parseAll(text: string): unknown[] {
  return text
    .split(/(?<=^\}|^\{\})\s*\n/m)
    .filter((each) => each.trim() !== "")
    .map((each) => JSON.parse(each));
}

const put = (threadId: string) => ({
  threadId,
  checkpointId: "1",
  checkpointJson: `{"v":4,"channel_versions":{"c":1}}`,
  blobs: [{ channel: "c", version: "1", value: { type: "json", data: "MQ==" } }],
});

/** Calls each RPC through a tool, and one of them wrongly. */
async function tellAll(
  threadId: string,
  call: (rpc: string, request: object) => Promise<Output>,
): Promise<void> {
  const key = { threadId, checkpointId: "1" };
  const ok = async (rpc: string, request: object): Promise<unknown[]> => {
    const { code, out, err } = await call(rpc, request);
    expect(code, err).toBe(0);
    return parseAll(out);
  };
  expect(await ok("Put", put(threadId))).toEqual([{}]);
  const writes = [{ channel: "c", value: { type: "json", data: "MQ==" } }];
  expect(await ok("PutWrites", { ...key, taskId: "t", writes })).toEqual([{}]);
  await ok("Put", { ...put(threadId), checkpointId: "2", parentCheckpointId: "1", blobs: [] });
  const tuple = { key, blobs: put(threadId).blobs, pendingWrites: [{ taskId: "t" }] };
  expect(await ok("GetTuple", key)).toMatchObject([{ tuple }]);
  expect(await ok("List", { threadId })).toMatchObject([
    { tuple: { key: { checkpointId: "2" }, parentCheckpointId: "1" } },
    { tuple },
  ]);
  expect(await ok("DeleteThread", { threadId })).toEqual([{}]);
  expect(await ok("GetTuple", key)).toEqual([{}]);
  const refused = await call("GetTuple", {});
  expect(refused.code).not.toBe(0);
  expect(refused.err.toLowerCase().replace("_", "")).toContain("invalidargument");
  expect(refused.err).toContain("must not be empty");
  expect(refused.err).toContain("checkpointd.v1.ErrorDetail");
}

describe("buf curl", () => {
  const require = createRequire(import.meta.url);
  const folder = path.dirname(require.resolve("@bufbuild/buf/package.json"));
  const buf = path.join(folder, require("@bufbuild/buf/package.json").bin.buf);
  const curl = (...args: string[]) =>
    run(process.execPath, [buf, "curl", "--http2-prior-knowledge", ...args]);

  for (const protocol of ["grpc", "grpcweb", "connect"]) {
    test(`all five RPCs over ${protocol}`, () =>
      tellAll(`buf-${protocol}`, (rpc, request) =>
        curl(
          ...["--protocol", protocol, "--data", JSON.stringify(request)],
          `${edge.server.url}/${service}/${rpc}`,
        ),
      ));
  }

  for (const version of ["grpc-v1", "grpc-v1alpha"]) {
    test(`finds the services and methods by reflection, ${version}`, async () => {
      const reflect = ["--reflect-protocol", version];
      const services = await curl(...reflect, "--list-services", edge.server.url);
      expect(services.out.split("\n")).toEqual(
        expect.arrayContaining([service, "grpc.health.v1.Health"]),
      );
      const methods = await curl(...reflect, "--list-methods", edge.server.url);
      expect(methods.out.split("\n")).toEqual(
        expect.arrayContaining(rpcs.map((rpc) => `${service}/${rpc}`)),
      );
    });
  }

  test("over HTTP/1.1", async () => {
    const { code, out } = await run(process.execPath, [
      ...[buf, "curl", "--protocol", "connect", "--schema", "proto"],
      ...["--data", '{"threadId":"nobody"}', `${edge.server.url}/${service}/GetTuple`],
    ]);
    expect({ code, out: out.trim() }).toEqual({ code: 0, out: "{}" });
  });
});

/** Where grpcurl is, on a machine that has it; elsewhere buf curl has to stand for it. */
const grpcurl = (process.env.PATH ?? "")
  .split(path.delimiter)
  .map((folder) => path.join(folder, "grpcurl"))
  .find((file) => {
    try {
      accessSync(file, constants.X_OK);
      return true;
    } catch {
      return false;
    }
  });

if (grpcurl !== undefined) {
  describe("grpcurl", () => {
    const curl = (args: string[], then: string[] = []) =>
      run(grpcurl, ["-plaintext", ...args, `127.0.0.1:${edge.server.port}`, ...then]);

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
  });
}
