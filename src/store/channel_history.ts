import { create } from "@bufbuild/protobuf";
import { ChannelBlobSchema, PendingWriteSchema } from "../../gen/checkpointd/v1/checkpoint_pb.js";
import {
  type GetChannelHistoryRequest,
  type GetChannelHistoryResponse,
  GetChannelHistoryResponseSchema,
} from "../../gen/checkpointd/v1/thread_service_pb.js";
import { sealKey } from "../protocol/sealed.js";
import type { Db, Parameter, Signal } from "./db.js";
import { createColumns, text } from "./rows.js";
import { beforeFormat4, channelVersions, toValue } from "./tuples.js";
import { isTooLarge, undeliverable } from "./undeliverable.js";

/**
 * Ancestors one statement walks, fewer where many channels are asked for, and the bytes of values one
 * reads (a larger ancestor alone).
 */
const walkedAtOnce = 1_024;
const leastWalked = 16;
const channelsWalked = 128 * 1024;
const readBytes = 256 * 1024;

/**
 * Yields the ancestors of a checkpoint that wrote to one of the channels or hold a value of it,
 * nearest first, until each channel has its value: LangGraph's getDeltaChannelHistory, walked in
 * the database. So many statements: one for the checkpoint, one for each 1,024 ancestors or fewer, which
 * reads no values, and one for each 256 KiB of values. With seals, yields the checkpoint itself first,
 * and all ancestors on the way.
 */
export async function* channelHistory(
  db: Db,
  request: GetChannelHistoryRequest,
  signal?: Signal,
): AsyncGenerator<GetChannelHistoryResponse, void> {
  const { threadId, checkpointNs, checkpointId, channels, withSeals } = request;
  if (channels.length === 0) return;
  const [target] = await db.runLong(
    (checkpointId === "" ? latestTarget : namedTarget)(db.schema, withSeals),
    [threadId, checkpointNs, ...(checkpointId === "" ? [] : [checkpointId])],
    signal,
  );
  if (target && withSeals) {
    yield create(GetChannelHistoryResponseSchema, {
      checkpointId: text(target[targetColumns.at.checkpoint_id]),
      seal: text(target[targetColumns.at.seal]),
    });
  }
  let next = text(target?.[targetColumns.at.parent_checkpoint_id]);
  let remaining = channels;
  // A parent seen before makes a circle, which no graph writes but any client can.
  const seen = new Set<string>();
  while (next !== "" && remaining.length > 0) {
    const most = Math.max(leastWalked, Math.floor(channelsWalked / remaining.length));
    const rows = await db.runLong(
      walkStatement(db.schema, withSeals),
      [threadId, checkpointNs, next, remaining, Math.min(most, walkedAtOnce)],
      signal,
    );
    const ancestors: Ancestor[] = [];
    const asked = remaining;
    const open = new Set(asked);
    next = "";
    for (const row of rows) {
      const id = text(row[walked.at.checkpoint_id]);
      if (seen.has(id)) break;
      seen.add(id);
      const found: string[] = JSON.parse(text(row[walked.at.found]));
      for (const channel of found) open.delete(channel);
      ancestors.push({
        id,
        found,
        bytes: Number(text(row[walked.at.bytes])),
      });
      next = text(row[walked.at.parent_checkpoint_id]);
    }
    remaining = [...open];
    if (seen.has(next)) next = "";
    yield* readAncestors(db, request, ancestors, asked, signal);
  }
}

interface Ancestor {
  id: string;
  /** The channels whose walk ends here. */
  found: string[];
  /** Bytes of what is to be read of it. */
  bytes: number;
}

