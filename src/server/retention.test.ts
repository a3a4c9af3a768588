import { setTimeout as delay } from "node:timers/promises";
import pg from "pg";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { retentionRules } from "../settings/retention_rules.js";
import { captureLog } from "../testing/captured_log.js";
import { createDatabase, type TestDatabase } from "../testing/postgres.js";
import { startTestServer } from "../testing/test_server.js";

describe("retention", () => {
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

  /** Ten checkpoints a thread, one a day, the latest now, each with a value of its own. */
  async function fill(threadId: string, metadata: object): Promise<void> {
    await client.query(
      `insert into checkpoints (thread_id, checkpoint_id, checkpoint, metadata, created_at)
       select $1, lpad(i::text, 3, '0'),
         jsonb_build_object('v', 4, 'channel_versions', jsonb_build_object('a', i)), $2,
         now() - (10 - i) * interval '1 day'
       from generate_series(1, 10) as i`,
      [threadId, metadata],
    );
    await client.query(
      `insert into checkpoint_blobs (thread_id, channel, version, type, blob)
       select $1, 'a', i::text, 'json', '1' from generate_series(1, 10) as i`,
      [threadId],
    );
  }

  async function left(): Promise<Record<string, string>> {
    const { rows } = await client.query(
      `select thread_id, count(*) || '/' || (
         select count(*) from checkpoint_blobs b where b.thread_id = c.thread_id
       ) as n from checkpoints c group by 1 order by 1`,
    );
    return Object.fromEntries(rows.map(({ thread_id, n }) => [thread_id, n]));
  }

  it("applies the first rule that matches, in the background, and reports it", async () => {
    await fill("acme", { tenant: "acme" });
    await fill("other", {});
    const log = captureLog();
    const rules = "metadata.tenant=acme,keep_last=4,older_than=5d;keep_last=2";
    const server = await startTestServer(database.url, {
      retention: retentionRules.parse(rules),
      retentionIntervalMs: 20,
      log: log.log,
    });
    const reports = () => log.lines({ msg: "retention" });
    while (reports().length < 4) await delay(20);
    await server.drain();
    expect(await left()).toEqual({ acme: "5/5", other: "2/2" });
    expect(reports()[0]).toMatchObject({ examined: 1, threads: 1, checkpoints: 5, blobs: 5 });
    expect(reports()[1]).toMatchObject({ rule: "keep_last=2", examined: 1, checkpoints: 8 });
    expect(reports()[2]).toMatchObject({ threads: 0, checkpoints: 0 });
  });

  it("waits for its turn while another replica runs it", async () => {
    await client.query("delete from checkpoints");
    await fill("t", {});
    await client.query(
      `select pg_advisory_lock(hashtextextended('checkpointd retention "public"', 0))`,
    );
    const log = captureLog();
    const server = await startTestServer(database.url, {
      retention: retentionRules.parse("keep_last=1"),
      retentionIntervalMs: 20,
      log: log.log,
    });
    const waited = () => log.lines({ msg: "retention: another replica runs it" });
    while (waited().length < 3) await delay(20);
    expect(log.lines({ msg: "retention" })).toEqual([]);
    await client.query("select pg_advisory_unlock_all()");
    while (log.lines({ msg: "retention" }).length === 0) await delay(20);
    await server.drain();
    expect((await left()).t).toBe("1/1");
    // Other tests lock in other databases.
    const { rows } = await client.query(
      `select from pg_locks join pg_database d on d.oid = database
       where locktype = 'advisory' and datname = current_database()`,
    );
    expect(rows).toEqual([]);
  });
});
