/** What encryption at the agent is for and what it must not break; for attacks see encryption_attacks. */
import { randomBytes } from "node:crypto";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { AIMessage, HumanMessage } from "@langchain/core/messages";
import {
  Annotation,
  Command,
  interrupt,
  MessagesAnnotation,
  Send,
  START,
  StateGraph,
} from "@langchain/langgraph";
import { emptyCheckpoint } from "@langchain/langgraph-checkpoint";
import { PostgresSaver } from "@langchain/langgraph-checkpoint-postgres";
import pg from "pg";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { Server } from "../server/server.js";
import { createDatabase, type TestDatabase } from "../testing/postgres.js";
import { startRelay } from "../testing/relay.js";
import { runCommand } from "../testing/serve_process.js";
import { startTestServer } from "../testing/test_server.js";
import type { EncryptionOptions } from "./encryption.js";
import { type KeySource, keyring } from "./encryption_keys.js";
import { recoverThreads } from "./recover.js";
import { ConnectSaver } from "./saver.js";

let database: TestDatabase;
let server: Server;
let pool: pg.Pool;
const savers: ConnectSaver[] = [];
beforeAll(async () => {
  database = await createDatabase();
  server = await startTestServer(database.url);
  pool = new pg.Pool({ connectionString: database.url, max: 2 });
});
afterAll(async () => {
  for (const saver of savers) await saver.end();
  await pool?.end();
  await server?.drain();
  await database?.drop();
});

const key = { old: randomBytes(32), new: randomBytes(32) };
const old = keyring("old", { old: key.old });
const both = keyring("new", { old: key.old, new: key.new });

function connect(encryption?: EncryptionOptions, more: object = {}): ConnectSaver {
  const saver = ConnectSaver.fromUrl(server.url, {
    ...(encryption ? { encryption } : {}),
    ...more,
  });
  savers.push(saver);
  return saver;
}

const inThread = (thread_id: string) => ({ configurable: { thread_id } });

const State = Annotation.Root({
  log: Annotation<string[]>({ reducer: (a, b) => [...a, ...b], default: () => [] }),
  secret: Annotation<string>(),
  flag: Annotation<boolean>(),
});
/** A state, a subgraph, sends, an interrupt and its answer, each with the word in it. */
function build(saver: ConnectSaver | PostgresSaver, word: string) {
  const inner = new StateGraph(State)
    .addNode("deep", () => ({ log: [`${word} deep`] }))
    .addEdge(START, "deep")
    .compile();
  return new StateGraph(State)
    .addNode("begin", () => ({ secret: `${word} secret`, flag: true, log: [`${word} begun`] }))
    .addNode("inner", inner)
    .addNode("each", (sent: typeof State.State) => ({ log: [`${sent.secret} each`] }))
    .addNode("ask", () => ({ log: [`${word} ${interrupt(`${word} question`)}`] }))
    .addEdge(START, "begin")
    .addConditionalEdges("begin", () => [
      new Send("each", { secret: `${word} sent` }),
      new Send("inner", {}),
      "ask",
    ])
    .compile({ checkpointer: saver as never });
}

const allRows = async () => {
  const rows = await Promise.all(
    ["checkpoints", "checkpoint_blobs", "checkpoint_writes"].map((table) =>
      pool.query(`select * from ${table}`),
    ),
  );
  return rows.flatMap((each) => each.rows as Record<string, unknown>[]);
};
/** Everything stored, as text; bytes by their characters. */
const allText = async () =>
  (await allRows())
    .flatMap((row) => Object.values(row))
    .map((value) => (Buffer.isBuffer(value) ? value.toString("latin1") : JSON.stringify(value)))
    .join("\n");

