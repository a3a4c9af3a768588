import { type AddressInfo, connect, createServer, type Socket } from "node:net";

/** Passes TCP on, until one of its connections is cut. */
export interface Relay {
  url: string;
  /** Ends one connection as a client that vanishes does: with a reset, or just so. */
  cutOne(): void;
  close(): void;
}

/** Starts a relay to the server at `url`. */
export async function startRelay(url: string): Promise<Relay> {
  const pairs = new Set<[client: Socket, server: Socket]>();
  const relay = createServer((client) => {
    const server = connect(Number(new URL(url).port), "127.0.0.1");
    const pair: [Socket, Socket] = [client, server];
    pairs.add(pair);
    for (const [one, other] of [pair, [server, client]] as const) {
      one.on("error", () => {});
      one.on("close", () => {
        pairs.delete(pair);
        other.destroy();
      });
      one.pipe(other);
    }
  });
  await new Promise<void>((resolve) => relay.listen(0, "127.0.0.1", resolve));
  return {
    url: `http://127.0.0.1:${(relay.address() as AddressInfo).port}`,
    cutOne() {
      const pair = [...pairs][Math.floor(Math.random() * pairs.size)];
      if (Math.random() < 0.5) pair?.[1].resetAndDestroy();
      else pair?.[1].destroy();
    },
    close() {
      relay.close();
      for (const [client] of pairs) client.destroy();
    },
  };
}