async function* readAncestors(
  db: Db,
  { threadId, checkpointNs, withSeals }: GetChannelHistoryRequest,
  ancestors: readonly Ancestor[],
  asked: readonly string[],
  signal: Signal | undefined,
): AsyncGenerator<GetChannelHistoryResponse, void> {
  // Up to which ancestor each channel is wanted.
  const last = new Map(asked.map((channel) => [channel, ancestors.length]));
  for (const [i, { found }] of ancestors.entries()) for (const each of found) last.set(each, i + 1);
  for (let start = 0; start < ancestors.length; ) {
    let end = start;
    for (let bytes = 0; end < ancestors.length; end++) {
      bytes += ancestors[end]?.bytes ?? 0;
      if (end > start && bytes > readBytes) break;
    }
    const page = ancestors
      .slice(start, end)
      .filter(({ bytes, found }) => withSeals || bytes > 0 || found.length);
    const positions = ancestors.map(({ id }, i) => [id, i + 1] as const).slice(start, end);
    start = end;
    if (page.length === 0) continue;
    const wanted = new Map(positions);
    const parameters: Parameter[] = [
      threadId,
      checkpointNs,
      page.map(({ id }) => id),
      page.map(({ id }) => wanted.get(id) ?? 0),
      [...last.keys()],
      [...last.values()],
    ];
    const statement = valuesStatement(db.schema, withSeals);
    const rows = await db.runLong(statement, parameters, signal).catch((error) => {
      // A value in the JSON of one of them.
      throw isTooLarge(error) ? undeliverable("") : error;
    });
    let message: GetChannelHistoryResponse | undefined;
    for (const row of rows) {
      const { at } = read;
      const checkpointId = text(row[at.checkpoint_id]);
      if (message && message.checkpointId !== checkpointId) yield message;
      if (message?.checkpointId !== checkpointId) {
        message = create(GetChannelHistoryResponseSchema, { checkpointId });
      }
      const kind = text(row[at.kind]);
      const channel = text(row[at.channel]);
      const value = toValue(row[at.type], row[at.bytes]);
      if (kind === "seal") {
        if (message) message.seal = text(row[at.text]);
      } else if (kind === "write") {
        message?.writes.push(
          create(PendingWriteSchema, {
            taskId: text(row[at.task_id]),
            taskPath: text(row[at.task_path]),
            idx: Number(text(row[at.idx])),
            channel,
            value,
          }),
        );
      } else if (kind === "seed") {
        const version = text(row[at.version]);
        message?.seeds.push(create(ChannelBlobSchema, { channel, version, value }));
      } else if (kind === "inline") {
        if (message) message.inlineSeeds[channel] = text(row[at.text]);
      } else {
        message?.pendingSends.push(value);
      }
    }
    if (message) yield message;
  }
}

const targetColumns = createColumns("checkpoint_id", "parent_checkpoint_id", "seal");

const targetNames = (withSeal: boolean) =>
  targetColumns.all({
    checkpoint_id: "c.checkpoint_id",
    parent_checkpoint_id: "c.parent_checkpoint_id",
    seal: withSeal ? sealOf("c") : "null",
  });

/** Relies on the primary key; the latest as getTuple's does. */
const namedTarget = (schema: string, withSeal: boolean) => `
select ${targetNames(withSeal)} from ${schema}.checkpoints c
where c.thread_id = $1 and c.checkpoint_ns = $2 and c.checkpoint_id = $3`;

const latestTarget = (schema: string, withSeal: boolean) => `
select ${targetNames(withSeal)} from ${schema}.checkpoints c
where c.thread_id = $1 and c.checkpoint_ns = $2
order by c.checkpoint_id collate "C" desc
limit 1`;

/** Of an ancestor the channels that have a value there (as JSON), and the bytes to read of it. */
const walked = createColumns("checkpoint_id", "parent_checkpoint_id", "found", "bytes");

/**
 * Walks from parent to parent by the primary keys of the three tables. Ids are carried as jsonb:
 * as text a recursive query gives them a collation, and where that is not the key's, which depends
 * on who made the table, the key's index cannot be used. Looks at the channels that the checkpoint names,
 * not at all that are asked for: 1,000 unknown ones of 20,000 ancestors took 32 s.
 */
const walkStatement = (schema: string, withSeals: boolean) => `
with recursive walk (n, checkpoint_id, parent_id, asked, found, checkpoint) as (
  select 0, 'null'::jsonb, to_jsonb($3::text), $4::text[], '{}'::text[], null::jsonb
  union all
  select walk.n + 1, to_jsonb(c.checkpoint_id), to_jsonb(c.parent_checkpoint_id), open.channels,
    held.channels, c.checkpoint
  from walk
  cross join lateral (
    select case when cardinality(walk.found) = 0 then walk.asked
      else array(select unnest(walk.asked) except select unnest(walk.found)) end as channels
  ) as open
  cross join lateral (
    select c.checkpoint_id, c.parent_checkpoint_id, c.checkpoint
    from ${schema}.checkpoints c
    where c.thread_id = $1 and c.checkpoint_ns = $2 and c.checkpoint_id = walk.parent_id #>> '{}'
    limit 1
  ) as c
  cross join lateral (
    select array(
      select named.channel from (
        select jsonb_object_keys(${channelVersions("c.checkpoint")})
        union
        select jsonb_object_keys(${inlineValues("c")})
        union
        select '__pregel_tasks'
      ) as named (channel)
      where named.channel = any(open.channels) and (
        ${inline("c", "named.channel")} is not null
        or exists (${storedSeed(schema, "c", "named.channel")})
        or (named.channel = '__pregel_tasks' and exists (${sends(schema, "c", "limit 1")}))
      )
    ) as channels
  ) as held
  where walk.n < $5 and cardinality(open.channels) > 0
)
select ${walked.all({
  checkpoint_id: "walk.checkpoint_id #>> '{}'",
  parent_checkpoint_id: "walk.parent_id #>> '{}'",
  found: "array_to_json(walk.found)::text",
  bytes: `coalesce((
    select sum(octet_length(w.blob) + 64) from ${schema}.checkpoint_writes w
    where w.thread_id = $1 and w.checkpoint_ns = $2 and w.checkpoint_id = walk.checkpoint_id #>> '{}'
      and w.channel = any(walk.asked)
  ), 0) + coalesce((
    select sum(octet_length(s.blob))
    from unnest(walk.found) as seeded (name)
    cross join lateral (${storedSeed(schema, "walk", "seeded.name")}) as s
  ), 0)${withSeals ? ` + coalesce(octet_length(${sealOf("walk")}), 0)` : ""}`,
})}
from walk
where walk.n > 0
order by walk.n`;

