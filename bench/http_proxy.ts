/**
 * The baseline in the middle: a proxy with five POST endpoints, values as base64 in JSON, one
 * INSERT for each blob or write, in a transaction, over a pool of pg. Written as a careful team
 * would write it: prepared statements, connections kept alive, three queries, at the same time,
 * for any number of tuples. A list is answered in one piece.
 *
 *     node dist/bench/http_proxy.js <database url>
 */
import http from "node:http";
import type { AddressInfo } from "node:net";
import pg from "pg";
import type { WireBlob, WireTuple, WireWrite } from "./http_saver.js";
import { poolSize } from "./postgres_settings.js";

type Body = Record<string, unknown>;
type Statement = [name: string | undefined, text: string, values: unknown[]];

const pool = new pg.Pool({ connectionString: process.argv[2], max: poolSize });

async function run(client: pg.Pool | pg.PoolClient, [name, text, values]: Statement) {
  return (await client.query({ text, values, ...(name && { name }) })).rows;
}

async function transaction(statements: Statement[]): Promise<void> {
  const client = await pool.connect();
  try {
    await client.query("begin");
    for (const statement of statements) await run(client, statement);
    await client.query("commit");
  } catch (error) {
    await client.query("rollback");
    throw error;
  } finally {
    client.release();
  }
}

const toBytes = (base64: string | undefined) =>
  base64 === undefined ? null : Buffer.from(base64, "base64");

async function put(body: Body): Promise<null> {
  const { thread_id, checkpoint_ns } = body;
  await transaction([
    ...(body.blobs as WireBlob[]).map(
      ({ channel, version, value }): Statement => [
        "put_blob",
        `insert into checkpoint_blobs (thread_id, checkpoint_ns, channel, version, type, blob)
         values ($1, $2, $3, $4, $5, $6) on conflict do nothing`,
        [thread_id, checkpoint_ns, channel, version, value?.[0] ?? "empty", toBytes(value?.[1])],
      ],
    ),
    [
      "put_checkpoint",
      `insert into checkpoints
         (thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, checkpoint, metadata)
       values ($1, $2, $3, $4, $5, $6)
       on conflict (thread_id, checkpoint_ns, checkpoint_id)
       do update set checkpoint = excluded.checkpoint, metadata = excluded.metadata`,
      [
        thread_id,
        checkpoint_ns,
        body.checkpoint_id,
        body.parent_checkpoint_id,
        body.checkpoint,
        body.metadata,
      ],
    ],
  ]);
  return null;
}

async function putWrites(body: Body): Promise<null> {
  const writes = body.writes as WireWrite[];
  const special = writes.every((write) => write.idx < 0);
  const conflict = special
    ? `(thread_id, checkpoint_ns, checkpoint_id, task_id, idx)
       do update set channel = excluded.channel, type = excluded.type, blob = excluded.blob`
    : "do nothing";
  await transaction(
    writes.map(
      ({ idx, channel, value }): Statement => [
        special ? "replace_write" : "put_write",
        `insert into checkpoint_writes
           (thread_id, checkpoint_ns, checkpoint_id, task_id, idx, channel, type, blob)
         values ($1, $2, $3, $4, $5, $6, $7, $8) on conflict ${conflict}`,
        [
          body.thread_id,
          body.checkpoint_ns,
          body.checkpoint_id,
          body.task_id,
          idx,
          channel,
          value[0],
          toBytes(value[1]),
        ],
      ],
    ),
  );
  return null;
}

async function getTuple(body: Body): Promise<WireTuple | null> {
  return (await read(body, body.checkpoint_id ? "get" : "get_latest", 1))[0] ?? null;
}

