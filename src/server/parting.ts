/** Connections and streams whose client has all that it asked for and does not go. */
import type * as http from "node:http";
import type * as http2 from "node:http2";
import type * as net from "node:net";

/**
 * How long a client has to close its side, or its stream, that has all its answers and was asked to
 * go. It is counted from what was last heard of it: of one that still reads that is not long ago, as
 * HTTP/2 makes it tell how far it is. And what the system holds for one that reads in silence, the
 * system delivers after the end of ours.
 */
const quietMs = 300;

/** The streams whose response is whole while their client has not ended its request. */
export interface Parting {
  /** For how long they are kept so. */
  limitMs: number;
  /** Each ends one. */
  readonly streams: Set<() => void>;
}

/**
 * Ends a stream whose response is whole while the client never finishes its request, which Node
 * keeps open: a drain would wait for a client that is frozen, and streams would pile up.
 */
export function endWhenAnswered({ stream }: http2.Http2ServerRequest, parting: Parting): void {
  // Not the response's own event of that name, which comes when the stream is closed.
  stream.on("finish", () => {
    if (stream.readableEnded || stream.closed) return;
    const end = () => {
      stream.close();
      stream.resume();
    };
    const timer = setTimeout(end, parting.limitMs).unref();
    parting.streams.add(end);
    stream.on("close", () => {
      clearTimeout(timer);
      parting.streams.delete(end);
    });
  });
}

/** The same over HTTP/1.1, where the client's next request would never come to be read. */
export function endWhenAnswered1(
  request: http.IncomingMessage,
  response: http.ServerResponse,
  parting: Parting,
): void {
  response.on("finish", () => {
    if (request.complete) return;
    const { socket } = request;
    const end = () => {
      if (!request.complete) socket.destroy();
    };
    const timer = setTimeout(end, parting.limitMs).unref();
    parting.streams.add(end);
    const stop = () => {
      clearTimeout(timer);
      parting.streams.delete(end);
    };
    // It comes when the request is whole, and when its connection is closed.
    request.on("close", stop);
  });
}

/** From now on they are kept no longer than a client needs that goes when it is asked to. */
export function hurry(parting: Parting): void {
  if (parting.limitMs === quietMs) return;
  parting.limitMs = quietMs;
  const left = [...parting.streams];
  setTimeout(() => {
    for (const end of left) if (parting.streams.has(end)) end();
  }, quietMs).unref();
}

/**
 * Closes a connection that was ended from our side and whose client neither closes it nor sends
 * anything. Node waits for that client for ever: for one that is frozen, and for one that keeps
 * an HTTP/2 stream which it has not read to its end (connect-node's did so), and a drain with it.
 */
export function closeWhenLeft(socket: net.Socket): void {
  socket.once("finish", () => {
    if (socket.destroyed) return;
    const timer = setTimeout(() => socket.destroy(), quietMs);
    socket.on("data", () => timer.refresh());
    socket.on("close", () => clearTimeout(timer));
  });
}
