/** A server of another version: its sessions answer as a test says. */
import { createServer } from "node:http2";
import type { AddressInfo } from "node:net";
import type { MessageInitShape } from "@bufbuild/protobuf";
import type { ServiceImpl } from "@connectrpc/connect";
import { connectNodeAdapter } from "@connectrpc/connect-node";
import { onTestFinished } from "vitest";
import { CheckpointService } from "../../gen/checkpointd/v1/checkpoint_service_pb.js";
import {
  type OpenSessionRequest,
  type OpenSessionResponseSchema,
  SessionService,
} from "../../gen/checkpointd/v1/session_service_pb.js";
import { offsetField, operationFields } from "../protocol/operations.js";

/** What a session says. */
export type SessionAnswer = MessageInitShape<typeof OpenSessionResponseSchema>;

/**
 * Starts one for the test that runs, with those calls beside its sessions, on which it knows those
 * operations; returns its URL.
 */
export async function startForeignSessions(
  answer: (request: OpenSessionRequest) => Iterable<SessionAnswer>,
  calls: Partial<ServiceImpl<typeof CheckpointService>> = {},
  operations: readonly string[] = [...Object.values(operationFields), offsetField],
): Promise<string> {
  const server = createServer(
    connectNodeAdapter({
      routes: (router) =>
        router
          .service(SessionService, {
            async *openSession(requests): AsyncGenerator<SessionAnswer> {
              yield {
                result: { case: "welcome", value: { maxInFlight: 8, operations: [...operations] } },
              };
              for await (const request of requests) yield* answer(request);
            },
          })
          .service(CheckpointService, calls),
    }),
  );
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  onTestFinished(() => void server.close());
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
}
