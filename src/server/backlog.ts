/** What clients send over HTTP/2 that nobody has read yet. */
import type * as http2 from "node:http2";
import type * as net from "node:net";
import type { Log } from "../log.js";
import type { Limits } from "./limits.js";

/**
 * What a frame of data takes of the process beside its bytes. The windows of HTTP/2 bound the bytes;
 * in frames of one byte each that is a hundred times as much memory.
 */
const frameBytes = 128;

/**
 * A small frame costs as much time as a large one. A client that sends so many of them in a second has
 * nothing to say, and the others would wait for it.
 */
const smallBytes = 128;
const mostSmall = 20_000;

/** What is looked at of a connection. */
export interface Sender {
  readonly socket: net.Socket;
  /** What waits of it to be read, as its frames take memory. */
  backlog: number;
  /** Its small frames, and since when they are counted. */
  small: { frames: number; since: number };
}

/** What waits of one stream. */
interface Waiting {
  readonly sender: Sender;
  readonly stream: http2.ServerHttp2Stream;
  /** As it was counted. */
  bytes: number;
  /** That came since nothing waited. */
  frames: number;
}

/**
 * Returns what has a stream of HTTP/2 looked after: a connection of which more waits than one may
 * have is cut, and the one of which most waits when all together have more than they may. What it cuts
 * is counted in `cuts`.
 */
export function createBacklog(
  limits: Limits,
  cuts: { backlog: number; small_frames: number },
  log: Log,
) {
  let inAll = 0;
  const held = new Set<Waiting>();
  const cut = ({ socket }: Sender, limit: keyof typeof cuts, why: object, message: string) => {
    if (socket.destroyed) return;
    cuts[limit]++;
    log.warn(why, message);
    socket.destroy();
  };
  const countSmall = (sender: Sender) => {
    if (++sender.small.frames < mostSmall) return;
    const now = performance.now();
    if (now - sender.small.since < 1_000) {
      cut(
        sender,
        "small_frames",
        { limit: mostSmall },
        "cut a connection that floods the server with small frames",
      );
    }
    sender.small = { frames: 0, since: now };
  };
  const count = (waiting: Waiting) => {
    const { sender, stream, frames } = waiting;
    // Of a connection that was cut nothing is kept.
    const length = sender.socket.destroyed || stream.destroyed ? 0 : stream.readableLength;
    const bytes = length + frameBytes * Math.min(frames, length);
    sender.backlog += bytes - waiting.bytes;
    inAll += bytes - waiting.bytes;
    waiting.bytes = bytes;
    if (bytes > 0) held.add(waiting);
    else held.delete(waiting);
  };
  // What was read since the last frame came is counted only here.
  const recount = () => {
    for (const waiting of held) count(waiting);
  };
  const cutFor = (sender: Sender, limit: number) => {
    const why = { backlog: sender.backlog, limit };
    cut(sender, "backlog", why, "cut a connection that sends more than is read");
    recount();
  };
  const enforce = (sender: Sender) => {
    const { backlogBytes, backlogBytesInAll } = limits;
    if (sender.backlog <= backlogBytes && inAll <= backlogBytesInAll) return;
    recount();
    if (sender.backlog > backlogBytes) cutFor(sender, backlogBytes);
    while (inAll > backlogBytesInAll) {
      let most = sender;
      for (const { sender: other } of held) if (other.backlog > most.backlog) most = other;
      cutFor(most, backlogBytesInAll);
    }
  };
  return (sender: Sender, stream: http2.ServerHttp2Stream): void => {
    const waiting: Waiting = { sender, stream, bytes: 0, frames: 0 };
    const push = stream.push.bind(stream);
    stream.push = (chunk: Uint8Array | null, ...rest) => {
      if (chunk !== null && chunk.length < smallBytes) countSmall(sender);
      if (stream.readableLength === 0) waiting.frames = 0;
      const goesOn = push(chunk, ...rest);
      if (stream.readableLength > 0) waiting.frames++;
      else if (waiting.bytes === 0) return goesOn;
      count(waiting);
      enforce(sender);
      return goesOn;
    };
    stream.on("close", () => {
      waiting.frames = 0;
      count(waiting);
    });
  };
}
