import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { create, createFileRegistry, type DescService, fromBinary } from "@bufbuild/protobuf";
import {
  FileDescriptorProtoSchema,
  FileDescriptorSetSchema,
  file_google_protobuf_descriptor,
  FieldDescriptorProto_Label as Label,
  FieldDescriptorProto_Type as Type,
} from "@bufbuild/protobuf/wkt";
import { createClient } from "@connectrpc/connect";
import { connectNodeAdapter, createGrpcTransport } from "@connectrpc/connect-node";
import * as grpc from "@grpc/grpc-js";
import { loadSync } from "@grpc/proto-loader";
import { afterEach, expect, test } from "vitest";
import { CheckpointService } from "../../gen/checkpointd/v1/checkpoint_service_pb.js";
import { SessionService } from "../../gen/checkpointd/v1/session_service_pb.js";
import { ThreadService } from "../../gen/checkpointd/v1/thread_service_pb.js";
import { ServerReflection as V1 } from "../../gen/grpc/reflection/v1/reflection_pb.js";
import { ServerReflection as V1Alpha } from "../../gen/grpc/reflection/v1alpha/reflection_pb.js";
import { Health } from "../../gen/health/v1/health_pb.js";
import { createLog } from "../log.js";
import { type Listener, startListener } from "./http.js";
import { createReflection } from "./reflection.js";

const started: Listener[] = [];
afterEach(() => Promise.all(started.splice(0).map((listener) => listener.drain(0))));

const reflectionNames = [V1.typeName, V1Alpha.typeName];

/** Serves reflection only, and asks it over one stream. */
async function startReflection(services: DescService[]) {
  const listener = await startListener({
    host: "127.0.0.1",
    port: 0,
    handler: connectNodeAdapter({ routes: createReflection(services) }),
    log: createLog("silent"),
  });
  started.push(listener);
  const transport = createGrpcTransport({ baseUrl: `http://127.0.0.1:${listener.port}` });
  return {
    port: listener.port,
    v1: (asked: Asked[]) => collect(createClient(V1, transport), asked),
    // The same messages under other names, so the same client type serves.
    v1alpha: (asked: Asked[]) =>
      collect(createClient(V1Alpha, transport) as unknown as Client, asked),
  };
}

type Client = ReturnType<typeof createClient<typeof V1>>;
type Asked = NonNullable<
  Parameters<Client["serverReflectionInfo"]>[0] extends AsyncIterable<infer M> ? M : never
>["messageRequest"];

async function collect(client: Client, asked: Asked[]) {
  async function* requests() {
    for (const messageRequest of asked) {
      yield { host: "the.host", ...(messageRequest && { messageRequest }) };
    }
  }
  const answers = [];
  for await (const answer of client.serverReflectionInfo(requests())) answers.push(answer);
  return answers;
}

type Answer = Awaited<ReturnType<typeof collect>>[number];

function fileNames({ messageResponse }: Answer): string[] {
  if (messageResponse.case !== "fileDescriptorResponse") throw new Error(messageResponse.case);
  return messageResponse.value.fileDescriptorProto.map(
    (bytes) => fromBinary(FileDescriptorProtoSchema, bytes).name,
  );
}

const symbol = (value: string): Asked => ({ case: "fileContainingSymbol", value });

test("lists the services and reflection itself, in both versions", async () => {
  const { v1, v1alpha } = await startReflection([CheckpointService, Health]);
  for (const ask of [v1, v1alpha]) {
    const [answer] = await ask([{ case: "listServices", value: "*" }]);
    expect(answer?.messageResponse).toMatchObject({
      case: "listServicesResponse",
      value: {
        service: [CheckpointService.typeName, Health.typeName, ...reflectionNames].map((name) => ({
          name,
        })),
      },
    });
  }
});

test("echoes the host and the request", async () => {
  const { v1, v1alpha } = await startReflection([Health]);
  for (const ask of [v1, v1alpha]) {
    const [answer] = await ask([symbol("no.such.Thing")]);
    expect(answer).toMatchObject({
      validHost: "the.host",
      originalRequest: { host: "the.host", messageRequest: symbol("no.such.Thing") },
    });
  }
});

