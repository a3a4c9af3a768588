/**
 * What whoever can write to the database may try on threads that a saver encrypts: rows altered, moved,
 * planted and removed by SQL. Each is refused with its reason, by getTuple, by list and to a graph;
 * what cannot be told from an honest database is at the end, as docs/security.md has it.
 */
import { createClient, type Transport } from "@connectrpc/connect";
import { createConnectTransport } from "@connectrpc/connect-node";
import { emptyCheckpoint } from "@langchain/langgraph-checkpoint";
import pg from "pg";
import { afterAll, beforeAll, beforeEach, describe, expect, it } from "vitest";
import type { CheckpointTuple } from "../../gen/checkpointd/v1/checkpoint_pb.js";
import { CheckpointService } from "../../gen/checkpointd/v1/checkpoint_service_pb.js";
import {
  type GetChannelHistoryResponse,
  ThreadService,
} from "../../gen/checkpointd/v1/thread_service_pb.js";
import type { Server } from "../server/server.js";
import { createDatabase, type TestDatabase } from "../testing/postgres.js";
import { startTestServer } from "../testing/test_server.js";
import type { EncryptionReason } from "./encryption_error.js";
import { keyring } from "./encryption_keys.js";
import { ConnectSaver } from "./saver.js";

const keys = keyring("new", { new: Buffer.alloc(32, 1), old: Buffer.alloc(32, 2) });
let database: TestDatabase;
let server: Server;
let pool: pg.Pool;
let saver: ConnectSaver;
beforeAll(async () => {
  database = await createDatabase();
  server = await startTestServer(database.url);
  pool = new pg.Pool({ connectionString: database.url, max: 2 });
  saver = ConnectSaver.fromUrl(server.url, { encryption: { keys } });
});
afterAll(async () => {
  await saver?.end();
  await pool?.end();
  await server?.drain();
  await database?.drop();
});

/** One checkpoint after another in a thread and namespace, the later with writes. */
interface Stored {
  thread: string;
  first: string;
  last: string;
}

const versions = (n: number) => ({ secret: n, other: n, large: n, delta: n });
const large = Array.from({ length: 400 }, (_, i) => `line ${i} of ${"x".repeat(90)}`);

/** With the same ids, versions and tasks in each thread, so that nothing but the key tells them apart. */
async function store(thread_id: string, checkpoint_ns = "", ids = ["1", "2"]): Promise<Stored> {
  let config: object = { configurable: { thread_id, checkpoint_ns } };
  for (const [i, id] of ids.entries()) {
    const n = i + 1.5;
    const channel_versions = versions(n);
    const checkpoint = {
      ...emptyCheckpoint(),
      id,
      channel_versions,
      channel_values: {
        secret: `${thread_id} ${id}`,
        other: `other ${thread_id} ${id}`,
        large: large.slice(0, 300 + 50 * i),
      },
    };
    const metadata = { source: "loop", step: i, parents: {} } as const;
    config = await saver.put(config, checkpoint, metadata, channel_versions);
    for (const task of ["a", "b"]) {
      const writes: [string, unknown][] = [0, 1].map((at) => ["delta", `${id} ${task} ${at}`]);
      await saver.putWrites(config, writes, task, `~${task}`);
      await saver.putWrites(config, [["__resume__", `${id} ${task}`]], task, `~${task}`);
    }
  }
  return { thread: thread_id, first: ids[0]!, last: ids[1]! };
}

let count = 0;
let mine: Stored;
let theirs: Stored;
beforeEach(async () => {
  mine = await store(`mine ${++count}`);
  theirs = await store(`theirs ${count}`);
  await store(mine.thread, "child");
});

const reads = {
  getTuple: () => saver.getTuple({ configurable: { thread_id: mine.thread } }),
  list: async () => {
    const config = { configurable: { thread_id: mine.thread, checkpoint_ns: "" } };
    for await (const tuple of saver.list(config, { limit: 1 })) return tuple;
  },
  "list of all": async () => {
    for await (const tuple of saver.list({})) {
      const { thread_id, checkpoint_ns } = tuple.config.configurable ?? {};
      if (thread_id === mine.thread && checkpoint_ns === "") return tuple;
    }
  },
};

