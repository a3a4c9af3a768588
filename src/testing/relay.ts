/** The one relay of TCP: between agents and servers, and between servers and Postgres. */
import { type AddressInfo, connect, createServer, type Socket } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";

/** What becomes of connections that are made from now on. */
export type Door = "open" | "refuses" | "accepts and closes" | "keeps waiting";

/** What a relay does to a connection that begins with HTTP/1.1. */
export type ToHttp1 =
  | "lets them through"
  | "refuses them"
  | "cuts them"
  | "says nothing to them"
  | "answers them with noise";

/** What it does to one that begins with HTTP/2. */
export type ToHttp2 = "lets them through" | "refuses them" | "cuts them" | "says nothing to them";

/** A connection through a relay: `near` is the client's, `far` the server's. */
export interface Passage {
  near: Socket;
  far: Socket;
  /** Nothing passes any more, and neither side is told that the other has gone. */
  isFrozen: boolean;
}

/** Takes what came from a side of one passage, in place of it being passed on. */
export type Intercept = (from: "near" | "far", chunk: Buffer) => void;

/** What `startRelay` may be told. */
export interface RelayOptions {
  /** The most bytes a millisecond that pass on each connection to the server, and to the client. */
  sentBytesPerMs?: number;
  answeredBytesPerMs?: number;
  toHttp2?: ToHttp2;
  /** Called with each passage and its number, counted from 0. */
  intercept?: (passage: Passage, number: number) => Intercept;
}

/** Passes TCP on, and gets in its way. */
export interface Relay {
  readonly port: number;
  /** `http://` and where it listens. */
  readonly url: string;
  /** Settable. Who waited at the door is let in when it opens. */
  door: Door;
  /** Settable: what it does to connections that begin with HTTP/2. */
  toHttp2: ToHttp2;
  /** The same URL, through the relay. */
  through(url: string): string;
  /** How many connections pass now. */
  open(): number;
  /** Connections so far: all, and those that passed its door and began with HTTP/1.1 or HTTP/2. */
  accepted(): number;
  http1(): number;
  http2(): number;
  /** How many wait at its door. */
  waiting(): number;
  /** Bytes so far that came from clients, and from servers. */
  bytes(): { in: number; out: number };
  /** Ends all connections: at once, with a reset, or politely. Answers how many. */
  cut(how?: "close" | "reset" | "end"): number;
  /** Ends one as a server that vanishes does: with a reset, or just so. */
  cutOne(): void;
  /** The connections there are pass nothing from now on, and nobody is told. */
  freeze(): number;
  /** The far side is reset; the near side is not told. */
  leaveHalfOpen(): number;
  /** Nothing passes, on any connection, until it is called with false. */
  stall(on: boolean): void;
  /** Passes so few bytes a millisecond, each way of each connection; 0 is no limit. */
  slow(bytesPerMs: number): void;
  /** Resets each connection once so many more bytes have passed one way; undefined is never. */
  cutAfter(bytes: (() => number) | undefined): void;
  /** Cuts all connections and stops listening. */
  close(): void;
}

const tickMs = 10;

