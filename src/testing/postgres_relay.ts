/** What stands between the service and Postgres, and in their way, message by message. */
import { type AddressInfo, connect, createServer, type Socket } from "node:net";

/** A message of the protocol that is about to be passed on. */
export interface Message {
  from: "client" | "postgres";
  /**
   * The letter of the protocol, or "startup" or "cancel" for what has none: P(arse), B(ind),
   * D(escribe), E(xecute), S(ync), H (flush), Q(uery), X (terminate), p(assword) of the client;
   * R (authentication), S (parameter status), K (key), Z (ready), 1 2 t T D C E N of Postgres.
   */
  type: string;
  /** Of which connection through the relay, counted from 0. */
  connection: number;
}

/**
 * What becomes of a message. "skip" leaves out this one, "lose" keeps the connection and passes
 * nothing on any more.
 */
export type Fate =
  | "pass"
  | "skip"
  | "reset"
  | "end"
  | "pass and reset"
  | "pass and end"
  | "fatal"
  | "lose";

/** Passes the protocol of Postgres on. */
export interface PostgresRelay {
  /** The database's URL through the relay. */
  url: string;
  /** Decides on every message from now on; passes all by default. */
  decide: (message: Message) => Fate;
  /** Connections that were made through it so far. */
  connections(): number;
  /** Sends new connections to another database. */
  lead(databaseUrl: string): void;
  close(): void;
}

/** Starts a relay to the database, whose URL it takes user, password and name from. */
export async function startPostgresRelay(databaseUrl: string): Promise<PostgresRelay> {
  let target = new URL(databaseUrl);
  const sockets = new Set<Socket>();
  let connections = 0;
  const server = createServer((client) => {
    const number = connections++;
    const postgres = connect(Number(target.port), target.hostname);
    let isOver = false;
    let isLost = false;
    const finish = (how: "reset" | "end") => {
      isOver = true;
      if (how === "reset") client.resetAndDestroy();
      else client.end();
      postgres.destroy();
    };
    // Each message is a write of its own.
    client.setNoDelay();
    postgres.setNoDelay();
    const carry = (from: Message["from"], source: Socket, sink: Socket) => {
      const split = createSplitter(from === "client");
      source.on("data", (chunk: Buffer) => {
        for (const { type, bytes } of split(chunk)) {
          if (isOver || isLost) return;
          const fate = relay.decide({ from, type, connection: number });
          if (fate === "skip") continue;
          if (fate.startsWith("pass")) sink.write(bytes);
          if (fate === "lose") isLost = true;
          else if (fate === "fatal") {
            client.write(fatal);
            finish("end");
          } else if (fate !== "pass") {
            // What was passed on must arrive before the connection goes.
            const how = fate.endsWith("reset") ? "reset" : "end";
            if (fate.startsWith("pass")) setTimeout(() => isOver || finish(how), 5);
            else finish(how);
            isLost = true;
          }
        }
      });
      source.on("error", () => {});
      source.on("close", () => {
        sockets.delete(source);
        if (!isLost || isOver) sink.destroy();
      });
      sockets.add(source);
    };
    carry("client", client, postgres);
    carry("postgres", postgres, client);
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const url = new URL(databaseUrl);
  url.hostname = "127.0.0.1";
  url.port = String((server.address() as AddressInfo).port);
  const relay: PostgresRelay = {
    url: url.href,
    decide: () => "pass",
    connections: () => connections,
    lead(to) {
      target = new URL(to);
    },
    close() {
      server.close();
      for (const socket of sockets) socket.destroy();
    },
  };
  return relay;
}

const fields = ["SFATAL", "VFATAL", "C57P01", "Mterminating connection", ""];
const fatal = frame("E", Buffer.from(fields.map((field) => `${field}\0`).join("")));

function frame(type: string, body: Buffer): Buffer {
  const head = Buffer.alloc(5);
  head.write(type);
  head.writeInt32BE(body.length + 4, 1);
  return Buffer.concat([head, body]);
}

/** The first message of a client has no letter; one that cancels is known by its code. */
const cancelCode = 80_877_102;

function createSplitter(isClient: boolean) {
  let rest: Buffer = Buffer.alloc(0);
  let isFirst = isClient;
  return function* (chunk: Buffer): Generator<{ type: string; bytes: Buffer }> {
    rest = Buffer.concat([rest, chunk]);
    for (;;) {
      const at = isFirst ? 0 : 1;
      if (rest.length < at + 4) return;
      const length = rest.readInt32BE(at) + at;
      if (rest.length < length) return;
      const bytes = rest.subarray(0, length);
      rest = rest.subarray(length);
      const letter = String.fromCharCode(bytes[0]!);
      const unnamed =
        bytes.length >= 8 && bytes.readInt32BE(4) === cancelCode ? "cancel" : "startup";
      const type = isFirst ? unnamed : letter;
      isFirst = false;
      yield { type, bytes };
    }
  };
}
