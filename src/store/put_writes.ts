import type { PutWritesRequest, Write } from "../../gen/checkpointd/v1/checkpoint_service_pb.js";
import type { Db } from "./db.js";
import { packBytes } from "./values.js";

/**
 * Stores the writes of a task in one statement. If all are special (idx below zero) rows that
 * are stored already are replaced, otherwise they are kept: LangGraph's rule.
 *
 * Relies on the primary key of checkpoint_writes.
 */
export async function putWrites(
  db: Db,
  request: PutWritesRequest,
  signal?: AbortSignal,
): Promise<void> {
  if (request.writes.length === 0) return;
  const replace = request.writes.every((write) => write.idx < 0);
  const writes = onePerIdx(request.writes, replace);
  const bytes = packBytes(writes.map((write) => write.value?.data));
  await db.run(
    statement(db.schema, replace),
    [
      request.threadId,
      request.checkpointNs,
      request.checkpointId,
      request.taskId,
      request.taskPath,
      writes.map((write) => write.idx),
      writes.map((write) => write.channel),
      writes.map((write) => write.value?.type ?? null),
      bytes.offsets,
      bytes.lengths,
      bytes.packed,
    ],
    signal,
  );
}

/** A statement that meets the same key twice fails in Postgres, so only one write an idx goes there. */
function onePerIdx(writes: readonly Write[], lastWins: boolean): readonly Write[] {
  const byIdx = new Map<number, Write>();
  for (const write of writes) {
    if (lastWins || !byIdx.has(write.idx)) byIdx.set(write.idx, write);
  }
  return byIdx.size === writes.length ? writes : [...byIdx.values()];
}

const statement = (schema: string, replace: boolean) => `
insert into ${schema}.checkpoint_writes
  (thread_id, checkpoint_ns, checkpoint_id, task_id, task_path, idx, channel, type, blob)
select $1, $2, $3, $4, $5, idx, channel, type, substring($11::bytea from start for length)
from unnest($6::int[], $7::text[], $8::text[], $9::int[], $10::int[])
  as w (idx, channel, type, start, length)
on conflict (thread_id, checkpoint_ns, checkpoint_id, task_id, idx) ${
  replace
    ? "do update set channel = excluded.channel, type = excluded.type, blob = excluded.blob"
    : "do nothing"
}`;