const refuses = async (read: () => Promise<unknown>, reason: EncryptionReason, says?: RegExp) => {
  const error = await read().then(
    () => undefined,
    (thrown) => thrown,
  );
  expect(error).toMatchObject({ name: "EncryptionError", reason });
  if (says) expect(error.message).toMatch(says);
};

/** The values of a thread's root, of which the last version is 2.5. */
const blobOf = (channel: string, version = "2.5", thread = "$mine", ns = "") =>
  `thread_id = ${thread} and checkpoint_ns = '${ns}' and channel = '${channel}' and version = '${version}'`;
const writeOf = (task: string, idx: number, id = "2", thread = "$mine", ns = "") =>
  `thread_id = ${thread} and checkpoint_ns = '${ns}' and checkpoint_id = '${id}' and task_id = '${task}' and idx = ${idx}`;
const rowOf = (id = "2", thread = "$mine", ns = "") =>
  `thread_id = ${thread} and checkpoint_ns = '${ns}' and checkpoint_id = '${id}'`;
/** Puts type and bytes of one row in the place of another's. */
const moveBlob = (to: string, from: string) =>
  `update checkpoint_blobs set (type, blob) =
     (select type, blob from checkpoint_blobs where ${from}) where ${to}`;
const moveWrite = (to: string, from: string) =>
  `update checkpoint_writes set (type, blob) =
     (select type, blob from checkpoint_writes where ${from}) where ${to}`;
const flip =
  "blob = set_byte(blob, octet_length(blob) - 20, get_byte(blob, octet_length(blob) - 20) # 1)";
const setBlob = (channel: string, set: string) =>
  `update checkpoint_blobs set ${set} where ${blobOf(channel)}`;
const setWrite = (set: string) => `update checkpoint_writes set ${set} where ${writeOf("a", 0)}`;
const setJson = (set: string, at = rowOf()) =>
  `update checkpoints set checkpoint = ${set} where ${at}`;
const plain = (value: string) => `type = 'json', blob = convert_to('"${value}"', 'UTF8')`;
const sealFrom = (from: string) =>
  `jsonb_set(checkpoint, '{checkpointd_seal}',
     (select checkpoint -> 'checkpointd_seal' from checkpoints where ${from}))`;

/** Header with the id "new", the tag over all chunks, and the first chunk; then those of 4 KiB. */
const headBytes = 7 + 28 + 92;
const chunkBytes = 4096 + 28;
const bytes = (from: number, length?: number) =>
  `substring(blob from ${from + 1}${length === undefined ? "" : ` for ${length}`})`;
const upTo = (chunk: number) => bytes(0, headBytes + chunk * chunkBytes);

