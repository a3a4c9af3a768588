/** Who makes a call, and what they may do. */

/** What may be done with a thread; "admin" is everything that concerns no single thread. */
export const operations = ["read", "write", "delete", "lease", "prune", "copy", "admin"] as const;

/** One of {@link operations}. */
export type Operation = (typeof operations)[number];

/** Which threads: all, those whose id begins with a text, or the one of that id. */
export type Pattern =
  | { readonly kind: "all" }
  | { readonly kind: "prefix" | "exact"; readonly text: string };

/** These operations on these threads. */
export interface Grant {
  readonly operations: ReadonlySet<Operation>;
  readonly threads: readonly Pattern[];
}

/** What a principal may take of the server; what is not there is not limited. */
export interface PrincipalLimits {
  /** Calls a second. */
  readonly calls?: number;
  /** Calls that are under way at a time. */
  readonly callsAtOnce?: number;
  /** Bytes a second that it sends. */
  readonly bytesIn?: number;
  /** Bytes a second that it is sent. */
  readonly bytesOut?: number;
  /** Bytes of answers that wait for its readers, on all its connections. */
  readonly unreadBytes?: number;
  /** Streams that are open at a time. */
  readonly streams?: number;
  /** Sessions that are open at a time. */
  readonly sessions?: number;
  /** Leases that are held at a time. */
  readonly leases?: number;
  /** Milliseconds of the database's time a second. */
  readonly databaseMs?: number;
}

/**
 * Whoever one credential stands for. The same credential is the same object, call after call, until
 * a reload of the auth file changes what it may do; two tokens of one subject are two objects of one
 * name, so what is counted for a principal is counted by tenant and name.
 */
export interface Principal {
  /** What the log and leases show. */
  readonly name: string;
  /** A name of the auth file's `tenants`; "" is the server's own schema. */
  readonly tenant: string;
  /** With all templates filled in. */
  readonly grants: readonly Grant[];
  /** Which of its credentials this is, for the audit log: "key billing-agents-2026". */
  readonly credential: string;
  /** Milliseconds since the epoch; Infinity where the credential does not expire. */
  readonly expiresAt: number;
  readonly limits: PrincipalLimits;
  /**
   * Aborts, with a CheckpointdError "unauthenticated" as its reason, when the credential expires and
   * when a reload takes it away or changes what it may do. Whoever waits for it keeps the principal:
   * one that nobody keeps may be forgotten, and then its signal says nothing any more.
   */
  readonly ends: AbortSignal;
}