describe("what is stored", () => {
  it.each(["async", "sync", "exit"] as const)(
    "has nothing of the graph in it, %s",
    async (durability) => {
      const word = `word${randomBytes(6).toString("hex")}`;
      const saver = connect({ keys: old });
      const config = { ...inThread(`hidden ${durability}`), durability };
      const graph = build(saver, word);
      await graph.invoke({ log: [`${word} in`] }, config);
      const asked = await graph.getState(config);
      expect(asked.tasks.flatMap(({ interrupts }) => interrupts)[0]?.value).toBe(
        `${word} question`,
      );
      expect((await saver.threads.get(`hidden ${durability}`))?.status).toBe("interrupted");
      await graph.invoke(new Command({ resume: `${word} answer` }), config);
      const { values, next } = await graph.getState(config);
      expect(values).toMatchObject({ secret: `${word} secret`, flag: true });
      expect(values.log).toContain(`${word} sent each`);
      expect(values.log).toContain(`${word} deep`);
      expect(values.log).toContain(`${word} ${word} answer`);
      expect(next).toEqual([]);
      expect((await saver.threads.get(`hidden ${durability}`))?.status).toBe("completed");

      const text = await allText();
      expect(text).not.toContain(word);
      expect(text).not.toContain(Buffer.from(word).toString("base64").slice(0, 14));
      // What is documented as readable is.
      expect(text).toContain('"source":"loop"');
      expect(text).toContain("branch:to:");
      // And without encryption all of it is.
      await build(connect(), word).invoke({ log: [`${word} in`] }, inThread(`bare ${durability}`));
      expect(await allText()).toContain(`${word} question`);
      await saver.deleteThread(`bare ${durability}`);
    },
  );

  it("does not tell true from false, nor null from a short text, nor what serializer wrote it", async () => {
    const saver = connect({ keys: old });
    const values = { a: true, b: false, c: null, d: "yes", e: 17, f: new Uint8Array([1]) };
    const channel_versions = Object.fromEntries(Object.keys(values).map((name) => [name, 1]));
    const checkpoint = { ...emptyCheckpoint(), channel_values: values, channel_versions };
    const metadata = { source: "loop", step: 0, parents: {} } as const;
    await saver.put(inThread("alike"), checkpoint, metadata, channel_versions);
    const { rows } = await pool.query(
      "select distinct type, octet_length(blob) from checkpoint_blobs where thread_id = 'alike'",
    );
    expect(rows).toHaveLength(1);
    expect((await saver.getTuple(inThread("alike")))?.checkpoint.channel_values).toEqual(values);
  });

  it("is opaque to a direct saver, and refused by a saver without the keys", async () => {
    const config = inThread("opaque");
    await build(connect({ keys: old }), "w").invoke({ log: ["in"] }, config);
    const direct = PostgresSaver.fromConnString(database.url);
    await expect(direct.getTuple(config)).rejects.toThrow("aes256gcm");
    await direct.end();
    await expect(connect().getTuple(config)).rejects.toMatchObject({
      name: "EncryptionError",
      reason: "ENCRYPTED",
      message: expect.stringMatching(
        /of thread "opaque" is encrypted: give the saver its encryption/,
      ),
    });
    // What concerns threads as a whole needs no keys.
    expect((await connect().threads.get("opaque"))?.status).toBe("interrupted");
  });
});

