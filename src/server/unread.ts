/** Answers that their readers do not take: how long and how much of them is kept. */
import type * as http from "node:http";
import * as http2 from "node:http2";
import type * as net from "node:net";
import type { Log } from "../log.js";
import { callerOf } from "./gate.js";
import type { Limits } from "./limits.js";

/** How often it is looked for them. */
const sweepMs = 250;
/** For how many looks a connection may have more than its share. */
const looksAbove = 4;
/**
 * A reader that took so much since the last look is not cut for what it still has before it: there may
 * be answers larger than the share.
 */
const progressBytes = 1024 * 1024;

/** What is written to an HTTP/2 stream comes in pieces of so many bytes, to see that they are taken. */
const pieceBytes = 256 * 1024;

interface Answer {
  /** Bytes that were written to it. */
  written: number;
  /** Of those, the bytes that had been taken when it was last looked. */
  taken: number;
  /** When its reader last took some, or had all. */
  since: number;
}

/** After which an answer counts as stalled of which nothing was taken. */
const stalledMs = 5_000;

/** What is looked at of a connection. */
export interface Writer {
  readonly socket: net.Socket;
  /** Set where it speaks HTTP/2. */
  session?: http2.ServerHttp2Session;
  /** HTTP/1.1 responses under way. */
  readonly responses: ReadonlySet<http.ServerResponse>;
  /** HTTP/2 streams that are open. */
  readonly answers: Map<http2.ServerHttp2Stream, Answer>;
  /** How often in a row it had more than its share. */
  looksAbove: number;
  /** What had been written to its socket when it was last looked. */
  bytesWritten: number;
  /** When its reader last took some of what waits, or had all. */
  since: number;
}

/** What waits for its readers. */
export interface Unread {
  bytes: number;
  /** Streams of HTTP/2, and other connections, whose reader has taken nothing for 5 s. */
  stalled: number;
}

/**
 * Has a stream of HTTP/2 looked after. Of a stream Node does not tell how far its reader is (of a
 * socket it does): it only ends a write when all of it is sent, and makes one write of all that
 * waits. So that a slow reader is told from one that stalled, large writes are made in pieces here.
 */
export function trackAnswer(writer: Writer, stream: http2.ServerHttp2Stream): void {
  const answer: Answer = { written: 0, taken: 0, since: performance.now() };
  writer.answers.set(stream, answer);
  stream.on("close", () => writer.answers.delete(stream));
  Object.assign(stream, { _writev: undefined });
  const write = stream.write.bind(stream) as (...args: unknown[]) => boolean;
  stream.write = ((chunk: Uint8Array | string, ...rest: unknown[]) => {
    answer.written += chunk.length;
    let at = 0;
    if (typeof chunk !== "string") {
      for (; chunk.length - at > pieceBytes; at += pieceBytes) {
        write(chunk.subarray(at, at + pieceBytes));
      }
    }
    return write(at === 0 || typeof chunk === "string" ? chunk : chunk.subarray(at), ...rest);
  }) as typeof stream.write;
}

/**
 * Ends streams of HTTP/2 whose reader takes nothing, and cuts connections on which too much waits.
 * (Sockets have a timeout of Node's own.) What it ends is counted in `cuts`.
 */