// Three queries whatever the number of tuples. `statement` names them where their text is
// always the same.
async function read(
  body: Body,
  statement: string | undefined,
  limit: number | undefined,
): Promise<WireTuple[]> {
  const wheres: string[] = [];
  const values: unknown[] = [];
  const where = (condition: string, value: unknown) => {
    if (value === undefined || value === null) return;
    values.push(value);
    wheres.push(`${condition} $${values.length}`);
  };
  where("thread_id =", body.thread_id);
  where("checkpoint_ns =", body.checkpoint_ns);
  where("checkpoint_id =", body.checkpoint_id || null);
  where("checkpoint_id <", body.before);
  where("metadata @>", body.filter);
  const chosen = `checkpoints ${wheres.length > 0 ? `where ${wheres.join(" and ")}` : ""}
     order by checkpoint_id desc ${limit === undefined ? "" : `limit ${Number(limit)}`}`;
  const select = (name: string, text: string) =>
    run(pool, [statement && `${statement}_${name}`, text, values]);
  const [rows, blobs, writes] = await Promise.all([
    select(
      "checkpoints",
      `select thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, checkpoint, metadata
       from ${chosen}`,
    ),
    select(
      "blobs",
      `with chosen as (select * from ${chosen})
       select thread_id, checkpoint_ns, checkpoint_id, channel, b.type, blob
       from chosen
       cross join jsonb_each_text(checkpoint -> 'channel_versions') as v (channel, version)
       join checkpoint_blobs b using (thread_id, checkpoint_ns, channel, version)
       where b.type <> 'empty'`,
    ),
    select(
      "writes",
      `with chosen as (select thread_id, checkpoint_ns, checkpoint_id from ${chosen})
       select thread_id, checkpoint_ns, checkpoint_id, task_id, channel, type, blob
       from chosen join checkpoint_writes using (thread_id, checkpoint_ns, checkpoint_id)
       order by task_id, idx`,
    ),
  ]);
  const tuples = rows.map((row): WireTuple => ({ ...row, blobs: [], writes: [] }));
  const key = (row: Omit<WireTuple, "blobs" | "writes">) =>
    `${row.thread_id}\n${row.checkpoint_ns}\n${row.checkpoint_id}`;
  const byKey = new Map(tuples.map((tuple) => [key(tuple), tuple]));
  for (const row of blobs) {
    byKey.get(key(row))?.blobs.push([row.channel, row.type, row.blob.toString("base64")]);
  }
  for (const row of writes) {
    const value = row.blob.toString("base64");
    byKey.get(key(row))?.writes.push([row.task_id, row.channel, row.type, value]);
  }
  return tuples;
}

async function deleteThread(body: Body): Promise<null> {
  await transaction(
    ["checkpoints", "checkpoint_blobs", "checkpoint_writes"].map((table) => [
      `delete_${table}`,
      `delete from ${table} where thread_id = $1`,
      [body.thread_id],
    ]),
  );
  return null;
}

const endpoints: Record<string, (body: Body) => Promise<unknown>> = {
  "/checkpoints/get-tuple": getTuple,
  "/checkpoints/put": put,
  "/checkpoints/put-writes": putWrites,
  "/checkpoints/list": (body) => read(body, undefined, body.limit as number | undefined),
  "/checkpoints/delete-thread": deleteThread,
};

async function answer(request: http.IncomingMessage, response: http.ServerResponse) {
  const endpoint = request.method === "POST" ? endpoints[request.url ?? ""] : undefined;
  let status = 200;
  let result: unknown;
  try {
    const chunks: Buffer[] = [];
    for await (const chunk of request) chunks.push(chunk as Buffer);
    if (!endpoint) throw new Error("no such endpoint");
    result = await endpoint(JSON.parse(Buffer.concat(chunks).toString()) as Body);
  } catch (error) {
    status = endpoint ? 500 : 404;
    result = { error: String(error) };
  }
  const text = Buffer.from(JSON.stringify(result));
  response.writeHead(status, { "content-type": "application/json", "content-length": text.length });
  response.end(text);
}

const server = http.createServer((request, response) => void answer(request, response));
// Longer than any pause between rounds: an agent must not meet a connection that just closed.
server.keepAliveTimeout = 600_000;
server.listen(0, "127.0.0.1", () => {
  const { port } = server.address() as AddressInfo;
  process.stdout.write(`proxy listens on http://127.0.0.1:${port}\n`);
});
// The run that started this process is its life; Ctrl-C is for the run.
process.on("SIGINT", () => {});
process.once("disconnect", () => process.exit(0));
process.once("SIGTERM", () => process.exit(0));
