/**
 * What a page or another program imports that looks at threads and checkpoints by itself: the
 * services with their messages, for a client of `@connectrpc/connect`, and what it takes to show
 * their values. It runs in browsers: nothing of Node, LangGraph or the server.
 */
export * from "../gen/checkpointd/v1/checkpoint_pb.js";
export * from "../gen/checkpointd/v1/checkpoint_service_pb.js";
export * from "../gen/checkpointd/v1/thread_service_pb.js";
export {
  type Decoded,
  type DecodedMessage,
  decodeValue,
  type Json,
} from "./client/decode_value.js";
export {
  changesOfValue,
  isSameValue,
  itemsWithout,
  partsOfValue,
  type ValueChange,
} from "./client/difference.js";
export { errorDetail } from "./client/retry.js";
export {
  type StoredParts,
  type StoredValue,
  splitValue,
  type TextPiece,
  textOfValue,
} from "./client/stored_parts.js";
export { type ThreadStore, threadFromLines, threadToLines } from "./client/thread_file.js";
export { valuesOfTuple } from "./client/tuple_values.js";
