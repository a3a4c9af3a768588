import { create } from "@bufbuild/protobuf";
import type { CheckpointKey, CheckpointTuple } from "../../gen/checkpointd/v1/checkpoint_pb.js";
import {
  type GetTupleRequest,
  GetTupleRequestSchema,
} from "../../gen/checkpointd/v1/checkpoint_service_pb.js";
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
import {
  checkpointRows,
  guarded,
  guardFromNow,
  type JsonForm,
  undeliverable,
} from "./undeliverable.js";

/**
 * Returns getTuple: reads the named checkpoint, or the latest of the thread and namespace,
 * with its channel values and writes, in one statement. Undefined when there is none. Calls
 * that wait for a connection travel together, but for those of tables that are distributed. Throws
 * UNDELIVERABLE for one that is too large to be told.
 *
 * Relies on the primary keys; the latest is the end of the primary key's range, or of
 * checkpointd_checkpoints_latest_idx where LangGraph made the table with another collation.
 */
export function createGetTuple(
  db: Db,
): (request: GetTupleRequest, signal?: Signal) => Promise<CheckpointTuple | undefined> {
  const named = createBatch(db, batchOptions(db, true));
  const latest = createBatch(db, batchOptions(db, false));
  return async (request, signal) => {
    const found = await (request.checkpointId ? named : latest)(request, signal);
    if (found instanceof Error) throw found;
    return found;
  };
}

/**
 * Returns what reads named checkpoints one by one, as getTuple does, for lists. Undefined when there
 * is none any more; an error where it is too large to be told.
 */
export function createReadNamed(
  db: Db,
): (
  key: CheckpointKey,
  signal: Signal | undefined,
) => Promise<CheckpointTuple | CheckpointdError | undefined> {
  const { run } = batchOptions(db, true);
  return async ({ threadId, checkpointNs, checkpointId }, signal) => {
    const request = create(GetTupleRequestSchema, { threadId, checkpointNs, checkpointId });
    return (await run(db.runLong, [request], signal))[0];
  };
}

/** What the answers of one statement should stay below; how large they get is only known after. */
const answerBytes = 1024 * 1024;

type Statement = (json: JsonForm) => string;

/** To put the text together for each call was a tenth of what a getTuple costs the service. */
function madeOnce(make: (json: JsonForm) => string): Statement {
  const texts = { all: make("all"), guarded: make("guarded") };
  return (json) => texts[json];
}

function batchOptions(db: Db, withId: boolean) {
  const ofOne = madeOnce((json) => oneStatement(db.schema, withId, json));
  const ofMany = madeOnce((json) => manyStatement(db.schema, withId, json));
  let usualBytes = answerBytes / 32;
  return {
    maxItems: () => Math.max(1, Math.min(32, Math.floor(answerBytes / usualBytes))),
    maxBytes: Number.POSITIVE_INFINITY,
    sizeOf: () => 0,
    run: async (run: Run, requests: readonly GetTupleRequest[], signal?: Signal) => {
      const rows = await guarded(db, (json) => {
        const [only] = requests.length === 1 ? requests : [];
        if (only) return run(ofOne(json), keyOf(only, withId), signal);
        const keys = requests.map((request) => keyOf(request, withId));
        const columns = keys[0]!.map((_, i) => keys.map((key) => key[i]!));
        return run(ofMany(json), columns, signal);
      });
      let bytes = 0;
      for (const row of rows) bytes += bytesOfRow(row);
      usualBytes += (bytes / requests.length - usualBytes) / 8;
      const tuples: Map<number, CheckpointTuple | CheckpointdError> = toTuples(rows);
      for (const row of rows.filter((row) => isLeftOut(row))) {
        guardFromNow(db.guard);
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

const keyOf = ({ threadId, checkpointNs, checkpointId }: GetTupleRequest, withId: boolean) =>
  withId ? [threadId, checkpointNs, checkpointId] : [threadId, checkpointNs];

/** Where in checkpoints it is, given the SQL of the key. */
const isAt = (withId: boolean, [threadId, checkpointNs, checkpointId]: readonly string[]) => `
    where c.thread_id = ${threadId} and c.checkpoint_ns = ${checkpointNs}
    ${withId ? `and c.checkpoint_id = ${checkpointId}` : `order by c.checkpoint_id collate "C" desc`}
    limit 1`;

/** Of a lone call: each table is read by the thread's name, see partRows. */
const oneStatement = (schema: string, withId: boolean, json: JsonForm) => `
with page as materialized (
  select 1::bigint as n, ${selectTuple} from ${checkpointRows(schema, json)} c
  ${isAt(withId, ["$1", "$2", "$3"])}
)
${tupleRows(`(${partRows(schema, "page", "true", "$1")})`)}`;

const manyStatement = (schema: string, withId: boolean, json: JsonForm) => {
  const arrays = ["$1::text[]", "$2::text[]", ...(withId ? ["$3::text[]"] : [])];
  const names = ["thread_id", "checkpoint_ns", ...(withId ? ["checkpoint_id"] : [])];
  return `
with page as materialized (
  select n, c.*
  from unnest(${arrays.join(", ")}) with ordinality as w (${names.join(", ")}, n)
  cross join lateral (
    select ${selectTuple} from ${checkpointRows(schema, json)} c
    ${isAt(
      withId,
      names.map((name) => `w.${name}`),
    )}
  ) as c
)
${tupleRows(`(${partRows(schema, "page")})`)}`;
};
