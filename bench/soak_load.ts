/** The clients of a soak: what agents do, and what goes wrong with them. */
import { Agent } from "node:http";
import { setTimeout as sleep } from "node:timers/promises";
import { create, toBinary } from "@bufbuild/protobuf";
import { type Client, Code, ConnectError, createClient } from "@connectrpc/connect";
import {
  createConnectTransport,
  createGrpcTransport,
  Http2SessionManager,
} from "@connectrpc/connect-node";
import { Annotation, END, START, StateGraph } from "@langchain/langgraph";
import pg from "pg";
import { CheckpointService } from "../gen/checkpointd/v1/checkpoint_service_pb.js";
import { OpenSessionRequestSchema } from "../gen/checkpointd/v1/session_service_pb.js";
import { ConnectSaver } from "../src/index.js";
import { envelope } from "../src/protocol/envelope.js";
import { openOnHttp2, openUpgraded } from "../src/testing/raw_session.js";
import { startRelay } from "../src/testing/relay.js";
import { createText } from "./text.js";

/** What came of the operations so far. */
export interface Tally {
  operations: number;
  /** Those among them that failed as they were meant to: cancelled, too late, saver ended. */
  givenUp: number;
  /** Those that must not have failed, and what they said. */
  errors: string[];
}

/** A load that runs. */
export interface SoakLoad {
  readonly tally: Tally;
  /** Ends the load, deletes every thread of it and closes every connection. */
  stop(): Promise<void>;
}

/** Savers in use at a time: whether over the relay, and how. */
const places = [
  { relayed: false, options: {} },
  { relayed: false, options: {} },
  { relayed: true, options: {} },
  { relayed: true, options: {} },
  { relayed: true, options: { session: false } },
  { relayed: false, options: { protocol: "grpc" } },
] as const;

/** Too short for a put while the tables are locked. */
const hastyMs = 100;
/** Messages after which a conversation begins anew. */
const longestTalk = 100;
/** Every so often a client vanishes, a saver is ended for a new one, and tables are locked. */
const troubleMs = 1_000;
const lockMs = 300;

const text = createText(1024);

const graph = new StateGraph(
  Annotation.Root({ topic: Annotation<string>, draft: Annotation<string> }),
)
  .addNode("writer", () => ({ draft: text(1024) }))
  .addNode("editor", ({ draft }) => ({ draft: `edited ${draft}` }))
  .addEdge(START, "writer")
  .addEdge("writer", "editor")
  .addEdge("editor", END);

/** One operation at a time on a thread of its own, which is read back as it was written. */
class Slot {
  readonly #name: string;
  #count = 0;
  #threadId = "";
  #messages: string[] = [];
  /** The checkpoints whose put succeeded. */
  #ids: string[] = [];
  /** Threads to be deleted, and how often they were: a write that was given up may come later. */
  readonly #doomed = new Map<string, number>();

  constructor(name: string) {
    this.#name = name;
    this.#begin();
  }