export function watchUnread(
  writers: () => Iterable<Writer>,
  limits: Limits,
  cuts: { unread: number },
  log: Log,
): { load(): Unread; stop(): void } {
  const cut = (writer: Writer, unread: number, limit: number) => {
    log.warn({ unread, limit }, "cut a connection whose client does not read its answers");
    cuts.unread++;
    writer.socket.destroy();
  };
  const sweep = () => {
    const unread = new Map<Writer, number>();
    const callers = new Map<string, Waiting>();
    let inAll = 0;
    const now = performance.now();
    for (const writer of writers()) {
      if (writer.answers.size > 0) cuts.unread += endStalled(writer, limits.unreadMs, log);
      const bytes = unreadBytes(writer);
      const taken = writer.socket.bytesWritten - writer.socket.writableLength;
      if (bytes === 0 || taken !== writer.bytesWritten) writer.since = now;
      const isAbove = bytes > limits.unreadBytes && taken - writer.bytesWritten < progressBytes;
      writer.looksAbove = isAbove ? writer.looksAbove + 1 : 0;
      writer.bytesWritten = taken;
      if (writer.looksAbove > looksAbove) {
        cut(writer, bytes, limits.unreadBytes);
      } else if (bytes > 0) {
        unread.set(writer, bytes);
        inAll += bytes;
        addTo(callers, writer, bytes);
      }
    }
    // A caller is not to have more by having more connections.
    const byMost = [...unread]
      .map(([writer, bytes]) => ({ writer, bytes, caller: callers.get(nameOf(writer)) }))
      .sort((a, b) => (b.caller?.bytes ?? 0) - (a.caller?.bytes ?? 0) || b.bytes - a.bytes);
    for (const { writer, bytes, caller } of byMost) {
      const limit = caller && caller.bytes > caller.limit ? caller.limit : limits.unreadBytesInAll;
      if (limit === limits.unreadBytesInAll && inAll <= limit) continue;
      cut(writer, bytes, limit);
      inAll -= bytes;
      if (caller) caller.bytes -= bytes;
    }
  };
  const timer = setInterval(sweep, sweepMs).unref();
  return {
    load() {
      const load: Unread = { bytes: 0, stalled: 0 };
      const before = performance.now() - stalledMs;
      for (const writer of writers()) {
        const bytes = unreadBytes(writer);
        load.bytes += bytes;
        if (writer.answers.size === 0 && bytes > 0 && writer.since < before) load.stalled++;
        for (const [{ writableLength }, { since }] of writer.answers) {
          if (writableLength > 0 && since < before) load.stalled++;
        }
      }
      return load;
    },
    stop: () => clearInterval(timer),
  };
}

/** What waits for one caller, and what may. */
interface Waiting {
  bytes: number;
  limit: number;
}

/** Whose connection it is; each is its own where nobody is asked. */
function nameOf(writer: Writer): string {
  const principal = callerOf(writer.session ?? writer.socket);
  if (principal) return JSON.stringify([principal.tenant, principal.name]);
  names.set(writer, names.get(writer) ?? `${++lastName}`);
  return names.get(writer) as string;
}
const names = new WeakMap<Writer, string>();
let lastName = 0;

function addTo(callers: Map<string, Waiting>, writer: Writer, bytes: number): void {
  const name = nameOf(writer);
  const limit =
    callerOf(writer.session ?? writer.socket)?.limits.unreadBytes ?? Number.POSITIVE_INFINITY;
  callers.set(name, { bytes: (callers.get(name)?.bytes ?? 0) + bytes, limit });
}

function unreadBytes({ socket, responses, answers }: Writer): number {
  let bytes = socket.writableLength;
  for (const { writableLength } of answers.keys()) bytes += writableLength;
  // Of requests that did not wait for each other the first response's is the socket's.
  let ofResponses = 0;
  for (const { writableLength } of responses) ofResponses += writableLength;
  return Math.max(bytes, ofResponses);
}

/** Returns how many. */
function endStalled({ answers }: Writer, unreadMs: number, log: Log): number {
  let ended = 0;
  const now = performance.now();
  for (const [stream, answer] of answers) {
    const waiting = stream.writableLength;
    const taken = answer.written - waiting;
    if (waiting === 0 || taken !== answer.taken) {
      answer.taken = taken;
      answer.since = now;
    } else if (now - answer.since > unreadMs) {
      log.info({ unread: waiting }, "ended an answer that its client does not read");
      stream.close(http2.constants.NGHTTP2_CANCEL);
      // Its connection may take nothing either, not even that.
      stream.destroy();
      ended++;
    }
  }
  return ended;
}