/** Starts one, on a port of its own, to a port of this machine that is asked for each time. */
export async function startRelay(
  target: () => number,
  toHttp1: ToHttp1 = "lets them through",
  options: RelayOptions = {},
): Promise<Relay> {
  const clients = new Set<Socket>();
  const passages = new Set<Passage>();
  const waiting: Socket[] = [];
  const bytes = { in: 0, out: 0 };
  const limits = { near: options.sentBytesPerMs ?? 0, far: options.answeredBytesPerMs ?? 0 };
  let door: Door = "open";
  let accepted = 0;
  let passed = 0;
  let http1 = 0;
  let http2 = 0;
  let isStalled = false;
  let cutAfter: (() => number) | undefined;
  let toHttp2 = options.toHttp2 ?? "lets them through";

  async function carry(passage: Passage, side: "near" | "far", intercept?: Intercept) {
    const from = passage[side];
    const to = side === "near" ? passage.far : passage.near;
    const isHeldUp = () => isStalled || passage.isFrozen;
    let allowed = Number.POSITIVE_INFINITY;
    let chosenBy: typeof cutAfter;
    let nextAt = 0;
    for await (const whole of from) {
      let chunk = whole as Buffer;
      bytes[side === "near" ? "in" : "out"] += chunk.length;
      if (cutAfter !== chosenBy) {
        chosenBy = cutAfter;
        allowed = cutAfter?.() ?? Number.POSITIVE_INFINITY;
      }
      const isCut = chunk.length >= allowed;
      if (isCut) chunk = chunk.subarray(0, allowed);
      allowed -= chunk.length;
      while (isHeldUp()) {
        if (to.destroyed || from.destroyed) return;
        await sleep(tickMs);
      }
      if (intercept) intercept(side, chunk);
      else if (limits[side] === 0) await write(to, chunk);
      else {
        for (let at = 0; at < chunk.length; ) {
          const size = limits[side] === 0 ? chunk.length : limits[side] * tickMs;
          await write(to, chunk.subarray(at, at + size));
          at += size;
          // A busy machine wakes us late, which the next ones make up for.
          const now = performance.now();
          nextAt = Math.max(nextAt, now - 1_000) + tickMs;
          if (nextAt > now) await sleep(nextAt - now);
        }
      }
      if (isCut) {
        // What was passed on is to arrive.
        await sleep(2);
        reset(passage);
        return;
      }
    }
    while (isHeldUp() && !to.destroyed) await sleep(tickMs);
    to.end();
  }

  function passOn(near: Socket): void {
    const far = connect({
      port: target(),
      host: "127.0.0.1",
      allowHalfOpen: true,
      // Without it a flow-control window waits 40 ms for a delayed acknowledgement.
      noDelay: true,
    });
    const passage = { near, far, isFrozen: false };
    passages.add(passage);
    far.on("error", () => {});
    const intercept = options.intercept?.(passage, passed++);
    for (const side of ["near", "far"] as const) {
      const other = side === "near" ? far : near;
      const giveUp = () => passage.isFrozen || other.destroy();
      passage[side].on("close", () => {
        passages.delete(passage);
        giveUp();
      });
      carry(passage, side, intercept).catch(giveUp);
    }
  }

  /** What a client says first tells HTTP/2 from HTTP/1.1, which everything else is taken for. */
  function letIn(near: Socket): void {
    near.once("data", (hello: Buffer) => {
      const isHttp2 = hello.toString("latin1", 0, 3) === "PRI";
      if (isHttp2) http2++;
      else http1++;
      const does = isHttp2 ? toHttp2 : toHttp1;
      if (does === "lets them through") {
        near.pause();
        near.unshift(hello);
        passOn(near);
      } else if (does === "refuses them") {
        // nginx answers HTTP/2 so.
        const status = isHttp2 ? "400 Bad Request" : "403 Forbidden";
        near.end(`HTTP/1.1 ${status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n`);
      } else if (does === "cuts them") {
        near.destroy();
      } else if (does === "answers them with noise") {
        const upgrade = "connection: upgrade\r\nupgrade: checkpointd-session\r\n";
        near.write(`HTTP/1.1 101 Switching Protocols\r\n${upgrade}\r\n\0\0\0\0\x03???`);
      }
    });
    near.once("end", () => near.end());
  }

  const server = createServer({ allowHalfOpen: true, noDelay: true }, (near) => {
    clients.add(near);
    near.on("error", () => {});
    near.on("close", () => clients.delete(near));
    accepted++;
    if (door === "open") letIn(near);
    else if (door === "keeps waiting") waiting.push(near);
    else if (door === "refuses") near.resetAndDestroy();
    else near.end();
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const { port } = server.address() as AddressInfo;

  return {
    port,
    url: `http://127.0.0.1:${port}`,
    get door() {
      return door;
    },
    set door(next) {
      door = next;
      if (door === "open") for (const near of waiting.splice(0)) letIn(near);
    },
    get toHttp2() {
      return toHttp2;
    },
    set toHttp2(next) {
      toHttp2 = next;
    },
    through(url) {
      const changed = new URL(url);
      changed.hostname = "127.0.0.1";
      changed.port = String(port);
      return changed.href;
    },
    open: () => passages.size,
    accepted: () => accepted,
    http1: () => http1,
    http2: () => http2,
    waiting: () => waiting.length,
    bytes: () => ({ ...bytes }),
    cut(how = "close") {
      const count = passages.size;
      if (how === "close") for (const near of clients) near.destroy();
      for (const passage of passages) {
        if (how === "close") passage.far.destroy();
        else if (how === "reset") reset(passage);
        else {
          passage.near.end();
          passage.far.end();
          setTimeout(() => reset(passage), 100);
        }
      }
      return count;
    },
    cutOne() {
      const { far } = [...passages][Math.floor(Math.random() * passages.size)] ?? {};
      if (Math.random() < 0.5) far?.resetAndDestroy();
      else far?.destroy();
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
    slow(bytesPerMs) {
      limits.near = bytesPerMs;
      limits.far = bytesPerMs;
    },
    cutAfter(choose) {
      cutAfter = choose;
    },
    close() {
      server.close();
      for (const near of clients) near.destroy();
      for (const { far } of passages) far.destroy();
    },
  };
}

function reset({ near, far }: Passage): void {
  near.resetAndDestroy();
  far.resetAndDestroy();
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
