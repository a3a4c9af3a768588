/** The streams that carry sessions, opened without our client: what is written goes out as it is. */
import { connect as connectHttp2 } from "node:http2";
import { connect as connectTcp } from "node:net";
import { Duplex, PassThrough } from "node:stream";
import { sessionContentType, sessionPath, sessionUpgrade } from "../protocol/wire.js";

/** A stream that may be written to at once. Its errors are nobody's. */
export interface RawStream {
  stream: Duplex;
  /** Resolves when the connection, or its stream, is closed. */
  closed: Promise<void>;
  /** Closes the connection without a word. */
  cut(): void;
}

/** Opens one on HTTP/2. */
export function openOnHttp2(url: string): RawStream {
  const http2 = connectHttp2(url);
  http2.on("error", () => {});
  const stream = http2.request({
    ":method": "POST",
    ":path": sessionPath,
    "content-type": sessionContentType,
  });
  return toRawStream(stream, stream, () => http2.destroy());
}

/**
 * Opens one on a connection of HTTP/1.1 that is upgraded. What is read begins after the answer to
 * that; another than 101 ends the process, or fails the test.
 */
export function openUpgraded(url: string): RawStream {
  const { hostname, port } = new URL(url);
  const socket = connectTcp({ host: hostname, port: Number(port), allowHalfOpen: true });
  socket.on("error", () => {});
  socket.write(
    `GET ${sessionPath} HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: upgrade\r\nupgrade: ${sessionUpgrade}\r\n\r\n`,
  );
  const answer = new PassThrough();
  let head = Buffer.alloc(0);
  const onHead = (chunk: Buffer) => {
    head = Buffer.concat([head, chunk]);
    const end = head.indexOf("\r\n\r\n");
    if (end < 0) return;
    const [status] = head.toString("latin1").split("\r\n", 1);
    if (status !== "HTTP/1.1 101 Switching Protocols") throw new Error(`not upgraded: ${status}`);
    socket.off("data", onHead);
    answer.write(head.subarray(end + 4));
    socket.pipe(answer);
  };
  socket.on("data", onHead);
  const stream = Duplex.from({ readable: answer, writable: socket });
  return toRawStream(stream, socket, () => socket.destroy());
}

function toRawStream(stream: Duplex, carrier: Duplex, cut: () => void): RawStream {
  stream.on("error", () => {});
  const closed = new Promise<void>((resolve) => carrier.on("close", resolve));
  return { stream, closed, cut };
}
