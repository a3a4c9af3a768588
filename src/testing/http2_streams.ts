/** What this process opens over HTTP/2, by whatever library: its connections and their streams. */
import http2 from "node:http2";
import { syncBuiltinESMExports } from "node:module";

/** Those opened since it was asked for. */
export interface OpenedHttp2 {
  readonly connections: readonly http2.ClientHttp2Session[];
  readonly streams: readonly http2.ClientHttp2Stream[];
  /** The streams that Node still keeps. */
  kept(): number;
  /** Watches no longer. */
  stop(): void;
}

/** Watches from now on; `onConnection` is called with each connection. */
export function watchHttp2(
  onConnection: (connection: http2.ClientHttp2Session) => void = () => {},
): OpenedHttp2 {
  const connections: http2.ClientHttp2Session[] = [];
  const streams: http2.ClientHttp2Stream[] = [];
  const connect = http2.connect;
  http2.connect = ((...parameters: Parameters<typeof connect>) => {
    const connection = connect(...parameters);
    const request = connection.request.bind(connection);
    connection.request = (...asked) => {
      const stream = request(...asked);
      streams.push(stream);
      return stream;
    };
    connections.push(connection);
    onConnection(connection);
    return connection;
  }) as typeof connect;
  syncBuiltinESMExports();
  return {
    connections,
    streams,
    kept: () => streams.filter((stream) => !stream.destroyed).length,
    stop() {
      http2.connect = connect;
      syncBuiltinESMExports();
    },
  };
}