const elsewhere = /is not what was stored there: it was altered or belongs elsewhere/;
const attacks: [name: string, reason: EncryptionReason, sql: string, says?: RegExp][] = [
  ["a value altered", "NOT_AUTHENTIC", setBlob("secret", flip), /its value of channel "secret" is/],
  ["a write altered", "NOT_AUTHENTIC", setWrite(flip), /its write to channel "delta" of task "a"/],
  ["a value cut short", "NOT_AUTHENTIC", setBlob("secret", "blob = substring(blob for 40)")],
  ["a value of no bytes", "NOT_AUTHENTIC", setBlob("secret", "blob = ''"), /is damaged/],
  ["a type altered", "NOT_AUTHENTIC", setBlob("secret", "type = 'aes256gcm+idle'")],
  [
    "a key's id altered",
    "NOT_AUTHENTIC",
    setBlob("secret", "blob = overlay(blob placing 'old' from 5)"),
    /or the key "old" is another one/,
  ],
  [
    "a key's id made up",
    "KEY_UNKNOWN",
    setBlob("secret", "blob = overlay(blob placing 'odd' from 5)"),
    /encrypted with the key "odd", which encryption.keys does not know/,
  ],
  [
    "the last chunk left out",
    "NOT_AUTHENTIC",
    setBlob("large", `blob = ${upTo(7)}`),
    /its value of channel "large" is/,
  ],
  [
    "two chunks exchanged",
    "NOT_AUTHENTIC",
    setBlob(
      "large",
      `blob = ${upTo(1)} || ${bytes(headBytes + 2 * chunkBytes, chunkBytes)}
        || ${bytes(headBytes + chunkBytes, chunkBytes)} || ${bytes(headBytes + 3 * chunkBytes)}`,
    ),
  ],
  [
    "a chunk repeated",
    "NOT_AUTHENTIC",
    setBlob("large", `blob = ${upTo(2)} || ${bytes(headBytes + chunkBytes)}`),
  ],
  [
    "a value that was extended, by what it was before",
    "NOT_AUTHENTIC",
    moveBlob(blobOf("large"), blobOf("large", "1.5")),
  ],
  [
    "another channel's value",
    "NOT_AUTHENTIC",
    moveBlob(blobOf("secret"), blobOf("other")),
    elsewhere,
  ],
  [
    "an older value",
    "NOT_AUTHENTIC",
    moveBlob(blobOf("secret"), blobOf("secret", "1.5")),
    elsewhere,
  ],
  [
    "another thread's value",
    "NOT_AUTHENTIC",
    moveBlob(blobOf("secret"), blobOf("secret", "2.5", "$theirs")),
    elsewhere,
  ],
  [
    "another thread's value of many chunks",
    "NOT_AUTHENTIC",
    moveBlob(blobOf("large"), blobOf("large", "2.5", "$theirs")),
  ],
  [
    "a subgraph's value",
    "NOT_AUTHENTIC",
    moveBlob(blobOf("secret"), blobOf("secret", "2.5", "$mine", "child")),
    elsewhere,
  ],
  ["another task's write", "NOT_AUTHENTIC", moveWrite(writeOf("a", 0), writeOf("b", 0)), elsewhere],
  [
    "a write at another idx",
    "NOT_AUTHENTIC",
    moveWrite(writeOf("a", 0), writeOf("a", 1)),
    elsewhere,
  ],
  [
    "another checkpoint's write",
    "NOT_AUTHENTIC",
    moveWrite(writeOf("a", 0), writeOf("a", 0, "1")),
    elsewhere,
  ],
  [
    "another thread's write",
    "NOT_AUTHENTIC",
    moveWrite(writeOf("a", 0), writeOf("a", 0, "2", "$theirs")),
    elsewhere,
  ],
  [
    "a subgraph's write",
    "NOT_AUTHENTIC",
    moveWrite(writeOf("a", 0), writeOf("a", 0, "2", "$mine", "child")),
    elsewhere,
  ],
  ["a write to another channel", "NOT_AUTHENTIC", setWrite("channel = 'other'"), elsewhere],
  ["a write of another path", "NOT_AUTHENTIC", setWrite("task_path = '~0'"), elsewhere],
  [
    "an answer to an interrupt, by another's",
    "NOT_AUTHENTIC",
    moveWrite(writeOf("a", -4), writeOf("b", -4)),
    elsewhere,
  ],
  [
    "an answer to an interrupt, made up",
    "PLAINTEXT",
    `insert into checkpoint_writes values
       ($mine, '', '2', 'c', -4, '__resume__', 'json', convert_to('"yes"', 'UTF8'), '')`,
    /its write to channel "__resume__" of task "c" is not encrypted/,
  ],
  [
    "a value that is not encrypted",
    "PLAINTEXT",
    setBlob("secret", plain("planted")),
    /its value of channel "secret" is not encrypted/,
  ],
  ["a write that is not encrypted", "PLAINTEXT", setWrite(plain("planted"))],
  ["a value replaced by none", "WITHHELD", setBlob("secret", "type = 'empty', blob = null")],
  [
    "a value removed",
    "WITHHELD",
    `delete from checkpoint_blobs where ${blobOf("secret")}`,
    /its value of channel "secret" is missing/,
  ],
  [
    "an older version named",
    "NOT_AUTHENTIC",
    setJson(`jsonb_set(checkpoint, '{channel_versions,secret}', '1.5')`),
    /its value of channel "secret" is of another version/,
  ],
  [
    "a channel more",
    "NOT_AUTHENTIC",
    `with added as (
       insert into checkpoint_blobs select thread_id, checkpoint_ns, 'more', version, type, blob
       from checkpoint_blobs where ${blobOf("secret")}
     ) ${setJson(`jsonb_set(checkpoint, '{channel_versions,more}', '2.5')`)}`,
  ],
  [
    "a channel not named any more",
    "WITHHELD",
    setJson(`checkpoint #- '{channel_versions,secret}'`),
  ],
  [
    "the seal removed",
    "PLAINTEXT",
    setJson("checkpoint - 'checkpointd_seal'"),
    /it is not encrypted/,
  ],
  [
    "the seal replaced by text",
    "NOT_AUTHENTIC",
    setJson(`checkpoint || '{"checkpointd_seal":"AA"}'`),
  ],
  [
    "the seal replaced by a number",
    "NOT_AUTHENTIC",
    setJson(`checkpoint || '{"checkpointd_seal":1}'`),
  ],
  ["an older checkpoint's seal", "NOT_AUTHENTIC", setJson(sealFrom(rowOf("1"))), /its seal is not/],
  ["a subgraph's seal", "NOT_AUTHENTIC", setJson(sealFrom(rowOf("2", "$mine", "child")))],
  [
    "another thread's seal",
    "COPIED",
    setJson(sealFrom(rowOf("2", "$theirs"))),
    /was stored as "theirs \d+": it is a copy/,
  ],
  [
    "an older checkpoint under a later id",
    "NOT_AUTHENTIC",
    `insert into checkpoints select thread_id, checkpoint_ns, '3', '2', type, checkpoint, metadata
     from checkpoints where ${rowOf("1")}`,
  ],
  [
    "a checkpoint made up",
    "PLAINTEXT",
    `insert into checkpoints select thread_id, checkpoint_ns, '3', '2', type,
       '{"v":4,"id":"3","channel_values":{"secret":"planted"},"channel_versions":{"secret":2.5}}', '{}'
     from checkpoints where ${rowOf("2")}`,
  ],
  [
    "another thread under this one's name, as a whole",
    "COPIED",
    `with a as (delete from checkpoints where thread_id = $mine),
       b as (delete from checkpoint_blobs where thread_id = $mine),
       c as (delete from checkpoint_writes where thread_id = $mine)
     select 1;
     update checkpoints set thread_id = $mine where thread_id = $theirs;
     update checkpoint_blobs set thread_id = $mine where thread_id = $theirs;
     update checkpoint_writes set thread_id = $mine where thread_id = $theirs`,
    /encryption.acceptCopies says what may be read/,
  ],
];

