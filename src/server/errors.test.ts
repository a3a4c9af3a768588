/** What clients are told of real trouble with the database: the mapping of errors. */

import { setTimeout as sleep } from "node:timers/promises";
import { durationMs } from "@bufbuild/protobuf/wkt";
import { Code, type ConnectError } from "@connectrpc/connect";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { type ErrorDetail, ErrorDetailSchema } from "../../gen/checkpointd/v1/checkpoint_pb.js";
import type { ErrorReason } from "../errors.js";
import { block, untilBlocked } from "../testing/blocking.js";
import {
  expectHarmless,
  expectSameWords,
  expectTold,
  failureOf,
  post,
  protocols,
  secret,
  startEdge,
  ways,
} from "../testing/edge.js";

const seed = { threadId: `${secret}-seed`, checkpointId: "1" };
const putSeed = { ...seed, checkpointJson: `{"v":4,"changed":true}` };

/** What the detail says about a retry, in milliseconds. */
const retryMsOf = ({ retryDelay }: ErrorDetail) => retryDelay && durationMs(retryDelay);

describe("errors of Postgres", () => {
  let edge: Awaited<ReturnType<typeof startEdge>>;
  beforeAll(async () => {
    edge = await startEdge();
    // Raises what the table `trouble` names, as often as it says. A sequence counts the tries
    // because it is not rolled back.
    await edge.sql.query(`
      create table trouble (errcode text, times int);
      create sequence tries;
      create function make_trouble() returns trigger language plpgsql as $$
      declare t trouble;
      begin
        select * into t from trouble;
        if found and nextval('tries') <= t.times then
          raise exception using errcode = t.errcode,
            message = 'insert into checkpoints failed', detail = new.thread_id,
            hint = new.checkpoint::text;
        end if;
        return new;
      end $$;
      create trigger trouble before insert on checkpoints
        for each row execute function make_trouble()`);
  });
  beforeEach(async () => {
    await edge.sql.query(`truncate trouble; alter sequence tries restart`);
  });
  afterAll(async () => {
    expect(edge.captured.text()).not.toContain(secret);
    expect(edge.captured.text()).not.toContain("changed");
    await edge.stop();
  });

  const raise = (errcode: string, times: number) =>
    edge.sql.query("insert into trouble values ($1, $2)", [errcode, times]);
  const tries = async (): Promise<number> =>
    Number((await edge.sql.query("select last_value from tries")).rows[0].last_value);

  const unavailable = "DATABASE_UNAVAILABLE";
  // Code, reason, milliseconds to wait before a retry.
  const mapping: [string, string, Code, ErrorReason?, number?][] = [
    ["serialization_failure", "40001", Code.Aborted, "CONFLICT", 50],
    ["deadlock_detected", "40P01", Code.Aborted, "CONFLICT", 50],
    ["connection_exception", "08000", Code.Unavailable, unavailable, 500],
    ["connection_failure", "08006", Code.Unavailable, unavailable, 500],
    ["protocol_violation", "08P01", Code.Unavailable, unavailable, 500],
    ["disk_full", "53100", Code.Unavailable, "DISK_FULL", 5000],
    ["out_of_memory", "53200", Code.Unavailable, "OUT_OF_RESOURCES", 1000],
    ["configuration_limit_exceeded", "53400", Code.Unavailable, "OUT_OF_RESOURCES", 1000],
    ["too_many_connections", "53300", Code.Unavailable, "TOO_MANY_CONNECTIONS", 1000],
    ["admin_shutdown", "57P01", Code.Unavailable, "SHUTTING_DOWN", 100],
    ["crash_shutdown", "57P02", Code.Unavailable, "SHUTTING_DOWN", 100],
    ["cannot_connect_now", "57P03", Code.Unavailable, "STARTING_UP", 500],
    ["database_dropped", "57P04", Code.Unavailable, unavailable, 500],
    ["idle_session_timeout", "57P05", Code.Unavailable, unavailable, 500],
    ["invalid_catalog_name", "3D000", Code.Unavailable, unavailable, 500],
    ["read_only_sql_transaction", "25006", Code.Unavailable, "READ_ONLY", 500],
    ["query_canceled", "57014", Code.DeadlineExceeded, "STATEMENT_TIMEOUT", 1000],
    ["transaction_timeout", "25P04", Code.DeadlineExceeded, "STATEMENT_TIMEOUT", 1000],
    ["lock_not_available", "55P03", Code.Aborted, "LOCK_TIMEOUT", 500],
    ["invalid_password", "28P01", Code.Unavailable, "ACCESS_DENIED", 5000],
    ["invalid_authorization_specification", "28000", Code.Unavailable, "ACCESS_DENIED", 5000],
    ["insufficient_privilege", "42501", Code.Internal, "PRIVILEGE_MISSING"],
    ["undefined_table", "42P01", Code.Unavailable, "SCHEMA_OLD", 1000],
    ["undefined_column", "42703", Code.Unavailable, "SCHEMA_OLD", 1000],
    ["invalid_schema_name", "3F000", Code.Unavailable, "SCHEMA_OLD", 1000],
    ["invalid_column_reference", "42P10", Code.Unavailable, "SCHEMA_OLD", 1000],
    ["invalid_sql_statement_name", "26000", Code.Unavailable, "POOLER", 250],
    ["duplicate_prepared_statement", "42P05", Code.Unavailable, "POOLER", 250],
    ["check_violation", "23514", Code.Internal],
    ["internal_error", "XX000", Code.Internal],
    ["data_corrupted", "XX001", Code.DataLoss, "DATA_CORRUPTED"],
    ["index_corrupted", "XX002", Code.DataLoss, "DATA_CORRUPTED"],
  ];
  for (const [name, errcode, code, reason, delayMs] of mapping) {
    test(`${errcode} ${name} is ${Code[code]} on every way`, async () => {
      await raise(errcode, 1_000_000);
      const before = await edge.rowCounts();
      const errors = [];
      for (const way of ways) {
        const error = await failureOf(edge.clients[way].put(putSeed));
        expect(Code[error.code]).toBe(Code[code]);
        expectHarmless(error.rawMessage);
        const details = error.findDetails(ErrorDetailSchema);
        expect(details.map((detail) => detail.reason)).toEqual(
          reason === undefined ? [] : [reason],
        );
        expect(details.map((detail) => retryMsOf(detail))).toEqual(reason ? [delayMs] : []);
        if (reason !== unavailable) expect(error.rawMessage).not.toMatch(/cannot be reached/);
        errors.push(error);
      }
      expectSameWords(errors);
      expect(await edge.rowCounts()).toBe(before);
    });
  }

  test("what failed is in the log by the request id, without what was sent", async () => {
    await raise("XX000", ways.length);
    for (const way of ways) {
      const error = await failureOf(edge.clients[way].put(putSeed));
      const requestId = error.metadata.get("x-request-id");
      expect(edge.captured.lines({ requestId })).toMatchObject([
        { code: "Internal", error: { code: "XX000", message: "insert into checkpoints failed" } },
      ]);
    }
    expect(edge.captured.text()).not.toContain("hint");
  });

  for (const errcode of ["40001", "40P01"]) {
    test(`${errcode} is tried again, four times`, async () => {
      await raise(errcode, 4);
      await edge.clients.connect.put(putSeed);
      expect(await tries()).toBe(5);
    });

    test(`${errcode} the fifth time is given up`, async () => {
      await raise(errcode, 5);
      expect((await failureOf(edge.clients.connect.put(putSeed))).code).toBe(Code.Aborted);
      expect(await tries()).toBe(5);
    });
  }

  test("what is no conflict is not tried again", async () => {
    await raise("57P01", 2);
    expect((await failureOf(edge.clients.connect.put(putSeed))).code).toBe(Code.Unavailable);
    expect(await tries()).toBe(1);
  });
});

