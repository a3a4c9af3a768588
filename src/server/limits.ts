import { connectionWindowBytes, defaultMessageBytes, streamWindowBytes } from "../protocol/wire.js";

const mebibyte = 1024 * 1024;

/** What clients may take of one process. Milliseconds and bytes. */
export const defaultLimits = {
  /**
   * Connections open at once in all; further ones are closed as they arrive. Fewer where the process
   * may not open as many files: see mostConnections.
   */
  connections: 10_000,
  /** HTTP/2 streams open at once on a connection; a client queues the rest. */
  streams: 256,
  /** All headers of one request together. */
  headerBytes: 32 * 1024,
  /** From the beginning of a connection until it is known what it speaks, a handshake of TLS included. */
  helloMs: 10_000,
  /** Handshakes of TLS under way; one more ends the oldest of them. */
  handshakes: 1_024,
  /** HTTP/1.1: the time in which a request's headers must have arrived. */
  headersMs: 15_000,
  /** HTTP/1.1: the time in which a whole request must have arrived, however fast it comes. */
  requestMs: 2 * 3_600_000,
  /** HTTP/1.1: how long an idle connection is kept, longer than the usual balancer's 60 s. */
  keepAliveMs: 75_000,
  /** What a client may send on one HTTP/2 stream before it waits (Node's default: 64 KiB). */
  streamWindowBytes,
  /** The same for all streams of a connection together. */
  connectionWindowBytes,
  /** Over so long a request's body, or a session's message, may come slower than it must. */
  arrivalPatienceMs: 15_000,
  /** How fast it must come on average over any such time, in bytes a millisecond. */
  arrivalBytesPerMs: 10,
  /** Requests that are being received or worked on, in all and as they are when inflated. */
  requestBytes: 512 * mebibyte,
  /**
   * What of one connection over HTTP/2 may wait to be read, as it takes memory: its windows in frames
   * of a KB or more, or a quarter of a million frames. What has more is cut.
   */
  backlogBytes: 2 * connectionWindowBytes,
  /** The same of all connections together; one that sends when there is so much is cut. */
  backlogBytesInAll: 512 * mebibyte,
  /** How long an answer may wait for its reader without that one taking a byte. */
  unreadMs: 60_000,
  /** Answers waiting for the reader of one connection; what has more for a second is cut. */
  unreadBytes: 64 * mebibyte + defaultMessageBytes,
  /** The same of all connections together; above it the connection that has most is cut. */
  unreadBytesInAll: 512 * mebibyte,
  /** Streamed answers (of List and the like) open at once in all. */
  streamedAnswers: 256,
  /** Values in the tuples of lists that wait for their readers, in all. */
  listedBytes: 128 * mebibyte,
  /** Streams of every kind at once in all that connect-es carries, some 60 KB each. */
  streamsInAll: 4_096,
  /** How old a page of metrics may be that is told again, so that scrapes cost what they may. */
  metricsPageMs: 250,
  /** The age at which a connection is retired gently, give or take 10 %; 0 is never. */
  ageMs: 0,
};

/** The same, of one server. */
export type Limits = typeof defaultLimits;

/** The longest that Node's timers wait; one that is set for longer fires at once. 24 days. */
export const longestMs = 2 ** 31 - 1;

/** How long a call that is no stream may last, whatever its client asks for. */
export const mostUnaryMs = 10 * 60_000;