test("finds the file of a service, method, message, field, enum, value and nested type", async () => {
  const { v1, v1alpha } = await startReflection([CheckpointService, Health]);
  for (const ask of [v1, v1alpha]) {
    const answers = await ask(
      [
        "grpc.health.v1.Health",
        "grpc.health.v1.Health.Check",
        "grpc.health.v1.HealthCheckRequest",
        "grpc.health.v1.HealthCheckRequest.service",
        "grpc.health.v1.HealthCheckResponse.ServingStatus",
        "grpc.health.v1.HealthCheckResponse.SERVING",
        "grpc.reflection.v1.ServerReflectionRequest.message_request",
        "checkpointd.v1.GetTupleRequest.thread_id",
      ].map(symbol),
    );
    expect(answers.map((answer) => fileNames(answer)[0])).toEqual([
      ...Array(6).fill("health/v1/health.proto"),
      "grpc/reflection/v1/reflection.proto",
      "checkpointd/v1/checkpoint_service.proto",
    ]);
  }
});

test("answers a file with everything it imports, in a form that can be built again", async () => {
  const { v1 } = await startReflection([CheckpointService]);
  const [answer] = await v1([
    { case: "fileByFilename", value: "checkpointd/v1/checkpoint_service.proto" },
  ]);
  expect(fileNames(answer!)).toEqual([
    "checkpointd/v1/checkpoint_service.proto",
    "checkpointd/v1/checkpoint.proto",
    "google/protobuf/duration.proto",
  ]);
  if (answer?.messageResponse.case !== "fileDescriptorResponse") throw new Error();
  const file = answer.messageResponse.value.fileDescriptorProto.map((bytes) =>
    fromBinary(FileDescriptorProtoSchema, bytes),
  );
  const built = createFileRegistry(create(FileDescriptorSetSchema, { file: file.reverse() }));
  expect(built.getService(CheckpointService.typeName)?.methods.map((it) => it.name)).toEqual(
    CheckpointService.methods.map((it) => it.name),
  );
});

test("answers our files with their comments: each service, method, message, field and value has one", async () => {
  const { v1, v1alpha } = await startReflection([CheckpointService, ThreadService, SessionService]);
  for (const ask of [v1, v1alpha]) {
    const answers = await ask(
      ["checkpoint", "checkpoint_service", "thread_service", "session_service"].map((name) => ({
        case: "fileByFilename",
        value: `checkpointd/v1/${name}.proto`,
      })),
    );
    for (const { messageResponse } of answers) {
      if (messageResponse.case !== "fileDescriptorResponse") throw new Error(messageResponse.case);
      const [bytes] = messageResponse.value.fileDescriptorProto as [Uint8Array];
      const file = fromBinary(FileDescriptorProtoSchema, bytes);
      const told = new Map(
        file.sourceCodeInfo?.location.map(({ path, leadingComments }) => [
          path.join("."),
          leadingComments,
        ]),
      );
      // Paths by the numbers of FileDescriptorProto's fields: 4 messages, 5 enums, 6 services.
      const paths = [
        ...file.messageType.flatMap(({ field }, i) => [
          `4.${i}`,
          ...field.map((_, j) => `4.${i}.2.${j}`),
        ]),
        ...file.enumType.flatMap(({ value }, i) => [
          `5.${i}`,
          ...value.map((_, j) => `5.${i}.2.${j}`),
        ]),
        ...file.service.flatMap(({ method }, i) => [
          `6.${i}`,
          ...method.map((_, j) => `6.${i}.2.${j}`),
        ]),
      ];
      expect(paths.filter((path) => !told.get(path))).toEqual([]);
      if (file.name.endsWith("checkpoint_service.proto")) {
        expect(told.get("6.0.2.0")).toMatch(
          /^ Returns one checkpoint: the named one, or the latest/,
        );
      }
    }
  }
});

test("answers what is unknown with an error, and the stream goes on", async () => {
  const { v1, v1alpha } = await startReflection([Health]);
  for (const ask of [v1, v1alpha]) {
    const answers = await ask([
      symbol("no.such.Thing"),
      symbol("grpc.health.v1"),
      symbol("constructor"),
      { case: "fileByFilename", value: "no/such.proto" },
      {
        case: "fileContainingExtension",
        value: {
          $typeName: "grpc.reflection.v1.ExtensionRequest",
          containingType: "grpc.health.v1.HealthCheckRequest",
          extensionNumber: 100,
        },
      },
      { case: "allExtensionNumbersOfType", value: "no.such.Message" },
      undefined,
      symbol("grpc.health.v1.Health"),
    ]);
    const codes = answers.map(({ messageResponse }) =>
      messageResponse.case === "errorResponse" ? messageResponse.value.errorCode : 0,
    );
    expect(codes).toEqual([5, 5, 5, 5, 5, 5, 3, 0]);
    expect(answers[0]?.messageResponse.value).toMatchObject({
      errorMessage: "symbol no.such.Thing not found",
    });
  }
});

