import type { Log } from "../log.js";
import { describeCause } from "../server/call_log.js";

/**
 * What a library below forgot to catch, of a connection that failed in a way nobody thought of, is
 * told and ends no process: each call has its own answer or deadline. (An exception that nobody
 * caught still does: nothing is known of the state it left.)
 */
export function logUnhandled(log: Log): void {
  process.on("unhandledRejection", (error) => {
    log.error({ error: describeCause(Object(error)) }, "an unhandled rejection");
  });
}
