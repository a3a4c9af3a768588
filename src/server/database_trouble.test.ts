/** What clients are told of a database that answers but cannot be used: provoked in Postgres. */
import { durationMs } from "@bufbuild/protobuf/wkt";
import { Code, type ConnectError } from "@connectrpc/connect";
import { afterEach, beforeEach, expect, onTestFinished, test } from "vitest";
import { ErrorDetailSchema } from "../../gen/checkpointd/v1/checkpoint_pb.js";
import type { ErrorReason } from "../errors.js";
import { block, untilBlocked } from "../testing/blocking.js";
import {
  expectSameWords,
  expectTold,
  failureOf,
  secret,
  startEdge,
  ways,
} from "../testing/edge.js";

const seed = { threadId: `${secret}-seed`, checkpointId: "1" };
const putSeed = { ...seed, checkpointJson: "{}" };

let edge: Awaited<ReturnType<typeof startEdge>>;
beforeEach(async () => {
  edge = await startEdge({ poolSize: 2 });
});
afterEach(() => edge.stop());

/** Sets a parameter for the connections that the server opens from now on. */
async function setForAll(parameter: string, value: string): Promise<void> {
  await edge.sql.query(`do $$ begin execute format(
    'alter database %I set ${parameter} = ''${value}''', current_database()); end $$`);
  await edge.sql.query(terminate);
}
const terminate = `select pg_terminate_backend(pid) from pg_stat_activity
  where datname = current_database() and application_name = 'checkpointd'`;

type Edge = typeof edge;
const put = (way: (typeof ways)[number], on: Edge = edge) =>
  failureOf(on.clients[way].put(putSeed));

/** Calls on every way until it is told what happened. */
async function expectToldOnEveryWay(
  call: (way: (typeof ways)[number]) => Promise<ConnectError>,
  code: Code,
  reason: ErrorReason,
  retryMs: number | undefined,
): Promise<void> {
  const errors: ConnectError[] = [];
  for (const way of ways) {
    let error!: ConnectError;
    const reasonNow = async () => {
      error = await call(way);
      return error.findDetails(ErrorDetailSchema)[0]?.reason;
    };
    // A connection that was terminated may be noticed late, by the call that gets it.
    await expect.poll(reasonNow, { timeout: 20_000 }).toBe(reason);
    expectTold(error, { code, reason });
    const [detail] = error.findDetails(ErrorDetailSchema);
    expect(detail?.retryDelay && durationMs(detail.retryDelay)).toBe(retryMs);
    expect(error.rawMessage).not.toMatch(/reached/);
    const isCall = !way.startsWith("session");
    const retryAfter = retryMs === undefined ? null : `${Math.ceil(retryMs / 1000)}`;
    if (isCall) expect(error.metadata.get("retry-after")).toBe(retryAfter);
    errors.push(error);
  }
  expectSameWords(errors);
}

test("statement_timeout", async () => {
  await setForAll("statement_timeout", "300ms");
  const lock = await block(edge.database.url, "set local statement_timeout = 0");
  onTestFinished(() => lock.release());
  await lock.query("select from checkpoints where checkpoint_id = '1' for update");
  await expectToldOnEveryWay(put, Code.DeadlineExceeded, "STATEMENT_TIMEOUT", 1000);
  await lock.release();
});

test("lock_timeout", async () => {
  await setForAll("lock_timeout", "200ms");
  const lock = await block(
    edge.database.url,
    "select from checkpoints where checkpoint_id = '1' for update",
  );
  onTestFinished(() => lock.release());
  await expectToldOnEveryWay(put, Code.Aborted, "LOCK_TIMEOUT", 500);
  await lock.release();
});

test("a database that became read-only", async () => {
  await setForAll("default_transaction_read_only", "on");
  await expectToldOnEveryWay(put, Code.Unavailable, "READ_ONLY", 500);
});

test("a column that was renamed", async () => {
  await edge.sql.query("alter table checkpoints rename column metadata to notes");
  await expectToldOnEveryWay(put, Code.Unavailable, "SCHEMA_OLD", 1000);
});

test("a table that is not there", async () => {
  await edge.sql.query("alter table checkpoint_blobs rename to blobs");
  const getTuple = (way: (typeof ways)[number]) => failureOf(edge.clients[way].getTuple(seed));
  await expectToldOnEveryWay(getTuple, Code.Unavailable, "SCHEMA_OLD", 1000);
});

/** A server whose role, unlike the tests' own, is not above all limits. */
async function startAsRole(): Promise<{ served: Edge; role: string }> {
  const role = `trouble_${process.pid}_${Math.random().toString(36).slice(2, 8)}`;
  await edge.sql.query(`create role ${role} login password 'x';
    grant select, insert, update, delete on all tables in schema public to ${role}`);
  const url = new URL(edge.database.url);
  url.username = role;
  url.password = "x";
  const served = await startEdge({ databaseUrl: url.href, migrate: false, poolSize: 2 });
  onTestFinished(async () => {
    await served.stop();
  });
  return { served, role };
}

test("a password that was changed", async () => {
  const { served, role } = await startAsRole();
  await edge.sql.query(`alter role ${role} password 'y'`);
  await edge.sql.query(terminate);
  const call = (way: (typeof ways)[number]) => put(way, served);
  await expectToldOnEveryWay(call, Code.Unavailable, "ACCESS_DENIED", 5000);
  expect(served.captured.text()).toContain("28P01");
});

test("no connection left", async () => {
  const { served, role } = await startAsRole();
  await edge.sql.query(`alter role ${role} connection limit 0`);
  await edge.sql.query(terminate);
  const call = (way: (typeof ways)[number]) => put(way, served);
  await expectToldOnEveryWay(call, Code.Unavailable, "TOO_MANY_CONNECTIONS", 1000);
});

test("a privilege that was taken away", async () => {
  const { served, role } = await startAsRole();
  await edge.sql.query(`revoke insert on checkpoints from ${role}`);
  const call = (way: (typeof ways)[number]) => put(way, served);
  await expectToldOnEveryWay(call, Code.Internal, "PRIVILEGE_MISSING", undefined);
});

test("calls that a drain cannot wait for", async () => {
  const leaving = await startEdge({
    databaseUrl: edge.database.url,
    drainTimeoutMs: 2000,
    poolSize: 8,
  });
  const lock = await block(edge.database.url, "lock table checkpoints");
  onTestFinished(() => lock.release());
  const failures: Promise<ConnectError>[] = [];
  for (const way of ways) {
    const call = leaving.clients[way].put(
      { ...putSeed, threadId: way },
      { headers: { "x-request-id": `leaving-${way}` } },
    );
    failures.push(failureOf(call));
    // One after the other: calls of one tick travel in one statement.
    await untilBlocked(edge.sql, failures.length);
  }
  const stopped = leaving.stop();
  const errors = await Promise.all(failures);
  for (const [i, error] of errors.entries()) {
    const way = ways[i] as (typeof ways)[number];
    expectTold(error, { code: Code.Unavailable, reason: "DRAINING" });
    const [detail] = error.findDetails(ErrorDetailSchema);
    expect(detail?.retryDelay && durationMs(detail.retryDelay)).toBe(100);
    if (way.startsWith("session")) continue;
    expect(error.metadata.get("retry-after")).toBe("1");
    expect(error.metadata.get("x-request-id")).toBe(`leaving-${way}`);
  }
  expectSameWords(errors);
  await lock.release();
  await stopped;
});