describe("keys", () => {
  const config = inThread("rotated");

  it("are rotated: what the old one encrypted is read, what is new has the new one", async () => {
    await build(connect({ keys: old }), "w").invoke({ log: ["in"] }, config);
    const saver = connect({ keys: both });
    await build(saver, "w").invoke(new Command({ resume: "yes" }), config);
    const { values } = await build(saver, "w").getState(config);
    expect(values).toMatchObject({ secret: "w secret", flag: true });
    const { rows } = await pool.query(
      `select convert_from(substring(blob from 5 for 3), 'UTF8') as id, count(*)::int as n
       from checkpoint_blobs where thread_id = 'rotated' and type like 'aes256gcm%' group by 1 order by 1`,
    );
    expect(rows.map(({ id }) => id)).toEqual(["new", "old"]);
  });

  it("that are not there are named, and those of the same id that are others tell", async () => {
    const wrong = { old: randomBytes(32), new: randomBytes(32) };
    await expect(connect({ keys: old }).getTuple(config)).rejects.toMatchObject({
      reason: "KEY_UNKNOWN",
      message: 'a value is encrypted with the key "new", which encryption.keys does not know',
    });
    await expect(connect({ keys: keyring("new", wrong) }).getTuple(config)).rejects.toMatchObject({
      reason: "NOT_AUTHENTIC",
      message: expect.stringContaining('or the key "new" is another one'),
    });
  });

  it("may be a KMS's: wrapped in their ids, had once each, and its errors come through", async () => {
    const kms = { secret: randomBytes(32), calls: 0, isUp: true };
    const source = (): KeySource => {
      let current: Promise<{ id: string; key: Uint8Array }> | undefined;
      const call = async (data: Uint8Array) => {
        kms.calls++;
        await delay(1);
        if (!kms.isUp) throw new Error("the KMS is away");
        return Buffer.from(data.map((byte, i) => byte ^ (kms.secret[i] as number)));
      };
      return {
        current() {
          const plain = randomBytes(32);
          current ??= call(plain).then((it) => ({ id: it.toString("base64"), key: plain }));
          return current;
        },
        byId: (id) => call(Buffer.from(id, "base64")),
      };
    };
    const thread = inThread("kms");
    await build(connect({ keys: source() }), "w").invoke({ log: ["in"] }, thread);
    const reader = connect({ keys: source() });
    kms.calls = 0;
    await build(reader, "w").invoke(new Command({ resume: "yes" }), thread);
    for (let i = 0; i < 5; i++) await reader.getTuple(thread);
    // Its own data key, the one that it finds, and its own once more where it reads it.
    expect(kms.calls).toBe(3);
    kms.isUp = false;
    await expect(connect({ keys: source() }).getTuple(thread)).rejects.toThrow("the KMS is away");
    const put = connect({ keys: source() }).putWrites(
      { configurable: { thread_id: "kms", checkpoint_id: "1" } },
      [["a", 1]],
      "t",
    );
    await expect(put).rejects.toThrow("the KMS is away");
  });

  it.each([
    [
      () => keyring("k", { k: new Uint8Array(31) }),
      'the encryption key "k" must be a Uint8Array of 32 bytes',
    ],
    [() => keyring("k", { k: "0".repeat(32) as never }), "must be a Uint8Array of 32 bytes"],
    [() => keyring("k", { l: new Uint8Array(32) }), 'there is no key "k" among l'],
    [() => keyring("", { "": new Uint8Array(32) }), "must be a text of 1 to 1024 bytes"],
    [() => keyring("k", undefined as never), "the keys must be an object"],
    [() => connect({ keys: {} as never }), "encryption.keys must be what keyring(…) makes"],
    [() => connect({ key: old } as never), 'encryption has no option "key". Did you mean keys?'],
    [
      () => connect({ keys: old, acceptPlaintext: "yes" as never }),
      "encryption.acceptPlaintext must be",
    ],
    [
      () => connect({ keys: old, acceptCopies: 1 as never }),
      "encryption.acceptCopies must be true or",
    ],
    [() => connect(old as never), 'encryption has no option "current"'],
  ])("are checked (%#)", (make, says) => {
    expect(make).toThrow(TypeError);
    expect(make).toThrow(says);
  });

  it("of another length from a KMS are refused by their id", async () => {
    const keys: KeySource = {
      current: () => ({ id: "short", key: new Uint8Array(16) }),
      byId: () => undefined,
    };
    const put = connect({ keys }).put(
      inThread("short"),
      emptyCheckpoint(),
      { source: "loop", step: 0, parents: {} },
      {},
    );
    await expect(put).rejects.toThrow(
      'the encryption key "short" must be a Uint8Array of 32 bytes',
    );
  });
});

