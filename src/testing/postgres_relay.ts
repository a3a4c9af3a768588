/** What stands between the service and Postgres, and in their way, message by message. */
import { type Intercept, type Passage, startRelay } from "./relay.js";

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
  const tcp = await startRelay(() => Number(target.port), "lets them through", { intercept });
  const relay: PostgresRelay = {
    url: tcp.through(databaseUrl),
    decide: () => "pass",
    connections: tcp.accepted,
    lead(to) {
      target = new URL(to);
    },
    close: tcp.close,
  };

  function intercept(passage: Passage, connection: number): Intercept {
    const { near, far } = passage;
    const sides = {
      near: { from: "client" as const, to: far, split: createSplitter(true) },
      far: { from: "postgres" as const, to: near, split: createSplitter(false) },
    };
    const finish = (how: "reset" | "end") => {
      if (how === "reset") near.resetAndDestroy();
      else near.end();
      far.destroy();
    };
    return (side, chunk) => {
      const { from, to, split } = sides[side];
      for (const { type, bytes } of split(chunk)) {
        if (passage.isFrozen || to.destroyed) return;
        const fate = relay.decide({ from, type, connection });
        if (fate === "skip") continue;
        if (fate.startsWith("pass")) to.write(bytes);
        if (fate === "pass") continue;
        passage.isFrozen = true;
        if (fate === "lose") return;
        if (fate === "fatal") near.write(fatal);
        const how = fate.endsWith("reset") ? "reset" : "end";
        // What was passed on must arrive before the connection goes.
        if (fate.startsWith("pass")) setTimeout(finish, 5, how);
        else finish(how);
      }
    };
  }

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