async function attack(text: string): Promise<void> {
  await pool.query(
    text
      .replaceAll("$mine", pg.escapeLiteral(mine.thread))
      .replaceAll("$theirs", pg.escapeLiteral(theirs.thread)),
  );
}

describe("is refused", () => {
  it.each(attacks)("%s", async (_, reason, sql, says) => {
    for (const read of Object.values(reads)) {
      const told = await read();
      expect(told?.checkpoint.channel_values.secret).toBe(`${mine.thread} 2`);
      expect(told?.checkpoint.channel_values.large).toHaveLength(350);
      expect(told?.pendingWrites).toHaveLength(6);
    }
    const before = await digest();
    await attack(sql);
    expect(await digest()).not.toBe(before);
    for (const read of Object.values(reads)) await refuses(read, reason, says);
    // A thread that was not touched is read.
    if (!sql.includes("update checkpoints set thread_id")) {
      const other = { configurable: { thread_id: theirs.thread } };
      expect((await saver.getTuple(other))?.checkpoint.channel_values.secret).toMatch(/^theirs/);
    }
    await saver.deleteThread(mine.thread);
  });

  /** Of everything that is stored: an attack that changes nothing proves nothing. */
  async function digest(): Promise<string> {
    const rows = (table: string) =>
      `(select coalesce(string_agg(md5(t::text), '' order by md5(t::text)), '') from ${table} t)`;
    const tables = ["checkpoints", "checkpoint_blobs", "checkpoint_writes"];
    const { rows: told } = await pool.query(`select md5(${tables.map(rows).join("||")}) as digest`);
    return told[0].digest;
  }
});

