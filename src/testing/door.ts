import { type AddressInfo, connect, createServer, type Socket } from "node:net";

/** Stands between a server and its Postgres, and can keep new connections waiting. */
export interface Door {
  /** The database's URL through the door. */
  readonly url: string;
  /** From now on new connections get no answer; those that are open go on. */
  shut(): void;
  /** Lets in who waits, and everybody after. */
  open(): void;
  /** How many wait. */
  waiting(): number;
  /** Cuts all connections and stops listening. */
  close(): void;
}

/** Starts a door to the database of a URL, open. */
export async function startDoor(databaseUrl: string): Promise<Door> {
  const target = new URL(databaseUrl);
  const sockets = new Set<Socket>();
  const waiting: (() => void)[] = [];
  let isShut = false;
  const server = createServer((socket) => {
    const letIn = () => {
      const inner = connect(Number(target.port), target.hostname);
      for (const [one, other] of [
        [socket, inner],
        [inner, socket],
      ] as const) {
        sockets.add(one);
        one.on("error", () => other.destroy());
        one.on("close", () => sockets.delete(one));
        one.pipe(other);
      }
    };
    if (isShut) waiting.push(letIn);
    else letIn();
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const url = new URL(databaseUrl);
  url.port = String((server.address() as AddressInfo).port);
  return {
    url: url.href,
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