describe("plaintext", () => {
  it("of before is read while it is accepted, and refused after that", async () => {
    const config = inThread("migrated");
    await build(connect(), "w").invoke({ log: ["in"] }, config);
    const migrating = connect({ keys: old, acceptPlaintext: true });
    await expect(connect({ keys: old }).getTuple(config)).rejects.toMatchObject({
      reason: "PLAINTEXT",
      message: expect.stringContaining('of thread "migrated" was not read: it is not encrypted'),
    });
    const graph = build(migrating, "w");
    await graph.invoke(new Command({ resume: "yes" }), config);
    const { values } = await graph.getState(config);
    expect(values).toMatchObject({ secret: "w secret", flag: true });
    const states = [];
    for await (const state of graph.getStateHistory(config)) states.push(state.values);
    expect(states.length).toBeGreaterThan(2);
    // The last checkpoint names values that were stored before.
    await expect(connect({ keys: old }).getTuple(config)).rejects.toMatchObject({
      reason: "PLAINTEXT",
      message: expect.stringMatching(/its value of channel "\w+" is not encrypted/),
    });
    const page = await readFile(new URL("../../docs/security.md", import.meta.url), "utf8");
    const [, query = ""] = /```sql\n(.*?)```/s.exec(page) ?? [];
    expect((await pool.query(query)).rows).toEqual([{ thread_id: "migrated" }]);
  });

  it("that a direct saver stored on top of it is read with the rest, while it is accepted", async () => {
    const config = inThread("mixed");
    const saver = connect({ keys: old, acceptPlaintext: true });
    await build(connect({ keys: old }), "w").invoke({ log: ["in"] }, config);
    const latest = (await saver.getTuple(config))!;
    await connect().put(latest.config, { ...latest.checkpoint, id: "2" }, latest.metadata!, {});
    const told = await saver.getTuple(config);
    expect(told?.config.configurable?.checkpoint_id).toBe("2");
    expect(told?.checkpoint.channel_values).toEqual(latest.checkpoint.channel_values);
  });
});