test("a message without extensions has no extension numbers, which is no error", async () => {
  const { v1 } = await startReflection([Health]);
  const value = "grpc.health.v1.HealthCheckRequest";
  const [answer] = await v1([{ case: "allExtensionNumbersOfType", value }]);
  expect(answer?.messageResponse).toMatchObject({
    case: "allExtensionNumbersResponse",
    value: { baseTypeName: value, extensionNumber: [] },
  });
});

/** A service in proto2 with what ours do not have: extensions, and imports of imports. */
function createExtendedService(): DescService {
  const message = { name: "Base", extensionRange: [{ start: 100, end: 200 }] };
  const file = [
    file_google_protobuf_descriptor.proto,
    create(FileDescriptorProtoSchema, {
      name: "t/base.proto",
      package: "t",
      dependency: ["google/protobuf/descriptor.proto"],
      messageType: [message],
      extension: [
        {
          name: "on_files",
          extendee: ".google.protobuf.FileOptions",
          number: 50_001,
          type: Type.STRING,
          label: Label.OPTIONAL,
        },
      ],
    }),
    create(FileDescriptorProtoSchema, {
      name: "t/service.proto",
      package: "t",
      dependency: ["t/base.proto"],
      messageType: [
        {
          name: "Outer",
          nestedType: [
            {
              name: "Inner",
              field: [{ name: "f", number: 1, type: Type.STRING, label: Label.OPTIONAL }],
            },
          ],
          extension: [
            {
              name: "more",
              extendee: ".t.Base",
              number: 101,
              type: Type.INT32,
              label: Label.OPTIONAL,
            },
          ],
        },
      ],
      enumType: [{ name: "Colour", value: [{ name: "RED", number: 0 }] }],
      service: [
        { name: "Service", method: [{ name: "Do", inputType: ".t.Base", outputType: ".t.Outer" }] },
      ],
    }),
  ];
  return createFileRegistry(create(FileDescriptorSetSchema, { file })).getService("t.Service")!;
}

test("finds extensions and the numbers of a message's extensions", async () => {
  const { v1 } = await startReflection([createExtendedService()]);
  const extension = (containingType: string, extensionNumber: number): Asked => ({
    case: "fileContainingExtension",
    value: { $typeName: "grpc.reflection.v1.ExtensionRequest", containingType, extensionNumber },
  });
  const [more, onFiles, numbers, ...symbols] = await v1([
    extension("t.Base", 101),
    extension("google.protobuf.FileOptions", 50_001),
    { case: "allExtensionNumbersOfType", value: "t.Base" },
    ...["t.Outer.more", "t.Outer.Inner.f", "t.RED"].map(symbol),
  ]);
  const files = ["t/service.proto", "t/base.proto", "google/protobuf/descriptor.proto"];
  expect(fileNames(more!)).toEqual(files);
  expect(fileNames(onFiles!)).toEqual(files.slice(1));
  expect(numbers?.messageResponse.value).toMatchObject({ extensionNumber: [101] });
  for (const answer of symbols) expect(fileNames(answer)).toEqual(files);
});

test("@grpc/grpc-js reads it, in both versions", async () => {
  const { port } = await startReflection([Health]);
  const protos = join(
    dirname(createRequire(import.meta.url).resolve("@grpc/reflection/package.json")),
    "build/proto/grpc/reflection",
  );
  for (const version of ["v1", "v1alpha"]) {
    const definition = loadSync(join(protos, version, "reflection.proto"), { keepCase: true });
    const Service = grpc.makeClientConstructor(
      definition[`grpc.reflection.${version}.ServerReflection`] as grpc.ServiceDefinition,
      "ServerReflection",
    );
    const client = new Service(`127.0.0.1:${port}`, grpc.credentials.createInsecure());
    const call = client.ServerReflectionInfo!() as grpc.ClientDuplexStream<object, object>;
    call.write({ list_services: "" });
    call.end({ file_containing_symbol: "grpc.health.v1.Health" });
    const answers: object[] = await call.toArray();
    client.close();
    expect(answers[0]).toMatchObject({
      list_services_response: {
        service: [Health.typeName, ...reflectionNames].map((name) => ({ name })),
      },
    });
    expect(answers[1]).toMatchObject({
      file_descriptor_response: { file_descriptor_proto: [expect.any(Buffer)] },
    });
  }
});
