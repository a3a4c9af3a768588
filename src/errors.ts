/**
 * The errors this project raises on purpose. They are thrown where the trouble is seen and
 * turned into an answer in one place, `server/interceptors.ts`.
 */

/** gRPC's status codes that we raise ourselves, in Connect's spelling. */
export type ErrorCode =
  | "invalid_argument"
  | "unauthenticated"
  | "permission_denied"
  | "resource_exhausted"
  | "failed_precondition"
  | "aborted"
  | "unavailable"
  | "deadline_exceeded"
  | "canceled"
  | "internal"
  | "data_loss";

/** Stable words for programs; the list is documented on `ErrorDetail.reason` in the proto. */
export type ErrorReason =
  | "REQUIRED"
  | "TOO_LONG"
  | "TOO_MANY"
  | "OUT_OF_RANGE"
  | "NUL_CHARACTER"
  | "LONE_SURROGATE"
  | "INVALID_JSON"
  | "NOT_A_JSON_OBJECT"
  | "DUPLICATE"
  | "RESERVED"
  | "CREDENTIAL_MISSING"
  | "CREDENTIAL_INVALID"
  | "CREDENTIAL_EXPIRED"
  | "CREDENTIAL_CHANGED"
  | "NOT_GRANTED"
  | "LIMIT_REACHED"
  | "QUOTA_REACHED"
  | "LEASE_LOST"
  | "TARGET_NOT_EMPTY"
  | "STILL_NEEDED"
  | "NOT_STORED"
  | "UNDELIVERABLE"
  | "QUEUE_FULL"
  | "QUEUE_TIMEOUT"
  | "OVERLOADED"
  | "NOT_READY"
  | "DRAINING"
  | "SERVER_STALLED"
  | "DATABASE_UNAVAILABLE"
  | "STARTING_UP"
  | "SHUTTING_DOWN"
  | "TOO_MANY_CONNECTIONS"
  | "OUT_OF_RESOURCES"
  | "DISK_FULL"
  | "READ_ONLY"
  | "ACCESS_DENIED"
  | "SCHEMA_OLD"
  | "SCHEMA_NEW"
  | "POOLER"
  | "CONFLICT"
  | "LOCK_TIMEOUT"
  | "STATEMENT_CANCELLED"
  | "STATEMENT_TIMEOUT"
  | "PRIVILEGE_MISSING"
  | "DATA_CORRUPTED";

/** An error whose message is meant for the client: no SQL, no stack, no payload. */
export class CheckpointdError extends Error {
  override readonly name = "CheckpointdError";

  constructor(
    readonly code: ErrorCode,
    message: string,
    readonly detail?: { reason: ErrorReason; field?: string; limit?: number },
    options?: ErrorOptions,
  ) {
    super(message, options);
  }
}

/** The request's `field` (a path such as `blobs[3].channel`) is wrong; nothing was stored. */
export function invalidArgument(
  field: string,
  reason: ErrorReason,
  message: string,
  limit?: number,
): CheckpointdError {
  return new CheckpointdError("invalid_argument", `${field}: ${message}`, {
    reason,
    field,
    ...(limit === undefined ? {} : { limit }),
  });
}
