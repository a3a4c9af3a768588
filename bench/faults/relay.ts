/** One relay for both sides: between agents and servers, and between servers and Postgres. */
import { type AddressInfo, connect, createServer, type Socket } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";

/** What becomes of connections that are made from now on. */
type Door = "open" | "refuses" | "accepts and closes";

/** Passes TCP on, and gets in its way. */
export interface Relay {
  readonly port: number;
  /** Where new connections lead; asked for with each. */
  target: () => number;
  door: Door;
  /** Ends all connections with a reset, or politely. */
  cut(how: "reset" | "end"): number;
  /** The connections there are pass nothing from now on, for ever, and nobody is told. */
  freeze(): number;
  /** The far side is reset; the near side is not told. */
  leaveHalfOpen(): number;
  /** Nothing passes, on any connection, until it is called with false. */
  stall(on: boolean): void;
  /** Passes so few bytes a millisecond, each way of each connection; 0 is no limit. */
  slow(bytesPerMs: number): void;
  /** Resets each connection once so many more bytes have passed one way; undefined is never. */
  cutAfter(bytes: (() => number) | undefined): void;
  /** Connections made so far. */
  accepted(): number;
  close(): void;
}

interface Passage {
  near: Socket;
  far: Socket;
  isFrozen: boolean;
}

const tickMs = 5;

/** Starts one on a port of its own. */
export async function startRelay(target: () => number): Promise<Relay> {
  const passages = new Set<Passage>();
  let accepted = 0;
  let isStalled = false;
  let bytesPerMs = 0;
  let cutAfter: (() => number) | undefined;

  const reset = ({ near, far }: Passage) => {
    near.resetAndDestroy();
    far.resetAndDestroy();
  };

  async function carry(passage: Passage, from: Socket, to: Socket): Promise<void> {
    let allowed = Number.POSITIVE_INFINITY;
    let chosenBy: typeof cutAfter;
    for await (const whole of from) {
      let chunk = whole as Buffer;
      if (cutAfter !== chosenBy) {
        chosenBy = cutAfter;
        allowed = cutAfter?.() ?? Number.POSITIVE_INFINITY;
      }
      const isCut = chunk.length >= allowed;
      if (isCut) chunk = chunk.subarray(0, allowed);
      allowed -= chunk.length;
      while (isStalled || passage.isFrozen) {
        if (to.destroyed || from.destroyed) return;
        await sleep(tickMs);
      }
      if (bytesPerMs === 0) await write(to, chunk);
      else {
        for (let at = 0; at < chunk.length; ) {
          const bytes = bytesPerMs === 0 ? chunk.length : bytesPerMs * tickMs;
          await write(to, chunk.subarray(at, at + bytes));
          at += bytes;
          await sleep(tickMs);
        }
      }
      if (isCut) {
        // What was passed on is to arrive.
        await sleep(2);
        reset(passage);
        return;
      }
    }
    while ((isStalled || passage.isFrozen) && !to.destroyed) await sleep(tickMs);
    to.end();
  }

  const server = createServer({ allowHalfOpen: true, noDelay: true }, (near) => {
    near.on("error", () => {});
    accepted++;
    if (relay.door !== "open") {
      if (relay.door === "refuses") near.resetAndDestroy();
      else near.end();
      return;
    }
    const port = relay.target();
    const far = connect({ port, host: "127.0.0.1", allowHalfOpen: true, noDelay: true });
    const passage = { near, far, isFrozen: false };
    passages.add(passage);
    for (const [one, other] of [
      [near, far],
      [far, near],
    ] as const) {
      one.on("error", () => {});
      one.on("close", () => {
        passages.delete(passage);
        if (!passage.isFrozen) other.destroy();
      });
      carry(passage, one, other).catch(() => {
        if (!passage.isFrozen) other.destroy();
      });
    }
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));

  const relay: Relay = {
    port: (server.address() as AddressInfo).port,
    target,
    door: "open",
    cut(how) {
      const count = passages.size;
      for (const passage of passages) {
        if (how === "reset") reset(passage);
        else {
          passage.near.end();
          passage.far.end();
          setTimeout(() => reset(passage), 100);
        }
      }
      return count;
    },
    freeze() {
      for (const passage of passages) passage.isFrozen = true;
      return passages.size;
    },
    leaveHalfOpen() {
      for (const passage of passages) {
        passage.isFrozen = true;
        passage.far.resetAndDestroy();
      }
      return passages.size;
    },
    stall(on) {
      isStalled = on;
    },
    slow(limit) {
      bytesPerMs = limit;
    },
    cutAfter(bytes) {
      cutAfter = bytes;
    },
    accepted: () => accepted,
    close() {
      server.close();
      for (const { near, far } of passages) {
        near.destroy();
        far.destroy();
      }
    },
  };
  return relay;
}

function write(to: Socket, chunk: Buffer): Promise<void> | undefined {
  if (to.destroyed || to.writableEnded) return;
  if (to.write(chunk)) return;
  return new Promise((resolve) => {
    const done = () => {
      to.off("drain", done);
      to.off("close", done);
      resolve();
    };
    to.on("drain", done);
    to.on("close", done);
  });
}