describe("other sessions", () => {
  let edge: Awaited<ReturnType<typeof startEdge>>;
  beforeEach(async () => {
    edge = await startEdge({ poolSize: 2 });
  });
  afterEach(() => edge.stop());

  const lockSeed = () =>
    block(edge.database.url, "select from checkpoints where checkpoint_id = '1' for update");
  const changed = async () =>
    (await edge.clients.grpc.getTuple(seed)).tuple?.checkpointJson.includes("changed");

  test("a query that someone else cancels is run again", async () => {
    const lock = await lockSeed();
    const put = edge.clients.connect.put(putSeed);
    for (let i = 0; i < 3; i++) {
      const [pid] = await untilBlocked(edge.sql, 1);
      // Postgres may take the request after the wait has ended, when it concerns nobody.
      await edge.sql.query("select pg_cancel_backend($1)", [pid]);
      await untilBlocked(edge.sql, 1);
    }
    await lock.release();
    await put;
    expect(await changed()).toBe(true);
  });

  test("a query that someone else cancels again and again is given up", async () => {
    const lock = await lockSeed();
    let told: ConnectError | undefined;
    void failureOf(edge.clients.connect.put(putSeed)).then((error) => {
      told = error;
    });
    const cancel = `select pg_cancel_backend(pid) from pg_stat_activity
      where datname = current_database() and application_name = 'checkpointd'
        and state = 'active' and wait_event_type = 'Lock'`;
    while (told === undefined) {
      await edge.sql.query(cancel);
      await sleep(10);
    }
    expectTold(told, { code: Code.Aborted, reason: "STATEMENT_CANCELLED" });
    await lock.release();
  });

  test("a connection that is terminated is UNAVAILABLE, and the next call gets a new one", async () => {
    const lock = await lockSeed();
    const failure = failureOf(edge.clients.connect.put(putSeed));
    const [pid] = await untilBlocked(edge.sql, 1);
    await edge.sql.query("select pg_terminate_backend($1)", [pid]);
    expectTold(await failure, { code: Code.Unavailable, reason: "DATABASE_UNAVAILABLE" });
    await lock.release();
    expect(await changed()).toBe(false);
    await edge.clients.connect.put(putSeed);
    expect(await changed()).toBe(true);
  });

  test("all connections terminated while idle go unnoticed", async () => {
    await Promise.all([edge.clients.grpc.getTuple(seed), edge.clients.connect.getTuple(seed)]);
    const terminate = `select pg_terminate_backend(pid) from pg_stat_activity
      where datname = current_database() and application_name = 'checkpointd'`;
    const { rowCount } = await edge.sql.query(terminate);
    expect(rowCount).toBeGreaterThan(0);
    // Gone from Postgres is not yet noticed here: one of the next calls may still fail so.
    const failures: ConnectError[] = [];
    for (let i = 0; i < 20; i++) {
      await edge.clients.grpc.getTuple(seed).catch((error) => void failures.push(error));
    }
    expect(failures.filter(({ code }) => code !== Code.Unavailable)).toEqual([]);
    expect((await edge.clients.grpc.getTuple(seed)).tuple).toBeDefined();
  });

  test("a deadlock is resolved by trying again", async () => {
    // The blocker never looks for deadlocks, the server's sessions do after two seconds.
    await edge.sql.query(`do $$ begin execute
      format('alter database %I set deadlock_timeout = ''2s''', current_database()); end $$`);
    await edge.sql.query(`select pg_terminate_backend(pid) from pg_stat_activity
      where datname = current_database() and application_name = 'checkpointd'`);
    for (let i = 0; i < 5; i++) await edge.clients.connect.getTuple(seed).catch(() => {});
    const other = await block(edge.database.url, "set local deadlock_timeout = '1h'");
    await other.query(`insert into checkpoint_blobs (thread_id, channel, version, type)
      values ('${seed.threadId}', 'd', '2', 'empty')`);
    // Holds the checkpoint's row and waits for the blob's key.
    const put = edge.clients.connect.put({ ...putSeed, blobs: [{ channel: "d", version: "2" }] });
    await untilBlocked(edge.sql, 1);
    const { rows } = await other.query(`update checkpoints set metadata = '{"other": 1}'
      where thread_id = '${seed.threadId}' returning checkpoint`);
    // It came through before the put did, which had lost and begun again.
    expect(JSON.stringify(rows)).not.toContain("changed");
    await other.release();
    await put;
    expect(await changed()).toBe(true);
    const { rows: deadlocks } = await edge.sql.query(
      "select deadlocks from pg_stat_database where datname = current_database()",
    );
    expect(Number(deadlocks[0].deadlocks)).toBeGreaterThan(0);
  });

  test("a serialization failure is resolved by trying again", async () => {
    await edge.sql.query(`do $$ begin execute
      format('alter database %I set default_transaction_isolation = ''repeatable read''',
        current_database()); end $$`);
    await edge.sql.query(`select pg_terminate_backend(pid) from pg_stat_activity
      where datname = current_database() and application_name = 'checkpointd'`);
    for (let i = 0; i < 5; i++) await edge.clients.connect.getTuple(seed).catch(() => {});
    const other = await block(
      edge.database.url,
      `update checkpoints set metadata = '{"other": 1}' where checkpoint_id = '1'`,
    );
    const put = edge.clients.connect.put(putSeed);
    await untilBlocked(edge.sql, 1);
    await other.release();
    await put;
    expect(await changed()).toBe(true);
  });

  test("a role that may not write is told so, without names", async () => {
    const role = `reader_${process.pid}`;
    await edge.sql.query(`create role ${role} login password 'x';
      grant select, insert, update, delete on all tables in schema public to ${role}`);
    const url = new URL(edge.database.url);
    url.username = role;
    url.password = "x";
    const reader = await startEdge({ databaseUrl: url.href, migrate: false });
    // Later: a server whose role could never write would not have become ready.
    await edge.sql.query(
      `revoke insert, update, delete on all tables in schema public from ${role}`,
    );
    const { tuple } = await reader.clients.connect.getTuple(seed);
    expect(tuple).toBeDefined();
    const error = await failureOf(reader.clients.connect.put(putSeed));
    expect({ code: error.code, message: error.rawMessage }).toEqual({
      code: Code.Internal,
      message:
        "the server's database role lacks a privilege; grant it what the documentation names",
    });
    expect(reader.captured.lines({ code: "Internal" })).toMatchObject([
      { error: { code: "42501" } },
    ]);
    await reader.stop();
    await edge.sql.query(`drop owned by ${role}; drop role ${role}`);
  });
});

