/** What both ends of the wire must agree on: names of headers, where a session is, sizes, times. */
import { SessionService } from "../../gen/checkpointd/v1/session_service_pb.js";

/** The header that carries a call's id, taken from the client or made by the server. */
export const requestIdHeader = "x-request-id";
/** The header that says when a retry is worth it, in whole seconds. */
export const retryAfterHeader = "retry-after";

/** Where a session is opened. */
export const sessionPath = `/${SessionService.typeName}/${SessionService.method.openSession.name}`;
/** The content type of a session on a stream of HTTP/2. */
export const sessionContentType = "application/connect+proto";
/** The protocol to which an HTTP/1.1 connection is upgraded that is to carry a session. */
export const sessionUpgrade = "checkpointd-session";

/** The largest message, in bytes as encoded, that a server takes and a client sends by default. */
export const defaultMessageBytes = 64 * 1024 * 1024;
/** Messages from so many bytes on are compressed where both ends want it. */
export const compressFromBytes = 1024;

/** What may be on its way on one stream of HTTP/2 before its reader has read it, in bytes. */
export const streamWindowBytes = 4 * 1024 * 1024;
/** The same for all streams of a connection together. */
export const connectionWindowBytes = 16 * 1024 * 1024;

/** How often either end looks at the deadlines of a session's operations. */
export const sweepMs = 50;
/** Within which the other side leaves a session, or a stream of HTTP/2, that is over. */
export const partingMs = 5_000;
