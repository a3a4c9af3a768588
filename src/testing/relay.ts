/** What stands between a client and a server, and in their way. */
import { type AddressInfo, connect, createServer, type Socket } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";

/** What a relay does to a connection that begins with HTTP/1.1. */
export type ToHttp1 =
  | "lets them through"
  | "refuses them"
  | "cuts them"
  | "says nothing to them"
  | "answers them with noise";

/** Passes TCP on, until one of its connections is cut. */
export interface Relay {
  url: string;
  /** Connections that began with HTTP/1.1, and with HTTP/2, so far. */
  http1(): number;
  http2(): number;
  /** Bytes that clients have sent so far. */
  sentBytes(): number;
  /** Ends all connections. */
  cut(): void;
  /** From now on nothing passes on the connections there are, and neither side is told. */
  freeze(): void;
  /** Ends one connection as a client that vanishes does: with a reset, or just so. */
  cutOne(): void;
  close(): void;
}

/**
 * Starts a relay to a port of this machine, which is asked for with each connection. What clients
 * send and what the server answers passes as slowly as the limits say.
 */
export async function startRelay(
  port: () => number,
  toHttp1: ToHttp1 = "lets them through",
  limits: { sentBytesPerMs?: number; answeredBytesPerMs?: number } = {},
): Promise<Relay> {
  const clients = new Map<Socket, Socket | undefined>();
  let http1 = 0;
  let http2 = 0;
  let sentBytes = 0;

  const passOn = (client: Socket, hello: Buffer) => {
    const server = connect(port(), "127.0.0.1");
    clients.set(client, server);
    server.on("error", () => {});
    server.on("close", () => client.destroy());
    server.write(hello);
    sentBytes += hello.length;
    client.on("data", (chunk: Buffer) => {
      sentBytes += chunk.length;
    });
    const pass = (from: Socket, to: Socket, bytesPerMs: number | undefined) => {
      if (bytesPerMs) passSlowly(from, to, bytesPerMs).catch(() => client.destroy());
      else from.pipe(to);
    };
    pass(client, server, limits.sentBytesPerMs);
    pass(server, client, limits.answeredBytesPerMs);
  };

  const relay = createServer((client) => {
    clients.set(client, undefined);
    client.on("error", () => {});
    client.on("close", () => {
      clients.get(client)?.destroy();
      clients.delete(client);
    });
    client.once("data", (hello) => {
      if (hello.toString("latin1").startsWith("PRI")) {
        http2++;
        passOn(client, hello);
        return;
      }
      http1++;
      if (toHttp1 === "lets them through") {
        passOn(client, hello);
      } else if (toHttp1 === "refuses them") {
        client.end("HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
      } else if (toHttp1 === "cuts them") {
        client.destroy();
      } else if (toHttp1 === "answers them with noise") {
        const upgrade = "connection: upgrade\r\nupgrade: checkpointd-session\r\n";
        client.write(`HTTP/1.1 101 Switching Protocols\r\n${upgrade}\r\n\0\0\0\0\x03???`);
      }
    });
  });
  await new Promise<void>((resolve) => relay.listen(0, "127.0.0.1", resolve));

  const cut = () => {
    for (const client of clients.keys()) client.destroy();
  };
  return {
    url: `http://127.0.0.1:${(relay.address() as AddressInfo).port}`,
    http1: () => http1,
    http2: () => http2,
    sentBytes: () => sentBytes,
    cut,
    freeze() {
      for (const [client, server] of clients) {
        client.unpipe().pause();
        server?.unpipe().pause();
      }
    },
    cutOne() {
      const servers = [...clients.values()].filter((server) => server !== undefined);
      const server = servers[Math.floor(Math.random() * servers.length)];
      if (Math.random() < 0.5) server?.resetAndDestroy();
      else server?.destroy();
    },
    close() {
      relay.close();
      cut();
    },
  };
}

const tickMs = 20;

async function passSlowly(from: Socket, to: Socket, bytesPerMs: number): Promise<void> {
  const bytes = bytesPerMs * tickMs;
  for await (const chunk of from) {
    for (let at = 0; at < chunk.length; at += bytes) {
      to.write(chunk.subarray(at, at + bytes));
      await sleep(tickMs);
    }
  }
}