  async put(saver: ConnectSaver, bytes = 1024, more: Record<string, unknown> = {}): Promise<void> {
    const id = this.#nextId();
    const version = saver.getNextVersion(undefined);
    const values = { note: `${id} ${text(bytes)}`, ...more };
    const versions = Object.fromEntries(Object.keys(values).map((channel) => [channel, version]));
    await saver.put(
      { configurable: { thread_id: this.#threadId } },
      {
        v: 4,
        id,
        ts: new Date().toISOString(),
        channel_values: values,
        channel_versions: versions,
        versions_seen: {},
      },
      { source: "loop", step: this.#count, parents: {} },
      versions,
    );
    this.#ids.push(id);
  }

  /** Puts a conversation with one message more, of which the saver sends only that. */
  async converse(saver: ConnectSaver): Promise<void> {
    if (this.#messages.length === longestTalk) this.#messages = [];
    this.#messages = [...this.#messages, text(1024)];
    await this.put(saver, 1, { messages: this.#messages });
    const tuple = await saver.getTuple(this.#latest());
    const messages = tuple?.checkpoint.channel_values.messages as string[] | undefined;
    if (messages?.join() !== this.#messages.join()) throw new Error("a conversation is another");
  }

  async putWrites(saver: ConnectSaver): Promise<void> {
    if (this.#ids.length === 0) await this.put(saver);
    await saver.putWrites(this.#latest(), [["note", text(1024)]], `task-${this.#count++}`);
  }

  async getTuple(saver: ConnectSaver): Promise<void> {
    const tuple = await saver.getTuple({ configurable: { thread_id: this.#threadId } });
    const id = tuple?.checkpoint.id ?? "";
    // A put that was given up may have been carried out.
    if (id < (this.#ids.at(-1) ?? "")) throw new Error(`read ${id} after ${this.#ids.at(-1)}`);
    const note = tuple?.checkpoint.channel_values.note as string | undefined;
    if (note !== undefined && !note.startsWith(id)) throw new Error(`${id} has another's value`);
  }

  async list(saver: ConnectSaver): Promise<void> {
    const found = new Set<string>();
    const config = { configurable: { thread_id: this.#threadId } };
    for await (const { checkpoint } of saver.list(config)) found.add(checkpoint.id);
    const missing = this.#ids.filter((id) => !found.has(id));
    if (missing.length > 0) throw new Error(`a list lacks ${missing}`);
  }

  /** Lists everybody's, and leaves. */
  async listAndLeave(saver: ConnectSaver): Promise<void> {
    let count = Math.ceil(Math.random() * 10);
    for await (const _ of saver.list({ configurable: {} })) if (--count === 0) return;
  }

  async invoke(saver: ConnectSaver): Promise<void> {
    const threadId = `${this.#threadId}-invoke-${this.#count++}`;
    this.#doomed.set(threadId, 0);
    const config = { configurable: { thread_id: threadId } };
    const { draft } = await graph
      .compile({ checkpointer: saver })
      .invoke({ topic: text(100) }, config);
    if (!draft.startsWith("edited ")) throw new Error("an invoke came to the wrong end");
  }

  async clear(saver: ConnectSaver): Promise<void> {
    this.#begin();
    for (const [threadId, times] of this.#doomed) {
      await saver.deleteThread(threadId);
      if (times > 0) this.#doomed.delete(threadId);
      else this.#doomed.set(threadId, 1);
    }
  }

  /** A call that is cancelled while it may be anywhere. */
  async cancel(client: Client<typeof CheckpointService>): Promise<void> {
    const canceller = new AbortController();
    const options = { signal: canceller.signal };
    const timer = setTimeout(() => canceller.abort(), Math.random() * 10);
    try {
      await client.put(this.#rawPut(), options);
      for await (const _ of client.list({}, options));
    } finally {
      clearTimeout(timer);
    }
  }

  /** A client without manners: it opens a session, asks for a lot and is gone. */
  async vanish(url: string): Promise<void> {
    const { stream, cut } = Math.random() < 0.5 ? openOnHttp2(url) : openUpgraded(url);
    for (let id = 1; id <= 8; id++) {
      const operation = { case: "put", value: this.#rawPut() } as const;
      const request = create(OpenSessionRequestSchema, { id, operation });
      const bytes = toBinary(OpenSessionRequestSchema, request);
      stream.write(Buffer.concat([envelope(0, bytes.length), bytes]));
    }
    await sleep(Math.random() * 20);
    cut();
  }

  #rawPut() {
    const id = this.#nextId();
    const checkpoint = { v: 4, id, channel_values: {}, channel_versions: {}, versions_seen: {} };
    const checkpointJson = JSON.stringify(checkpoint);
    return { threadId: this.#threadId, checkpointId: id, checkpointJson };
  }

  #begin(): void {
    if (this.#threadId !== "") this.#doomed.set(this.#threadId, 0);
    this.#threadId = `${this.#name}-${this.#count++}`;
    this.#ids = [];
  }

  /** Greater than all before it. */
  #nextId(): string {
    return String(this.#count++).padStart(12, "0");
  }

  #latest() {
    const checkpoint_id = this.#ids.at(-1) as string;
    return { configurable: { thread_id: this.#threadId, checkpoint_ns: "", checkpoint_id } };
  }
}

/** Keeps `inFlight` operations going against the service at `url`, and makes trouble. */
export async function startLoad(
  url: string,
  databaseUrl: string,
  inFlight: number,
): Promise<SoakLoad> {
  const tally: Tally = { operations: 0, givenUp: 0, errors: [] };
  const relay = await startRelay(() => Number(new URL(url).port));
  const open = (i: number) => {
    const { relayed, options } = places[i]!;
    return ConnectSaver.fromUrl(relayed ? relay.url : url, options);
  };
  const savers = places.map((_, i) => open(i));
  const hasty = ConnectSaver.fromUrl(url, { timeoutMs: hastyMs });
  const raw = openRawClients(url);
  const slots = Array.from({ length: inFlight }, (_, i) => new Slot(`soak-${i}`));
  let stopped = false;

  const pick = <T>(from: readonly T[]) => from[Math.floor(Math.random() * from.length)] as T;
  // `meant` is how those that are given up may end.
  const operations: [weight: number, run: (slot: Slot) => Promise<void>, meant?: Code][] = [
    [28, (slot) => slot.put(pick(savers))],
    [20, (slot) => slot.putWrites(pick(savers))],
    [24, (slot) => slot.getTuple(pick(savers))],
    [8, (slot) => slot.converse(pick(savers))],
    [1, (slot) => slot.converse(hasty), Code.DeadlineExceeded],
    [6, (slot) => slot.invoke(pick(savers))],
    [5, (slot) => slot.list(pick(savers))],
    [4, (slot) => slot.listAndLeave(pick(savers))],
    [4, (slot) => slot.clear(pick(savers))],
    [3, (slot) => slot.put(hasty), Code.DeadlineExceeded],
    [3, (slot) => slot.cancel(pick(raw.clients)), Code.Canceled],
    [2, (slot) => slot.vanish(url)],
    [1, (slot) => slot.put(pick(savers), 300_000)],
  ];
  const deck = operations.flatMap((each) => Array<typeof each>(each[0]).fill(each));
  const running = slots.map(async (slot) => {
    while (!stopped) {
      const [, run, meant] = pick(deck);
      await run(slot).catch((error: unknown) => {
        if (isMeant(error, meant)) tally.givenUp++;
        else tally.errors.push(error instanceof Error ? (error.stack ?? "") : String(error));
      });
      tally.operations++;
    }
  });

  const sql = new pg.Client({ connectionString: databaseUrl });
  sql.on("error", () => {});
  await sql.connect();
  const trouble = (async () => {
    for (let turn = 0; !stopped; turn++) {
      relay.cutOne();
      // Not at once: a saver that is ended makes no call again whose connection was cut.
      await sleep(troubleMs);
      const i = turn % savers.length;
      const old = savers[i]!;
      savers[i] = open(i);
      await old.end();
      if (turn % 5 > 0) continue;
      await sql.query("begin; lock table checkpoints in exclusive mode");
      await sleep(lockMs);
      await sql.query("commit");
    }
  })();

  return {
    tally,
    async stop() {
      stopped = true;
      await Promise.all([...running, trouble]);
      const [saver] = savers as [ConnectSaver, ...ConnectSaver[]];
      for (const slot of slots) await slot.clear(saver);
      // By now what was given up is over, and what it stored can be deleted for good.
      await sleep(1_000);
      for (const slot of slots) await slot.clear(saver);
      for (const slot of slots) await slot.clear(saver);
      await Promise.all([hasty, ...savers].map((each) => each.end()));
      raw.close();
      relay.close();
      await sql.end();
    },
  };
}

/** Whether the operation was given up by this load itself, as `meant` or by ending its saver. */
function isMeant(error: unknown, meant: Code | undefined): boolean {
  const { code, rawMessage } = ConnectError.from(error);
  return code === meant || (code === Code.Canceled && rawMessage.includes("end() was called"));
}

/** Clients whose calls can be cancelled one by one. */
function openRawClients(url: string) {
  const managers = [new Http2SessionManager(url), new Http2SessionManager(url)] as const;
  const agent = new Agent({ keepAlive: true });
  const http2 = { baseUrl: url, httpVersion: "2" } as const;
  const transports = [
    createConnectTransport({ ...http2, sessionManager: managers[0] }),
    createGrpcTransport({ ...http2, sessionManager: managers[1] }),
    createConnectTransport({ baseUrl: url, httpVersion: "1.1", nodeOptions: { agent } }),
  ];
  return {
    clients: transports.map((transport) => createClient(CheckpointService, transport)),
    close() {
      for (const manager of managers) manager.abort();
      agent.destroy();
    },
  };
}
