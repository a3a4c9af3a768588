/**
 * Checks of the names a caller hands in (threads, namespaces, ids, channels) and the way they
 * are read out of a RunnableConfig. Lengths are the server's business: it names the limit.
 */
import type { RunnableConfig } from "@langchain/core/runnables";
import { kindOf } from "./options.js";

/** What `config.configurable` says about a checkpoint. Absent keys are undefined. */
export interface ConfigKeys {
  threadId: string | undefined;
  checkpointNs: string | undefined;
  checkpointId: string | undefined;
  leaseToken: string | undefined;
}

/**
 * The key of `configurable` that carries a lease's token (see {@link Threads.claim}): what a run
 * stores under it is refused once the lease is lost. LangGraph hands it on to subgraphs and keeps
 * it out of the metadata.
 */
export const LEASE_TOKEN = "__checkpointd_lease";

/**
 * Returns `value` as text if the service can keep it unaltered.
 *
 * Throws a TypeError naming `field` for anything but a string or a safe integer (which a direct
 * Postgres saver takes too, as its decimal text), and an Error for a string with a NUL, which Postgres
 * cannot store, or a lone surrogate, which UTF-8 cannot carry: it would silently become another
 * name, and two threads could become one.
 */
export function checkName(field: string, value: unknown): string {
  if (typeof value === "number" && Number.isSafeInteger(value)) return String(value);
  if (typeof value !== "string") {
    const isNothing = value === null || value === undefined;
    const text = isNothing ? "" : "; give its text, which String(…) makes of most";
    throw new TypeError(`${field} must be a string, not ${kindOf(value)}${text}`);
  }
  if (value.includes("\0")) throw new Error(`${field} must not contain a NUL character`);
  if (!value.isWellFormed()) throw new Error(`${field} must not contain a lone surrogate`);
  return value;
}

/**
 * Reads the keys that name a checkpoint. undefined, null and, except for the namespace, the
 * empty string count as absent, as they do for LangGraph's own savers.
 *
 * Throws as {@link checkName} does, naming the key.
 */
export function readConfig(config: RunnableConfig | undefined): ConfigKeys {
  const {
    thread_id,
    checkpoint_ns,
    checkpoint_id,
    [LEASE_TOKEN]: token,
  } = config?.configurable ?? {};
  return {
    threadId: isAbsent(thread_id) ? undefined : checkName("configurable.thread_id", thread_id),
    checkpointNs:
      checkpoint_ns === undefined || checkpoint_ns === null
        ? undefined
        : checkName("configurable.checkpoint_ns", checkpoint_ns),
    checkpointId: isAbsent(checkpoint_id)
      ? undefined
      : checkName("configurable.checkpoint_id", checkpoint_id),
    leaseToken: isAbsent(token) ? undefined : checkName(`configurable.${LEASE_TOKEN}`, token),
  };
}

/** Throws an Error naming `key` if `value`, read by {@link readConfig} for `method`, is absent. */
export function requireKey(
  method: string,
  key: string,
  config: RunnableConfig | undefined,
  value: string | undefined,
): string {
  if (value !== undefined) return value;
  throw new Error(
    config?.configurable === undefined
      ? `${method}: the config has no "configurable"`
      : `${method}: the config's "configurable" has no "${key}"`,
  );
}

function isAbsent(value: unknown): boolean {
  return value === undefined || value === null || value === "";
}
