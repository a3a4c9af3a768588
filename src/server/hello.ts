/** What a connection speaks, as its first bytes tell. */
import type * as net from "node:net";

/** HTTP/1.1 is what is none of the others. */
export type Language = "http1" | "http2" | "tls";

/** What every HTTP/2 connection begins with, as far as it tells it from HTTP/1.1. */
const preface = Buffer.from("PRI * HTTP/2.0", "latin1");
/** A record of TLS with its handshake. */
const handshakeRecord = 0x16;

/** Waits for enough bytes to tell the language, puts them back, and calls `then` once. */
export function awaitHello(socket: net.Socket, then: (language: Language) => void): void {
  let hello = Buffer.alloc(0);
  const onReadable = () => {
    const bytes: Buffer | null = socket.read();
    if (bytes === null) return;
    hello = Buffer.concat([hello, bytes]);
    const length = Math.min(hello.length, preface.length);
    const isPreface = hello.subarray(0, length).equals(preface.subarray(0, length));
    if (isPreface && length < preface.length) return;
    socket.off("readable", onReadable);
    socket.unshift(hello);
    then(isPreface ? "http2" : hello[0] === handshakeRecord ? "tls" : "http1");
  };
  socket.on("readable", onReadable);
}

const useTls = "this port speaks TLS: begin the URL with https://";

/**
 * Settings without one, and a GOAWAY for INADEQUATE_SECURITY (12) with the sentence: clients of gRPC in
 * Go, C++ and Python show it, and ours knows the number.
 */
const goAway = Buffer.concat([
  frame(4, Buffer.alloc(0)),
  frame(7, Buffer.concat([Buffer.from([0, 0, 0, 0, 0, 0, 0, 12]), Buffer.from(useTls)])),
]);
const badRequest = Buffer.from(
  `HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain; charset=utf-8\r\nconnection: close\r\n` +
    `content-length: ${useTls.length + 1}\r\n\r\n${useTls}\n`,
);

/** Tells a client without TLS at a port that has it what it should do, and ends the connection. */
export function refusePlain(socket: net.Socket, language: Language): void {
  // What is left unread would have the system reset the connection, and the answer is lost.
  socket.resume();
  socket.end(language === "http2" ? goAway : badRequest);
}

/** One of HTTP/2, of the connection as a whole. */
function frame(type: number, payload: Buffer): Buffer {
  const head = Buffer.alloc(9);
  head.writeUIntBE(payload.length, 0, 3);
  head[3] = type;
  return Buffer.concat([head, payload]);
}