describe("a service that lies", () => {
  const asked = (checkpoint_id?: string) => ({
    configurable: { thread_id: mine.thread, checkpoint_ns: "", checkpoint_id },
  });
  /** Reads with its answer altered. */
  async function told(alter: (tuple: CheckpointTuple) => void, config = asked()) {
    const transport = createConnectTransport({ baseUrl: server.url, httpVersion: "1.1" });
    const lying: Transport = {
      ...transport,
      async unary(...request) {
        const answer = await transport.unary(...request);
        alter((answer.message as unknown as { tuple: CheckpointTuple }).tuple);
        return answer;
      },
    };
    const reader = new ConnectSaver(lying, { encryption: { keys } });
    return reader.getTuple(config).finally(() => reader.end());
  }

  it.each<[string, EncryptionReason, (tuple: CheckpointTuple) => void]>([
    ["tells a write twice", "NOT_AUTHENTIC", ({ pendingWrites: it }) => it.push(it.at(-1)!)],
    [
      "tells the answer to an interrupt twice, by another path",
      "NOT_AUTHENTIC",
      ({ pendingWrites: it }) => {
        const answer = it.find(({ idx }) => idx < 0)!;
        it.push({ ...answer, taskPath: "~zz" });
      },
    ],
    [
      "tells writes in another order",
      "NOT_AUTHENTIC",
      ({ pendingWrites }) => pendingWrites.reverse(),
    ],
    ["tells a value without its bytes", "WITHHELD", ({ blobs }) => delete blobs[0]!.value],
    ["tells a value as none", "PLAINTEXT", ({ blobs }) => (blobs[0]!.value!.type = "empty")],
    ["leaves a value out", "WITHHELD", ({ blobs }) => blobs.splice(0, 1)],
    ["tells a write without its bytes", "WITHHELD", (it) => delete it.pendingWrites[0]!.value],
    ["names another checkpoint", "NOT_AUTHENTIC", ({ key }) => (key!.checkpointId = "1")],
    ["names another namespace", "NOT_AUTHENTIC", ({ key }) => (key!.checkpointNs = "child")],
    ["names another thread", "NOT_AUTHENTIC", ({ key }) => (key!.threadId = theirs.thread)],
    ["tells no checkpoint", "PLAINTEXT", (tuple) => (tuple.checkpointJson = "null")],
    ["makes up what was sent", "PLAINTEXT", (it) => it.pendingSends.push(it.blobs[0]!.value!)],
  ])("and %s is not believed", async (name, reason, alter) => {
    expect((await told(() => {}))?.pendingWrites).toHaveLength(6);
    if (name === "makes up what was sent") {
      // What the parent's tasks sent was done: this checkpoint's format has what is left of it.
      const parent = {
        configurable: { thread_id: mine.thread, checkpoint_ns: "", checkpoint_id: "1" },
      };
      await saver.putWrites(parent, [["__pregel_tasks", "sent"]], "a", "~a");
      await refuses(() => told(alter), "NOT_AUTHENTIC", /it was told what its parent sent/);
      await refuses(
        () => told((it) => it.pendingSends.push({ ...it.blobs[0]!.value!, type: "json" })),
        reason,
      );
      return;
    }
    await refuses(() => told(alter), reason);
  });

  it("and tells more of a history than belongs to it is not believed", async () => {
    const transport = createConnectTransport({ baseUrl: server.url, httpVersion: "1.1" });
    const client = createClient(ThreadService, transport);
    const channels = ["secret"];
    const at = (checkpointId: string) => ({
      ...{ threadId: mine.thread, checkpointId, channels, withSeals: true },
    });
    const config = asked("2");
    const metadata = { source: "loop", step: 3, parents: {} } as const;
    const channel_versions = versions(3.5);
    const last = { ...emptyCheckpoint(), id: "3", channel_versions };
    await saver.put(config, last, metadata, { secret: 3.5 });
    // Behind the value that it ends with, what the checkpoint before it was rebuilt from.
    const lying: Transport = {
      ...transport,
      async stream(...request) {
        const answer = await transport.stream(...request);
        async function* longer() {
          yield* answer.message as AsyncIterable<GetChannelHistoryResponse>;
          for await (const message of client.getChannelHistory(at("2"))) {
            if (message.checkpointId === "1") yield message;
          }
        }
        return { ...answer, message: longer() as never };
      },
    };
    const reader = new ConnectSaver(lying, { encryption: { keys } });
    const told = await reader.getDeltaChannelHistory({ config: asked("3"), channels });
    expect(told).toEqual({ secret: { writes: [], seed: `${mine.thread} 2` } });
    await reader.end();
  });

  it("and answers with an older checkpoint than was named is not believed", async () => {
    const older = await told(() => {}, asked("1"));
    expect(older?.checkpoint.id).toBe("1");
    const client = createClient(
      CheckpointService,
      createConnectTransport({ baseUrl: server.url, httpVersion: "1.1" }),
    );
    const { tuple } = await client.getTuple({ threadId: mine.thread, checkpointId: "1" });
    await refuses(
      () => told((it) => Object.assign(it, tuple), asked("2")),
      "NOT_AUTHENTIC",
      /it is another one than was asked for/,
    );
  });
});

