/**
 * LangGraph's own suites over every transport and in both kinds of schema, though not every
 * transport in every schema: how a call travels knows nothing of the schema, and which statements
 * it becomes depends only on whether it is an operation of a session or a call of its own. Each
 * schema has both.
 */
import { deltaChannelHistoryTests, specTest } from "@langchain/langgraph-checkpoint-validation";
import pg from "pg";
import {
  afterAll,
  afterEach,
  beforeAll,
  beforeEach,
  describe,
  expect,
  it,
  type RunnerTask,
  test,
} from "vitest";
import type { Server } from "../server/server.js";
import { createDatabase, type TestDatabase } from "../testing/postgres.js";
import { startTestServer } from "../testing/test_server.js";
import { keyring } from "./encryption_keys.js";
import { ConnectSaver, type ConnectSaverUrlOptions } from "./saver.js";

// The suites take vitest's functions from the global scope, and skip cases by the saver's name.
// A case that is skipped fails the file here.
const strict = <T extends object>(target: T) =>
  new Proxy(target, {
    get(of, key) {
      if (key === "skip" || key === "skipIf" || key === "todo")
        throw new Error("a case is skipped");
      return Reflect.get(of, key);
    },
  });
Object.assign(globalThis, { afterAll, afterEach, beforeAll, beforeEach, expect });
Object.assign(globalThis, { describe: strict(describe), it: strict(it), test: strict(test) });

const session: ConnectSaverUrlOptions = {};
const encryption = { keys: keyring("k", { k: new Uint8Array(32) }) };
/** The suites compare metadata with what was put, so a graph's name must not show in it. */
const graph = "the suites' graph";
const sets: Record<string, Record<string, ConnectSaverUrlOptions>> = {
  public: {
    "a session": session,
    "a session, encrypted": { encryption },
    "Connect JSON": { protocol: "connect", json: true },
    "gRPC-Web": { protocol: "grpc-web" },
  },
  "agents of Team-1": {
    "a session": session,
    "Connect binary": { protocol: "connect", session: false, graph },
    gRPC: { protocol: "grpc" },
  },
};

let database: TestDatabase;
let client: pg.Client;
beforeAll(async () => {
  database = await createDatabase();
  client = new pg.Client({ connectionString: database.url });
  await client.connect();
});
afterAll(async () => {
  await client?.end();
  await database?.drop();
});

describe.each(Object.entries(sets))("schema %s", (schema, transports) => {
  let server: Server;
  beforeAll(async () => {
    server = await startTestServer(database.url, { schema });
  });
  afterAll(() => server?.drain());

  describe.each(Object.entries(transports))("over %s", (transport, options) => {
    const initializer = {
      checkpointerName: `ConnectSaver over ${transport} on ${schema}`,
      createCheckpointer: () => ConnectSaver.fromUrl(server.url, options),
      async destroyCheckpointer(saver: ConnectSaver) {
        await saver.end();
        // Some cases list without a thread, so each set of cases begins with empty tables.
        for (const table of ["checkpoints", "checkpoint_blobs", "checkpoint_writes"]) {
          await client.query(`DELETE FROM ${client.escapeIdentifier(schema)}.${table}`);
        }
      },
    };
    specTest(initializer);
    deltaChannelHistoryTests(initializer);
  });
});

test("every case of both suites ran in each set, and passed", ({ task }) => {
  const cases = task.file.tasks.flatMap(casesOf).filter((found) => found !== task);
  expect(cases.filter(({ mode }) => mode !== "run")).toEqual([]);
  expect(cases.filter(({ result }) => result?.state !== "pass").map(({ name }) => name)).toEqual(
    [],
  );
  const counts = new Map<string, number>();
  for (const found of cases) {
    const set = suiteNames(found).find((name) => name.includes("#")) ?? "no set of cases";
    counts.set(set, (counts.get(set) ?? 0) + 1);
  }
  // The numbers of langgraph-checkpoint-validation 1.1.1: a suite that is not wired, or lost
  // its cases with an update, must not pass for one that succeeds.
  const wanted = {
    put: 22,
    putWrites: 6,
    getTuple: 40,
    list: 649,
    deleteThread: 1,
    getDeltaChannelHistory: 8,
  };
  expect(Object.fromEntries(counts)).toEqual(
    Object.fromEntries(
      Object.entries(sets).flatMap(([schema, transports]) =>
        Object.keys(transports).flatMap((transport) =>
          Object.entries(wanted).map(([set, count]) => [
            `ConnectSaver over ${transport} on ${schema}#${set}`,
            count,
          ]),
        ),
      ),
    ),
  );
});

function casesOf(task: RunnerTask): RunnerTask[] {
  return task.type === "suite" ? task.tasks.flatMap(casesOf) : [task];
}

function suiteNames(task: RunnerTask): string[] {
  return task.suite ? [...suiteNames(task.suite), task.suite.name] : [];
}