describe("the queue for a connection", () => {
  const lockSeed = (url: string) =>
    block(url, "select from checkpoints where checkpoint_id = '1' for update");

  test("too many waiting: RESOURCE_EXHAUSTED with the limit, on every way", async () => {
    const edge = await startEdge({ poolSize: 1, queueLimit: 2 });
    const lock = await lockSeed(edge.database.url);
    const first = edge.clients.connect.put(putSeed);
    await untilBlocked(edge.sql, 1);
    // Three want the two places; the server's own look at the database may take one of them.
    const failures: Promise<unknown>[] = [];
    const queued = [1, 2, 3].map(() => {
      const call = edge.clients.connect.getTuple(seed);
      failures.push(call.then(() => new Promise(() => {})).catch((error) => error));
      return call.catch(() => {});
    });
    await Promise.race(failures);
    for (const way of ways) {
      const error = await failureOf(edge.clients[way].getTuple(seed));
      expectTold(error, { code: Code.ResourceExhausted, reason: "QUEUE_FULL", limit: 2 });
    }
    await lock.release();
    await Promise.all([first, ...queued]);
    expect((await edge.clients.connect.getTuple(seed)).tuple).toBeDefined();
    await edge.stop();
  });

  test("waiting too long: UNAVAILABLE, on every way", async () => {
    const edge = await startEdge({ poolSize: 1, queueTimeoutMs: 100 });
    const lock = await lockSeed(edge.database.url);
    const first = edge.clients.connect.put(putSeed);
    await untilBlocked(edge.sql, 1);
    for (const way of ways) {
      const error = await failureOf(edge.clients[way].getTuple(seed));
      expectTold(error, { code: Code.Unavailable, reason: "QUEUE_TIMEOUT", limit: 100 });
    }
    await lock.release();
    await first;
    await edge.stop();
  });
});

