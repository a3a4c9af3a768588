import type { CheckpointTuple } from "../../gen/checkpointd/v1/checkpoint_pb.js";
import type { GetTupleRequest } from "../../gen/checkpointd/v1/checkpoint_service_pb.js";
import type { CheckpointdError } from "../errors.js";
import { createBatch } from "./batch.js";
import type { Db, Run, Signal } from "./db.js";
import { text } from "./rows.js";
import {
  beforeFormat4,
  bytesOfRow,
  channelVersions,
  isLeftOut,
  partRows,
  toTuples,
  tupleRow,
  tupleRows,
} from "./tuples.js";
import { checkpointRows, guarded, type JsonForm, undeliverable } from "./undeliverable.js";

/**
 * Returns getTuple: reads the named checkpoint, or the latest of the thread and namespace,
 * with its channel values and writes, in one statement. Undefined when there is none. Calls
 * that wait for a connection travel together. Throws UNDELIVERABLE for one that is too large to be
 * told.
 *
 * Relies on the primary keys; the latest is the end of the primary key's range, or of
 * checkpointd_checkpoints_latest_idx where LangGraph made the table with another collation.
 */
export function createGetTuple(
  db: Db,
): (request: GetTupleRequest, signal?: Signal) => Promise<CheckpointTuple | undefined> {
  const named = createBatch(db, batchOptions(db, madeOnce(db.schema, namedStatement), true));
  const latest = createBatch(db, batchOptions(db, madeOnce(db.schema, latestStatement), false));
  return async (request, signal) => {
    const found = await (request.checkpointId ? named : latest)(request, signal);
    if (found instanceof Error) throw found;
    return found;
  };
}

/** What the answers of one statement should stay below; how large they get is only known after. */
const answerBytes = 1024 * 1024;

type Statement = (json: JsonForm) => string;

/** To put the text together for each call was a tenth of what a getTuple costs the service. */
function madeOnce(schema: string, make: (schema: string, json: JsonForm) => string): Statement {
  const texts = { all: make(schema, "all"), guarded: make(schema, "guarded") };
  return (json) => texts[json];
}

function batchOptions(db: Db, statement: Statement, withId: boolean) {
  let usualBytes = answerBytes / 32;
  return {
    maxItems: () => Math.max(1, Math.min(32, Math.floor(answerBytes / usualBytes))),
    maxBytes: Number.POSITIVE_INFINITY,
    sizeOf: () => 0,
    run: async (run: Run, requests: readonly GetTupleRequest[], signal?: Signal) => {
      const parameters = [
        requests.map((request) => request.threadId),
        requests.map((request) => request.checkpointNs),
      ];
      if (withId) parameters.push(requests.map((request) => request.checkpointId));
      const rows = await guarded(db, (json) => run(statement(json), parameters, signal));
      let bytes = 0;
      for (const row of rows) bytes += bytesOfRow(row);
      usualBytes += (bytes / requests.length - usualBytes) / 8;
      const tuples: Map<number, CheckpointTuple | CheckpointdError> = toTuples(rows);
      for (const row of rows.filter((row) => isLeftOut(row))) {
        const id = text(row[tupleRow.at.checkpoint_id]);
        tuples.set(Number(text(row[tupleRow.at.n])), undeliverable(id));
      }
      return requests.map((_, i) => tuples.get(i + 1));
    },
  };
}

const selectTuple = `thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id,
    checkpoint::text as checkpoint_json, metadata::text as metadata_json,
    ${channelVersions("checkpoint")} as channel_versions, ${beforeFormat4("checkpoint")} as before_format_4`;

const namedStatement = (schema: string, json: JsonForm) => `
with page as materialized (
  select n, c.*
  from unnest($1::text[], $2::text[], $3::text[])
    with ordinality as w (thread_id, checkpoint_ns, checkpoint_id, n)
  cross join lateral (
    select ${selectTuple} from ${checkpointRows(schema, json)} c
    where c.thread_id = w.thread_id and c.checkpoint_ns = w.checkpoint_ns
      and c.checkpoint_id = w.checkpoint_id
    limit 1
  ) as c
)
${tupleRows(`(${partRows(schema, "page")})`)}`;

const latestStatement = (schema: string, json: JsonForm) => `
with page as materialized (
  select n, c.*
  from unnest($1::text[], $2::text[]) with ordinality as w (thread_id, checkpoint_ns, n)
  cross join lateral (
    select ${selectTuple} from ${checkpointRows(schema, json)} c
    where c.thread_id = w.thread_id and c.checkpoint_ns = w.checkpoint_ns
    order by c.checkpoint_id collate "C" desc
    limit 1
  ) as c
)
${tupleRows(`(${partRows(schema, "page")})`)}`;
