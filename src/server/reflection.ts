import { type DescFile, type DescService, fromBinary, toBinary } from "@bufbuild/protobuf";
import { nestedTypes } from "@bufbuild/protobuf/reflect";
import { base64Decode } from "@bufbuild/protobuf/wire";
import { FileDescriptorProtoSchema, SourceCodeInfoSchema } from "@bufbuild/protobuf/wkt";
import type { ConnectRouter } from "@connectrpc/connect";
import { comments } from "../../gen/comments.js";
import {
  ServerReflection,
  type ServerReflectionRequest,
} from "../../gen/grpc/reflection/v1/reflection_pb.js";
import {
  type ServerReflectionRequest as ServerReflectionRequestV1Alpha,
  ServerReflection as ServerReflectionV1Alpha,
} from "../../gen/grpc/reflection/v1alpha/reflection_pb.js";

// The two versions differ in the names of their packages only.
type Request = ServerReflectionRequest | ServerReflectionRequestV1Alpha;

/** gRPC's status codes, as they stand in an ErrorResponse. */
const invalidArgument = 3;
const notFound = 5;

/**
 * Creates the routes of server reflection, `grpc.reflection.v1` and `v1alpha`, which tell
 * clients such as grpcurl what the given services (and reflection itself) look like.
 *
 * Files are answered together with everything they import, and ours with their comments, so that
 * `grpcurl describe` documents the API. What is not known is answered
 * with an ErrorResponse (NOT_FOUND), and the stream goes on.
 */
export function createReflection(
  services: readonly DescService[],
): (router: ConnectRouter) => void {
  const index = indexServices([...services, ServerReflection, ServerReflectionV1Alpha]);

  // Inferred apart for each version, so that each stream gets its own version's request back.
  async function* serverReflectionInfo<R extends Request>(requests: AsyncIterable<R>) {
    for await (const request of requests) {
      yield {
        validHost: request.host,
        originalRequest: request,
        messageResponse: answer(index, request.messageRequest),
      };
    }
  }

  return (router) => {
    router.service(ServerReflection, { serverReflectionInfo });
    router.service(ServerReflectionV1Alpha, { serverReflectionInfo });
  };
}

function answer(index: Index, asked: Request["messageRequest"]) {
  switch (asked.case) {
    case "listServices":
      return {
        case: "listServicesResponse" as const,
        value: { service: index.services.map((name) => ({ name })) },
      };
    case "fileByFilename":
      return toFiles(index.files.get(asked.value), `file ${asked.value}`);
    case "fileContainingSymbol":
      return toFiles(index.symbols.get(asked.value), `symbol ${asked.value}`);
    case "fileContainingExtension": {
      const { containingType, extensionNumber } = asked.value;
      return toFiles(
        index.extensions.get(containingType)?.get(extensionNumber),
        `extension ${extensionNumber} of ${containingType}`,
      );
    }
    case "allExtensionNumbersOfType": {
      const numbers = index.extensions.get(asked.value);
      if (!numbers) return toError(notFound, `message ${asked.value} not found`);
      return {
        case: "allExtensionNumbersResponse" as const,
        value: { baseTypeName: asked.value, extensionNumber: [...numbers.keys()] },
      };
    }
    case undefined:
      return toError(invalidArgument, "message_request: one of its fields must be set");
  }
}

function toFiles(file: DescFile | undefined, name: string) {
  if (!file) return toError(notFound, `${name} not found`);
  return {
    case: "fileDescriptorResponse" as const,
    value: {
      fileDescriptorProto: [...withImports(file)].map(toProto),
    },
  };
}

/** The file's descriptor, with the comments that generated code leaves out of it. */
function toProto({ proto }: DescFile): Uint8Array<ArrayBuffer> {
  const info = Object.hasOwn(comments, proto.name) ? comments[proto.name] : undefined;
  if (info === undefined) return toBinary(FileDescriptorProtoSchema, proto);
  const sourceCodeInfo = fromBinary(SourceCodeInfoSchema, base64Decode(info));
  return toBinary(FileDescriptorProtoSchema, { ...proto, sourceCodeInfo });
}

function toError(errorCode: number, errorMessage: string) {
  return { case: "errorResponse" as const, value: { errorCode, errorMessage } };
}

/** The file first, then each file that it imports, directly or not, once. */
function withImports(file: DescFile, seen = new Set<DescFile>()): Set<DescFile> {
  if (seen.has(file)) return seen;
  seen.add(file);
  for (const imported of file.dependencies) withImports(imported, seen);
  return seen;
}

interface Index {
  services: string[];
  files: Map<string, DescFile>;
  /** Every fully qualified name that a file declares. */
  symbols: Map<string, DescFile>;
  /** Each message, and the numbers and files of its extensions. */
  extensions: Map<string, Map<number, DescFile>>;
}

function indexServices(services: readonly DescService[]): Index {
  const files = new Set<DescFile>();
  for (const service of services) withImports(service.file, files);

  const index: Index = {
    services: [...new Set(services.map((service) => service.typeName))].sort(),
    // Descriptors carry their file's name without the suffix.
    files: new Map([...files].map((file) => [file.proto.name, file])),
    symbols: new Map(),
    extensions: new Map(),
  };
  for (const file of files) indexSymbols(index, file);
  return index;
}

function indexSymbols({ symbols, extensions }: Index, file: DescFile): void {
  const extensionsOf = (message: string) => {
    const known = extensions.get(message) ?? new Map<number, DescFile>();
    extensions.set(message, known);
    return known;
  };
  for (const type of nestedTypes(file)) {
    symbols.set(type.typeName, file);
    const inside = (name: string) => symbols.set(`${type.typeName}.${name}`, file);
    switch (type.kind) {
      case "service":
        for (const method of type.methods) inside(method.name);
        break;
      case "message":
        extensionsOf(type.typeName);
        for (const field of type.fields) inside(field.name);
        for (const oneof of type.oneofs) inside(oneof.name);
        break;
      case "enum": {
        // The values of an enum are named beside it, not inside it.
        const scope = type.typeName.slice(0, type.typeName.lastIndexOf(".") + 1);
        for (const value of type.values) symbols.set(scope + value.name, file);
        break;
      }
      case "extension":
        extensionsOf(type.extendee.typeName).set(type.number, file);
        break;
    }
  }
}