/** Which columns a row has besides depends on its kind: seal, write, seed, inline or send. */
const read = createColumns(
  "checkpoint_id",
  "kind",
  "channel",
  "version",
  "task_id",
  "task_path",
  "idx",
  "type",
  "text",
  "bytes",
);

const valuesStatement = (schema: string, withSeals: boolean) => {
  const value = (row: string) => ({ type: `${row}.type`, bytes: `${row}.blob` });
  const key = { checkpoint_id: "checkpoint_id" };
  return `
with ancestor as materialized (
  select a.n, c.*
  from unnest($3::text[], $4::int[]) as a (checkpoint_id, n)
  cross join lateral (
    select checkpoint_id, parent_checkpoint_id, checkpoint from ${schema}.checkpoints c
    where c.thread_id = $1 and c.checkpoint_ns = $2 and c.checkpoint_id = a.checkpoint_id
    limit 1
  ) as c
), wanted as materialized (
  select channel, last_n from unnest($5::text[], $6::int[]) as w (channel, last_n)
)
select ${read.names} from (
  select n, 0 as part, w.task_path collate "C" as sort_path, w.task_id collate "C" as sort_task, ${read.some(
    {
      ...key,
      kind: "'write'",
      channel: "w.channel",
      task_id: "w.task_id",
      task_path: "w.task_path",
      idx: "w.idx",
      ...value("w"),
    },
  )}
  from ancestor
  cross join lateral (
    select task_id, task_path, idx, channel, type, blob from ${schema}.checkpoint_writes w
    where w.thread_id = $1 and w.checkpoint_ns = $2 and w.checkpoint_id = ancestor.checkpoint_id
      and exists (select from wanted where wanted.channel = w.channel and ancestor.n <= wanted.last_n)
    offset 0
  ) as w
  union all
  select n, 1, null, null, ${read.union({
    ...key,
    kind: "'seed'",
    channel: "wanted.channel",
    version: "s.version",
    ...value("s"),
  })}
  from ancestor
  join wanted on wanted.last_n = ancestor.n
  cross join lateral (${storedSeed(schema, "ancestor", "wanted.channel")}) as s
  union all
  select n, 2, null, null, ${read.union({
    ...key,
    kind: "'inline'",
    channel: "wanted.channel",
    text: `(${inline("ancestor", "wanted.channel")})::text`,
  })}
  from ancestor
  join wanted on wanted.last_n = ancestor.n
  where ${inline("ancestor", "wanted.channel")} is not null
  union all
  select n, 3, null, null, ${read.union({
    ...key,
    kind: "'send'",
    channel: "'__pregel_tasks'",
    idx: `row_number() over (
      partition by n order by s.task_path collate "C", s.task_id collate "C", s.idx
    )::int`,
    ...value("s"),
  })}
  from ancestor
  join wanted on wanted.last_n = ancestor.n and wanted.channel = '__pregel_tasks'
  cross join lateral (${sends(schema, "ancestor", "offset 0")}) as s${
    withSeals
      ? `
  union all
  select n, -1, null, null, ${read.union({ ...key, kind: "'seal'", text: sealOf("ancestor") })}
  from ancestor`
      : ""
  }
) as rows
order by n, part, sort_path, sort_task, idx, channel`;
};

/** What a saver that encrypts wrote into the JSON. */
const sealOf = (c: string) => `${c}.checkpoint ->> '${sealKey}'`;

/** The value of a channel in the JSON, where Python keeps primitives; null if it is not there. */
const inline = (c: string, channel: string) => `(${inlineValues(c)}) -> ${channel}`;

const inlineValues = (c: string) =>
  `case when jsonb_typeof(${c}.checkpoint -> 'channel_values') = 'object'
      then ${c}.checkpoint -> 'channel_values' end`;

const storedSeed = (schema: string, c: string, channel: string) => `
      select b.version, b.type, b.blob from ${schema}.checkpoint_blobs b
      where b.thread_id = $1 and b.checkpoint_ns = $2 and b.channel = ${channel}
        and b.version = ${c}.checkpoint -> 'channel_versions' ->> ${channel}
        and b.type <> 'empty'
      limit 1`;

const sends = (schema: string, c: string, end: string) => `
      select s.task_path, s.task_id, s.idx, s.type, s.blob from ${schema}.checkpoint_writes s
      where ${beforeFormat4(`${c}.checkpoint`)} and s.thread_id = $1 and s.checkpoint_ns = $2
        and s.checkpoint_id = ${c}.parent_checkpoint_id and s.channel = '__pregel_tasks'
      ${end}`;
