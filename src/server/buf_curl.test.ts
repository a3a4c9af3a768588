/** buf curl, without any .proto file. What it is told, grpcurl is told by grpcurl.test.ts. */
import { createRequire } from "node:module";
import path from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { startEdge } from "../testing/edge.js";
import { rpcs, run, service, tellAll } from "../testing/foreign_tool.js";

let edge: Awaited<ReturnType<typeof startEdge>>;
beforeAll(async () => {
  edge = await startEdge();
});
afterAll(() => edge.stop());

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