describe("a copied thread", () => {
  const build2 = (saver: ConnectSaver) => build(saver, "w");

  it("is refused, and read and gone on with where copies are accepted", async () => {
    const saver = connect({ keys: old });
    await build2(saver).invoke({ log: ["in"] }, inThread("source"));
    await saver.threads.copy("source", "copy");
    await expect(saver.getTuple(inThread("copy"))).rejects.toMatchObject({
      reason: "COPIED",
      message: expect.stringContaining('thread "copy" was stored as "source": it is a copy'),
    });
    const asked: string[][] = [];
    const acceptCopies = (from: string, to: string) => {
      asked.push([from, to]);
      return from === "source" && to === "copy";
    };
    // Each by a saver that knows nothing of the thread yet.
    const accepting = () => connect({ keys: old, acceptCopies });
    const graph = build2(accepting());
    await graph.invoke(new Command({ resume: "yes" }), inThread("copy"));
    expect(asked).toContainEqual(["source", "copy"]);
    const first = accepting();
    const updated = await build2(first).updateState(inThread("copy"), { log: ["more"] }, "ask");
    expect((await accepting().getTuple(updated))?.parentConfig).toBeDefined();
    const { values } = await build2(accepting()).getState(inThread("copy"));
    expect(values.log).toContain("w yes");
    expect(values.log.at(-1)).toBe("more");
    const states = [];
    for await (const state of build2(accepting()).getStateHistory(inThread("copy"))) {
      states.push(state.values);
    }
    expect(states.length).toBeGreaterThan(3);
    // The source goes on by itself.
    await build2(saver).invoke(new Command({ resume: "no" }), inThread("source"));
    const { log } = (await build2(saver).getState(inThread("source"))).values;
    expect(log).toContain("w no");
    expect(log).not.toContain("more");
    // Another copy is not what was allowed.
    await saver.threads.copy("source", "third");
    await expect(accepting().getTuple(inThread("third"))).rejects.toMatchObject({
      reason: "COPIED",
    });
    // Nor is a copy's value the source's.
    await pool.query(
      `update checkpoint_blobs set blob = (select b.blob from checkpoint_blobs b
         where b.thread_id = 'copy' and b.channel = 'log' order by b.version desc limit 1)
       where thread_id = 'source' and channel = 'log'`,
    );
    await expect(saver.getTuple(inThread("source"))).rejects.toMatchObject({
      reason: "NOT_AUTHENTIC",
    });
  });

  it("takes writes of a process that did not read it, before and after the run that stored it", async () => {
    const saver = connect({ keys: old });
    const at = { thread_id: "origin", checkpoint_ns: "", checkpoint_id: "1" };
    const metadata = { source: "loop", step: 0, parents: {} } as const;
    await saver.put(inThread("origin"), { ...emptyCheckpoint(), id: "1" }, metadata, {});
    await saver.threads.copy("origin", "other");
    const accepting = () => connect({ keys: old, acceptCopies: true });
    const copy = { ...at, thread_id: "other" };
    await accepting().putWrites({ configurable: copy }, [["a", 1]], "known");
    // LangGraph's writes may come before their checkpoint.
    const next = { configurable: { ...copy, checkpoint_id: "2" } };
    await accepting().putWrites(next, [["a", 2]], "early");
    await accepting().put({ configurable: copy }, { ...emptyCheckpoint(), id: "2" }, metadata, {});
    const child = { configurable: { ...copy, checkpoint_ns: "child", checkpoint_id: "3" } };
    await accepting().putWrites(child, [["a", 3]], "first");
    const inChild = { configurable: { thread_id: "other", checkpoint_ns: "child" } };
    await accepting().put(inChild, { ...emptyCheckpoint(), id: "3" }, metadata, {});
    for (const [config, value] of [
      [{ configurable: copy }, 1],
      [next, 2],
      [child, 3],
    ] as const) {
      const told = await accepting().getTuple(config);
      expect(told?.pendingWrites?.map(([, , written]) => written)).toEqual([value]);
    }
  });

  it("is exported and imported; under its own name without more ado", async () => {
    const folder = await mkdtemp(path.join(tmpdir(), "checkpointd-encrypted-"));
    const file = path.join(folder, "thread.jsonl");
    const saver = connect({ keys: old });
    const config = inThread("exported");
    const graph = build2(saver);
    await graph.invoke({ log: ["in"] }, config);
    const before = await graph.getState(config);
    const run = (...args: string[]) => runCommand(["threads", ...args, "--url", server.url]);
    expect((await run("export", "exported", "--out", file)).stderr).toBe("");
    await saver.deleteThread("exported");
    expect((await run("import", file)).stderr).toBe("");
    const told = await build2(connect({ keys: old })).getState(config);
    expect(JSON.stringify(told)).toBe(JSON.stringify(before));
    expect((await run("import", file, "--as", "renamed")).stderr).toBe("");
    await expect(saver.getTuple(inThread("renamed"))).rejects.toMatchObject({ reason: "COPIED" });
    const accepting = connect({ keys: old, acceptCopies: true });
    expect((await build2(accepting).getState(inThread("renamed"))).values).toEqual(before.values);
    await rm(folder, { recursive: true });
  });
});

describe("the command line", () => {
  it("shows with which key values are encrypted", async () => {
    await build(connect({ keys: old }), "w").invoke({ log: ["in"] }, inThread("shown"));
    const run = async (...args: string[]) => {
      const { code, stdout } = await runCommand(["threads", ...args, "--url", server.url]);
      expect(code).toBe(0);
      return stdout;
    };
    const shown = await run("show", "shown");
    expect(shown).toMatch(/ {2}secret: <encrypted with key "old", \d+ B>/);
    expect(shown).toMatch(/__interrupt__: <encrypted with key "old", \d+ B>/);
    expect(await run("history", "shown")).toContain('<encrypted with key "old"');
    const { checkpoint } = JSON.parse(await run("show", "shown", "--json"));
    expect(checkpoint.values.secret).toMatchObject({
      type: "aes256gcm",
      reason: 'encrypted with key "old"',
    });
    expect(await run("ls", "--json", "--prefix", "shown")).toContain('"status":"interrupted"');
  });
});

