import { type AddressInfo, connect, createServer, type Socket } from "node:net";

/** Stands before a server or its Postgres, counts, and can keep new connections waiting. */
export interface Door {
  /** The URL through the door. */
  readonly url: string;
  /** From now on new connections get no answer; those that are open go on. */
  shut(): void;
  /** Lets in who waits, and everybody after. */
  open(): void;
  /** Bytes that went in and came out so far. */
  bytes(): { in: number; out: number };
  /** How many wait. */
  waiting(): number;
  /** Cuts all connections and stops listening. */
  close(): void;
}

/** Starts a door to what a URL names, open. */
export async function startDoor(to: string): Promise<Door> {
  const target = new URL(to);
  const sockets = new Set<Socket>();
  const waiting: (() => void)[] = [];
  const bytes = { in: 0, out: 0 };
  let isShut = false;
  // Without noDelay a flow-control window waits 40 ms for a delayed acknowledgement.
  const server = createServer({ noDelay: true }, (socket) => {
    const letIn = () => {
      const inner = connect({ port: Number(target.port), host: target.hostname, noDelay: true });
      for (const [one, other] of [
        [socket, inner],
        [inner, socket],
      ] as const) {
        sockets.add(one);
        one.on("error", () => other.destroy());
        one.on("close", () => sockets.delete(one));
        one.on("data", (chunk) => {
          bytes[one === socket ? "in" : "out"] += chunk.length;
        });
        one.pipe(other);
      }
    };
    if (isShut) waiting.push(letIn);
    else letIn();
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const url = new URL(to);
  url.port = String((server.address() as AddressInfo).port);
  return {
    url: url.href,
    bytes: () => ({ ...bytes }),
    shut: () => {
      isShut = true;
    },
    open: () => {
      isShut = false;
      for (const letIn of waiting.splice(0)) letIn();
    },
    waiting: () => waiting.length,
    close: () => {
      server.close();
      for (const socket of sockets) socket.destroy();
    },
  };
}
