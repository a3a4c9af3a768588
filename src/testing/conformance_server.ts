/**
 * The judge's service, behind our own way to the services, in a process of its own that
 * connectconformance starts: it reads from its standard input what to support, and says where it
 * listens. Argument: the judge's files, as a FileDescriptorSet.
 */
import { readFile } from "node:fs/promises";
import {
  create,
  createFileRegistry,
  type DescMessage,
  fromBinary,
  type Message,
  toBinary,
} from "@bufbuild/protobuf";
import { FileDescriptorSetSchema } from "@bufbuild/protobuf/wkt";
import { defaultMessageBytes } from "../protocol/wire.js";
import { conformanceRoutes } from "./conformance_service.js";
import { startEchoServer } from "./echo_server.js";

const files = fromBinary(FileDescriptorSetSchema, await readFile(process.argv[3] as string));
const registry = createFileRegistry(files);
const message = (name: string) =>
  registry.getMessage(`connectrpc.conformance.v1.${name}`) as DescMessage;

/** One message, with its length before it. */
async function readAsked(): Promise<{ messageReceiveLimit: number }> {
  let bytes = Buffer.alloc(0);
  for await (const chunk of process.stdin) {
    bytes = Buffer.concat([bytes, chunk]);
    if (bytes.length < 4) continue;
    const end = 4 + bytes.readUInt32BE(0);
    if (bytes.length < end) continue;
    const asked: Message = fromBinary(message("ServerCompatRequest"), bytes.subarray(4, end));
    return asked as Message & { messageReceiveLimit: number };
  }
  throw new Error("the judge did not say what to support");
}

const { messageReceiveLimit } = await readAsked();
const server = await startEchoServer(() => undefined, {}, undefined, {
  others: conformanceRoutes(registry),
  fallback(_, response) {
    response.writeHead(404);
    response.end();
  },
  maxMessageSize: messageReceiveLimit || defaultMessageBytes,
  compression: true,
});
const { hostname: host, port } = new URL(server.url);
const schema = message("ServerCompatResponse");
const answer = toBinary(schema, create(schema, { host, port: Number(port) } as never));
const length = Buffer.alloc(4);
length.writeUInt32BE(answer.length);
process.stdout.write(Buffer.concat([length, answer]));
process.once("SIGTERM", () => void server.stop().then(() => process.exit()));