describe("recovery", () => {
  it("resumes what was left, under a lease that fences the writes", async () => {
    const encryption = { keys: old };
    const saver = connect(encryption, { graph: "encrypted" });
    const Chat = MessagesAnnotation;
    const graphOf = (on: ConnectSaver, fails: boolean) =>
      new StateGraph(Chat)
        .addNode("one", () => ({ messages: [new AIMessage("one ".repeat(10_000))] }))
        .addNode("two", async () => {
          if (fails) await new Promise(() => {});
          return { messages: [new AIMessage("two")] };
        })
        .addEdge(START, "one")
        .addEdge("one", "two")
        .compile({ checkpointer: on });
    const run = graphOf(saver, true).invoke(
      { messages: [new HumanMessage("in")] },
      { ...inThread("left"), durability: "sync" },
    );
    run.catch(() => {});
    await expect.poll(async () => (await saver.threads.get("left"))?.pendingNodes).toEqual(["two"]);
    const other = connect(encryption, { graph: "encrypted" });
    const recovered: string[] = [];
    const summary = await recoverThreads(other, graphOf(other, false), {
      owner: "test",
      graceMs: 0,
      onRecovered: ({ threadId }: { threadId: string }) => recovered.push(threadId),
    } as never);
    expect(summary).toMatchObject({ resumed: 1, failed: 0 });
    const { values, next } = await graphOf(other, false).getState(inThread("left"));
    expect(
      values.messages.map(({ content }: { content: unknown }) => String(content).slice(0, 3)),
    ).toEqual(["in", "one", "two"]);
    expect(next).toEqual([]);
  });
});

describe("a chat that grows", () => {
  const text = () => randomBytes(3_000).toString("base64");
  async function sent(encryption: EncryptionOptions | undefined, more: object = {}) {
    const relay = await startRelay(() => Number(new URL(server.url).port));
    const saver = ConnectSaver.fromUrl(relay.url, {
      ...(encryption ? { encryption } : {}),
      ...more,
    });
    const thread = `chat ${Math.random()}`;
    const graph = new StateGraph(MessagesAnnotation)
      .addNode("say", () => ({ messages: [new AIMessage(text())] }))
      .addEdge(START, "say")
      .compile({ checkpointer: saver });
    const said: unknown[] = [];
    let values: typeof MessagesAnnotation.State | undefined;
    for (let turn = 0; turn < 20; turn++) {
      values = await graph.invoke({ messages: [new HumanMessage(text())] }, inThread(thread));
    }
    said.push(...(values?.messages ?? []).map(({ content }) => content));
    const bytes = relay.bytes().in;
    // Read by a saver that has not seen it grow.
    const reader = connect(encryption);
    const told = (await reader.getTuple(inThread(thread)))?.checkpoint.channel_values;
    const messages = told?.messages as (typeof MessagesAnnotation.State)["messages"];
    expect(messages.map(({ content }) => content)).toEqual(said);
    const states = [];
    for await (const { checkpoint } of reader.list(inThread(thread))) {
      states.push((checkpoint.channel_values.messages as unknown[] | undefined)?.length ?? 0);
    }
    expect(Math.max(...states)).toBe(40);
    await saver.end();
    await relay.close();
    return bytes;
  }

  it("is sent as little more than what it grows by", async () => {
    const [plain, encrypted, whole] = [
      await sent(undefined),
      await sent({ keys: old }),
      await sent({ keys: old }, { valueCacheBytes: 0 }),
    ];
    expect(encrypted).toBeLessThan(2.5 * plain);
    expect(encrypted).toBeLessThan(whole / 4);
  });
});
