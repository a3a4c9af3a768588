/**
 * Everything that a client can ask for, in one list each: the operations, which are asked and
 * answered once, and the streams. Both ends are typed by them, so that one that is forgotten
 * anywhere does not compile: the server's implementations and checks, a client's carriers.
 */
import type { MessageInitShape, MessageShape } from "@bufbuild/protobuf";
import { CheckpointService } from "../../gen/checkpointd/v1/checkpoint_service_pb.js";
import {
  ListPageRequestSchema,
  ListPageResponseSchema,
  type OpenSessionRequest,
  OpenSessionRequestSchema,
  PutExtendingRequestSchema,
  PutExtendingResponseSchema,
} from "../../gen/checkpointd/v1/session_service_pb.js";
import { ThreadService } from "../../gen/checkpointd/v1/thread_service_pb.js";

const { method: checkpoint } = CheckpointService;
const { method: thread } = ThreadService;

/** The operations of a session, which are its oneof's cases but for what is no operation. */
export type OperationName = Exclude<
  OpenSessionRequest["operation"]["case"],
  "cancel" | "ping" | undefined
>;

/**
 * Named by their constants, because the types of the CommonJS build cannot name protobuf-es' own
 * type of them (TS2883: it looks for the package's import condition there).
 */
interface OnlyOfSessions {
  listPage: { input: typeof ListPageRequestSchema; output: typeof ListPageResponseSchema };
  putExtending: {
    input: typeof PutExtendingRequestSchema;
    output: typeof PutExtendingResponseSchema;
  };
}
const onlyOfSessions: OnlyOfSessions = {
  listPage: { input: ListPageRequestSchema, output: ListPageResponseSchema },
  putExtending: { input: PutExtendingRequestSchema, output: PutExtendingResponseSchema },
};

/** The messages of each operation: all unary RPCs, and two that only sessions have. */
export const operations = {
  getTuple: checkpoint.getTuple,
  put: checkpoint.put,
  putWrites: checkpoint.putWrites,
  deleteThread: checkpoint.deleteThread,
  getThread: thread.getThread,
  claimThreads: thread.claimThreads,
  renewClaim: thread.renewClaim,
  releaseClaim: thread.releaseClaim,
  copyThread: thread.copyThread,
  deleteRuns: thread.deleteRuns,
  listPage: onlyOfSessions.listPage,
  putExtending: onlyOfSessions.putExtending,
} satisfies Record<OperationName, object>;

/** The messages of each RPC that streams its answers. */
export const streams = {
  list: checkpoint.list,
  listThreads: thread.listThreads,
  getChannelHistory: thread.getChannelHistory,
  pruneThreads: thread.pruneThreads,
};

/** The streams, by their names in the services. */
export type StreamName = keyof typeof streams;

type Calls = typeof operations & typeof streams;
/** The name of anything that can be asked for. */
export type CallName = keyof Calls;

/** What is asked, as it arrives. */
export type Request<Name extends CallName> = MessageShape<Calls[Name]["input"]>;
/** What is asked, as it is made. */
export type RequestInit<Name extends CallName> = MessageInitShape<Calls[Name]["input"]>;
/** What is answered, as it arrives; of a stream one message. */
export type Answer<Name extends CallName> = MessageShape<Calls[Name]["output"]>;
/** What is answered, as it is made. */
export type AnswerInit<Name extends CallName> = MessageInitShape<Calls[Name]["output"]>;

/** The names by which a SessionWelcome lists the operations: those of the fields in the .proto. */
export const operationFields = Object.fromEntries(
  OpenSessionRequestSchema.fields.map(({ localName, name }) => [localName, name]),
) as Record<OperationName, string>;

/** By which it tells that StoredPrefix.offset and head_length are heeded. */
export const offsetField = `${operationFields.putExtending}.offset`;

/** The name that a SessionWelcome has to list for a request to be sent. */
export function fieldNeeded<Name extends OperationName>(
  name: Name,
  request: RequestInit<Name>,
): string {
  const { prefixes } = request as RequestInit<"putExtending">;
  const isMoved = prefixes?.some(({ offset, headLength }) => offset || headLength);
  return isMoved ? offsetField : operationFields[name];
}
