/**
 * What an agent imports: the saver, and what it takes to look into an error of its calls.
 * Nothing of the server.
 */
export { Code, ConnectError } from "@connectrpc/connect";
export type { ErrorDetail } from "../gen/checkpointd/v1/checkpoint_pb.js";
export type { CallsOptions } from "./client/calls.js";
export type { TokenSource } from "./client/credential.js";
export type { EncryptionOptions } from "./client/encryption.js";
export { EncryptionError, type EncryptionReason } from "./client/encryption_error.js";
export { type EncryptionKey, type KeySource, keyring } from "./client/encryption_keys.js";
export type { TlsOptions } from "./client/endpoint.js";
export { LEASE_TOKEN } from "./client/names.js";
export {
  type Recovered,
  type RecoverOptions,
  type RecoverySummary,
  type ResumableGraph,
  recoverThreads,
} from "./client/recover.js";
export { errorDetail, type RetryOptions } from "./client/retry.js";
export {
  ConnectSaver,
  type ConnectSaverOptions,
  type ConnectSaverUrlOptions,
} from "./client/saver.js";
export type { ThreadError, ThreadInterrupt } from "./client/thread_reasons.js";
export type {
  CallOptions,
  ClaimOptions,
  GetThreadOptions,
  Lease,
  ListThreadsOptions,
  Pruned,
  PruneOptions,
  Thread,
  ThreadCounts,
  ThreadFilter,
  ThreadState,
  Threads,
} from "./client/threads.js";
export type { TransportOptions } from "./client/transport.js";