describe("the history of a delta channel", () => {
  const history = (checkpoint_id?: string) =>
    saver.getDeltaChannelHistory({
      config: { configurable: { thread_id: mine.thread, checkpoint_ns: "", checkpoint_id } },
      channels: ["delta"],
    });
  const ofLast = () => history("3");

  beforeEach(async () => {
    const config = {
      configurable: { thread_id: mine.thread, checkpoint_ns: "", checkpoint_id: "2" },
    };
    const metadata = { source: "loop", step: 3, parents: {} } as const;
    const channel_versions = versions(3.5);
    await saver.put(config, { ...emptyCheckpoint(), id: "3", channel_versions }, metadata, {
      delta: 3.5,
    });
  });

  it("is that of the ancestors", async () => {
    for (const told of [await ofLast(), await history()]) {
      const writes = ["1", "2"].flatMap((id) =>
        ["a", "b"].flatMap((task) => [0, 1].map((i) => [task, "delta", `${id} ${task} ${i}`])),
      );
      expect(told).toEqual({ delta: { writes } });
    }
  });

  it("is refused where the nearest value it builds on was removed", async () => {
    const id = { thread_id: mine.thread, checkpoint_ns: "", checkpoint_id: "3" };
    const read = () =>
      saver.getDeltaChannelHistory({ config: { configurable: id }, channels: ["secret"] });
    expect(await read()).toEqual({ secret: { writes: [], seed: `${mine.thread} 2` } });
    await attack(`delete from checkpoint_blobs where ${blobOf("secret")}`);
    await refuses(read, "WITHHELD", /checkpoint 2 .+ its value of channel "secret" is missing/);
  });

  const forked = (id: string) =>
    `insert into checkpoints select thread_id, checkpoint_ns, '${id}', '1', type, checkpoint, metadata
     from checkpoints where ${rowOf("2")}`;
  it.each<[string, EncryptionReason, string]>([
    [
      "another parent",
      "NOT_AUTHENTIC",
      `update checkpoints set parent_checkpoint_id = '1' where ${rowOf("3")}`,
    ],
    [
      "no parent",
      "WITHHELD",
      `update checkpoints set parent_checkpoint_id = null where ${rowOf("3")}`,
    ],
    ["an ancestor removed", "WITHHELD", `delete from checkpoints where ${rowOf("1")}`],
    [
      "an ancestor put in between",
      "NOT_AUTHENTIC",
      `${forked("2x")}; update checkpoints set parent_checkpoint_id = '2x' where ${rowOf("3")}`,
    ],
    ["a write altered", "NOT_AUTHENTIC", setWrite(flip)],
    ["a write moved", "NOT_AUTHENTIC", moveWrite(writeOf("a", 0), writeOf("a", 0, "1"))],
    ["a write planted", "PLAINTEXT", setWrite(plain("planted"))],
    [
      "a seed planted in the JSON",
      "WITHHELD",
      setJson(`jsonb_set(checkpoint, '{channel_values}', '{"delta":["planted"]}')`),
    ],
    [
      "a seed planted as a value",
      "PLAINTEXT",
      `insert into checkpoint_blobs values ($mine, '', 'delta', '2.5', 'json', '[]')
       on conflict (thread_id, checkpoint_ns, channel, version) do update set type = 'json', blob = '[]'`,
    ],
    ["a seal removed", "PLAINTEXT", setJson("checkpoint - 'checkpointd_seal'")],
    [
      "the target's seal removed",
      "PLAINTEXT",
      setJson("checkpoint - 'checkpointd_seal'", rowOf("3")),
    ],
  ])("is refused with %s", async (_, reason, text) => {
    await attack(text);
    await refuses(ofLast, reason);
  });
});

