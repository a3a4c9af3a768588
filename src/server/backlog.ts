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

/**
 * Returns what has a stream of HTTP/2 looked after: a connection of which more waits than one may
 * have, or on which more comes when all together have what they may, is cut.
 */
export function createBacklog(limits: Limits, log: Log) {
  let inAll = 0;
  const cut = ({ socket }: Sender, why: object, message: string) => {
    if (socket.destroyed) return;
    log.warn(why, message);
    socket.destroy();
  };
  const countSmall = (sender: Sender) => {
    if (++sender.small.frames < mostSmall) return;
    const now = performance.now();
    if (now - sender.small.since < 1_000) {
      cut(
        sender,
        { limit: mostSmall },
        "cut a connection that floods the server with small frames",
      );
    }
    sender.small = { frames: 0, since: now };
  };
  return (sender: Sender, stream: http2.ServerHttp2Stream): void => {
    let waiting = 0;
    // That came since nothing waited.
    let frames = 0;
    const count = (bytes: number) => {
      sender.backlog += bytes - waiting;
      inAll += bytes - waiting;
      waiting = bytes;
    };
    const push = stream.push.bind(stream);
    stream.push = (chunk: Uint8Array | null, ...rest) => {
      if (chunk !== null && chunk.length < smallBytes) countSmall(sender);
      if (stream.readableLength === 0) frames = 0;
      const goesOn = push(chunk, ...rest);
      const bytes = stream.readableLength;
      if (bytes > 0) frames++;
      else if (waiting === 0) return goesOn;
      count(bytes + frameBytes * Math.min(frames, bytes));
      const { backlogBytes, backlogBytesInAll } = limits;
      if (sender.backlog > backlogBytes || inAll > backlogBytesInAll) {
        const why = { backlog: sender.backlog, limit: backlogBytes };
        cut(sender, why, "cut a connection that sends more than is read");
      }
      return goesOn;
    };
    stream.on("close", () => count(0));
  };
}