describe("the request id", () => {
  let edge: Awaited<ReturnType<typeof startEdge>>;
  beforeAll(async () => {
    edge = await startEdge();
  });
  afterAll(() => edge.stop());

  const ask = (id: string | undefined, threadId: string) =>
    post(edge.server.url, "GetTuple", JSON.stringify({ threadId }), {
      "content-type": "application/json",
      ...(id === undefined ? {} : { "x-request-id": id }),
    });

  for (const [name, threadId] of [
    ["an answer", "x"],
    ["an error", ""],
  ] as const) {
    test(`${name} carries the client's, and so does the log`, async () => {
      const id = `agent-7:${name.length}/a.b+c=d@e_f`;
      expect((await ask(id, threadId)).headers.get("x-request-id")).toBe(id);
      expect(edge.captured.lines({ requestId: id })).toMatchObject([
        { rpc: "checkpointd.v1.CheckpointService/GetTuple", ms: expect.any(Number) },
      ]);
    });

    test(`${name} without one carries one made here`, async () => {
      const ids = await Promise.all(
        [undefined, "", "two words", "x".repeat(129), '{"a":1}', "<b>"].map(async (id) =>
          (await ask(id, threadId)).headers.get("x-request-id"),
        ),
      );
      for (const id of ids) {
        expect(id).toMatch(/^[0-9a-f-]{36}$/);
        expect(edge.captured.lines({ requestId: id })).toHaveLength(1);
      }
      expect(new Set(ids).size).toBe(ids.length);
    });
  }

  test("it travels on every protocol, with streams and with their errors", async () => {
    for (const protocol of protocols) {
      const client = edge.clients[protocol];
      const ids: string[] = [];
      // A stream's error comes with the headers and with the trailers, which name it again.
      const add = (headers: Headers) =>
        void ids.push(...(headers.get("x-request-id") ?? "none").split(", "));
      const options = (id: string) => ({
        headers: { "x-request-id": `${protocol}-${id}` },
        onHeader: add,
      });
      await client.getTuple({ threadId: "x" }, options("unary"));
      for await (const _ of client.list({}, options("stream")));
      const unary = await failureOf(client.getTuple({}, options("unary-error")));
      const stream = await failureOf(
        (async () => {
          for await (const _ of client.list({ limit: -1 }, options("stream-error")));
        })(),
      );
      add(unary.metadata);
      add(stream.metadata);
      expect(new Set(ids)).toEqual(
        new Set(
          ["unary", "stream", "unary-error", "stream-error"].map((id) => `${protocol}-${id}`),
        ),
      );
      for (const id of new Set(ids)) {
        expect(edge.captured.lines({ requestId: id })).toHaveLength(1);
      }
    }
  });
});