describe("is refused", () => {
  it("a history of a checkpoint that was read, and is not there any more", async () => {
    const id = { thread_id: mine.thread, checkpoint_ns: "", checkpoint_id: "2" };
    const options = { config: { configurable: id }, channels: ["delta"] };
    await saver.getTuple(options.config);
    await attack(`delete from checkpoints where ${rowOf()}`);
    await refuses(() => saver.getDeltaChannelHistory(options), "WITHHELD");
    const unknown = { configurable: { ...id, checkpoint_id: "9" } };
    const told = await saver.getDeltaChannelHistory({ ...options, config: unknown });
    expect(told).toEqual({ delta: { writes: [] } });
  });
});

describe("is not told by what is stored", () => {
  const latest = async () => (await reads.getTuple())?.checkpoint.id;

  it("that the latest checkpoints are gone", async () => {
    await attack(`delete from checkpoints where ${rowOf("2")}`);
    expect(await latest()).toBe("1");
  });

  it("that writes are gone", async () => {
    await attack(`delete from checkpoint_writes where ${rowOf("2")} and task_id = 'a'`);
    expect((await reads.getTuple())?.pendingWrites).toHaveLength(3);
  });

  it("that a write is the one that was stored there before", async () => {
    const before = await pool.query(
      `select blob from checkpoint_writes where ${writeOf("a", -4).replace("$mine", "$1")}`,
      [mine.thread],
    );
    const config = {
      configurable: { thread_id: mine.thread, checkpoint_ns: "", checkpoint_id: "2" },
    };
    await saver.putWrites(config, [["__resume__", "another answer"]], "a", "~a");
    await attack(
      `update checkpoint_writes set blob = '\\x${before.rows[0].blob.toString("hex")}'
       where ${writeOf("a", -4)}`,
    );
    const told = (await reads.getTuple())?.pendingWrites?.filter(([task]) => task === "a");
    expect(told?.map(([, , value]) => value)).toContain("2 a");
  });

  it("what is readable beside it was altered, which the agent does not go by", async () => {
    await attack(
      `update checkpoints set metadata = '{"step": 99}',
         checkpoint = jsonb_set(checkpoint, '{versions_seen}', '{"node":{"secret":2.5}}'),
         parent_checkpoint_id = null
       where ${rowOf()}`,
    );
    const told = await reads.getTuple();
    expect(told?.metadata).toEqual({ source: "loop", step: 1, parents: {} });
    expect(told?.checkpoint.versions_seen).toEqual({});
    expect(told?.parentConfig?.configurable?.checkpoint_id).toBe("1");
  });
});
