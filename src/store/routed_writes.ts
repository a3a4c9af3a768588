/**
 * Puts of tables that Citus distributes: functions in the database, each called with what is stored of
 * one thread, which Citus hands to the node that has the thread (create_distributed_function). There
 * they run beside the rows. As one statement Citus refuses values extended and writes under a lease
 * (a look at a stored row and a lock beside an insert), and asks the node once for each table.
 *
 * Their names have a digest of their text, so servers of two versions each call their own.
 */
import { createHash } from "node:crypto";
import type {
  PutRequest,
  PutWritesRequest,
} from "../../gen/checkpointd/v1/checkpoint_service_pb.js";
import type { StoredPrefix } from "../../gen/checkpointd/v1/session_service_pb.js";
import { expectCount, type Row, type Run, type Signal } from "./db.js";
import {
  arraysOfRequests,
  arraysOfRows,
  type Batch,
  type Bind,
  createStatement,
  insertInto,
  keepStored,
  replaceStored,
  type Sent,
  type SentArray,
  type Statement,
  sentArrays,
  toBatch,
} from "./insert.js";
import type { UnderLease } from "./leases.js";
import { compareChannels, compareKeys, explainPut, type NewBlob } from "./put_requests.js";
import { text } from "./rows.js";
import {
  type Column,
  checkpointBlobs,
  checkpoints,
  checkpointWrites,
  type Table,
} from "./tables.js";
import { unpacked } from "./values.js";

/** A put whose values may lack what stored ones have. */
export interface PutExtending {
  put: PutRequest;
  prefixes: readonly StoredPrefix[];
}

/** A blob, and what its value has of a stored one. */
export interface ExtendingBlob extends NewBlob {
  prefix: StoredPrefix | undefined;
}

/** What is stored of a blob besides its row, as columns of `sent`; null where nothing is extended. */
export const prefixColumns: readonly Column<ExtendingBlob>[] = [
  { name: "prefix_version", type: "text", of: ({ prefix }) => prefix?.version ?? null },
  {
    name: "prefix_transaction_id",
    type: "text",
    of: ({ prefix }) => prefix?.transactionId ?? null,
  },
  { name: "prefix_offset", type: "integer", of: ({ prefix }) => prefix?.offset ?? null },
  { name: "prefix_length", type: "integer", of: ({ prefix }) => prefix?.length ?? null },
  { name: "head_length", type: "integer", of: ({ prefix }) => prefix?.headLength ?? null },
];

/** A function of the database, and the statement that calls it. */
interface RoutedFunction {
  /** Its name with the schema, and its arguments' types. */
  name: string;
  types: readonly string[];
  /** Creates it if it is not there. */
  create: string;
}

/** The puts of one thread, under one lease if there is a token. */
interface OfThread {
  threadId: string;
  leaseToken: string;
}

/** Which calls travel together: those of one thread, and of one lease. */
export const threadAndLease = ({ threadId, leaseToken }: UnderLease) =>
  `${threadId}\0${leaseToken}`;

/** The thread is a parameter of its own. */
const withoutThread = <Request, Part>(table: Table<Request, Part>): Table<Request, Part> => ({
  ...table,
  ofRequest: table.ofRequest.filter(({ name }) => name !== "thread_id"),
});

type PutBatch = OfThread & Batch<PutRequest, NewBlob["part"], ExtendingBlob>;
type WriteBatch = OfThread & Batch<PutWritesRequest, PutWritesRequest["writes"][number]>;

/** Parameters that all functions begin with: the thread, the token of its lease, the values. */
function bindFirst<Input extends OfThread & { values: { bytes: Uint8Array } }>(bind: Bind<Input>) {
  bind(({ threadId }) => threadId);
  bind(({ leaseToken }) => leaseToken);
  bind(({ values }) => values.bytes);
  return ["text", "text", "bytea"];
}

function define(
  schema: string,
  kind: string,
  types: readonly string[],
  returns: string,
  declarations: string,
  body: string,
): RoutedFunction {
  const text = `(${types.join(", ")}) returns ${returns} language plpgsql as $function$
declare
  sent record;
  ${declarations}
begin
  if $2 <> '' then
    -- Locked until the transaction ends, see heldLeases.
    perform from ${schema}.checkpointd_claims l
      where l.thread_id = $1 and l.token = $2 and l.expires_at > clock_timestamp()
      for share;
    if not found then
      return null;
    end if;
  end if;
  ${body}
end
$function$`;
  const digest = createHash("sha256").update(text).digest("hex").slice(0, 10);
  const name = `${schema}.checkpointd_${kind}_${digest}`;
  return { name, types, create: `create or replace function ${name}${text}` };
}

const callOf = <Input>(
  { name, types }: RoutedFunction,
  write: (bind: Bind<Input>) => unknown,
): Statement<Input> => {
  const { parametersOf } = createStatement<Input>((bind) => {
    write(bind);
    return "";
  });
  const list = types.map((type, i) => `$${i + 1}::${type}`).join(", ");
  return { text: `select ${name}(${list})`, parametersOf };
};

/** The values of an insert of a row of `sent`. */
const valuesOf = (table: Table<never, never>, blob: string) => {
  const values = [...table.ofRequest, ...table.ofPart].map(({ name, type }) => {
    if (name === "thread_id") return "$1";
    return type === "jsonb" ? `sent.${name}::jsonb` : `sent.${name}`;
  });
  if (table.blobOf) values.push(blob);
  return `values (${values.join(", ")})`;
};

const typesOf = (arrays: readonly SentArray[]) => arrays.map(({ type }) => type);
const sentValue = unpacked
  .replace("bytes", "$3")
  .replace("start", "sent.start")
  .replace("length", "sent.length");

const writePut = (bind: Bind<PutBatch>) => {
  const first = bindFirst(bind);
  const blobs = arraysOfRows(bind, withoutThread(checkpointBlobs), [], prefixColumns);
  const puts = arraysOfRequests(bind, withoutThread(checkpoints).ofRequest);
  return { blobs, puts, types: [...first, ...typesOf(blobs), ...typesOf(puts)] };
};

/** What this one says where a value that is extended is not stored. */
const notStored = "NOT_STORED";

function putFunction(schema: string): RoutedFunction {
  let bound = 0;
  const { blobs, puts, types } = writePut(() => `$${++bound}`);
  return define(
    schema,
    "put",
    types,
    "text",
    `new_value bytea;
  stored_part bytea;`,
    `for sent in select * from ${sentArrays(blobs)} loop
    new_value := ${sentValue};
    if sent.prefix_length is not null then
      select substring(stored.blob from sent.prefix_offset + 1 for sent.prefix_length)
        into stored_part
      from ${schema}.checkpoint_blobs stored
      where stored.thread_id = $1 and stored.checkpoint_ns = sent.checkpoint_ns
        and stored.channel = sent.channel and stored.version = sent.prefix_version
        and stored.xmin::text = sent.prefix_transaction_id
        and octet_length(stored.blob) >= sent.prefix_offset + sent.prefix_length;
      if not found then
        raise exception '${notStored}';
      end if;
      new_value := overlay(new_value placing stored_part from sent.head_length + 1 for 0);
    end if;
    ${insertInto(schema, checkpointBlobs)}
    ${valuesOf(checkpointBlobs, "new_value")}
    ${keepStored(checkpointBlobs)};
  end loop;
  for sent in select * from ${sentArrays(puts)} loop
    ${insertInto(schema, checkpoints)}
    ${valuesOf(checkpoints, "")}
    ${replaceStored(checkpoints)};
  end loop;
  return (txid_current() & 4294967295)::text;`,
  );
}

const writeWrites = (bind: Bind<WriteBatch>) => {
  const first = bindFirst(bind);
  const writes = arraysOfRows(bind, withoutThread(checkpointWrites), [], []);
  return { writes, types: [...first, ...typesOf(writes)] };
};

function writesFunction(schema: string, replace: boolean): RoutedFunction {
  let bound = 0;
  const { writes, types } = writeWrites(() => `$${++bound}`);
  return define(
    schema,
    replace ? "replace_writes" : "keep_writes",
    types,
    "boolean",
    "",
    `for sent in select * from ${sentArrays(writes)} loop
    ${insertInto(schema, checkpointWrites)}
    ${valuesOf(checkpointWrites, sentValue)}
    ${(replace ? replaceStored : keepStored)(checkpointWrites)};
  end loop;
  return true;`,
  );
}

/** All functions of a schema. */
export const routedFunctions = (schema: string): RoutedFunction[] => [
  putFunction(schema),
  writesFunction(schema, false),
  writesFunction(schema, true),
];

/**
 * Returns what stores puts of one thread under one lease, all or nothing, and tells the id of the
 * transaction (see put_extending.ts); undefined, and nothing is stored, where the lease is not held.
 * Throws Postgres' P0001 where a value that is extended is not stored.
 */
export function createRoutedPut(schema: string) {
  const { text: call, parametersOf } = callOf(putFunction(schema), writePut);
  return async (run: Run, requests: readonly PutExtending[], signal: Signal | undefined) => {
    const sorted = [...requests].sort((a, b) => compareKeys(a.put, b.put));
    const blobs = sorted.flatMap(({ put, prefixes }) => {
      const byBlob = new Map(prefixes.map((prefix) => [prefix.blobIndex, prefix]));
      return put.blobs
        .map((part, i) => ({ request: put, part, prefix: byBlob.get(i) }))
        .sort((a, b) => compareChannels(a.part, b.part));
    });
    const puts = sorted.map(({ put }) => put);
    const [{ threadId, leaseToken }] = puts as [PutRequest];
    const batch = { threadId, leaseToken, ...toBatch(checkpointBlobs, puts, blobs) };
    const result = run(call, parametersOf(batch), signal);
    const [only] = puts.length === 1 ? puts : [];
    const rows = await (only ? explainPut(run, only, result) : result);
    return answerOf(rows);
  };
}

/** The same of writes; undefined where the lease is not held. */
export function createRoutedWrites(schema: string, replace: boolean) {
  const { text: call, parametersOf } = callOf(writesFunction(schema, replace), writeWrites);
  return async (
    run: Run,
    writes: readonly Sent<PutWritesRequest, PutWritesRequest["writes"][number]>[],
    signal: Signal | undefined,
  ) => {
    const requests = writes.map(({ request }) => request);
    const [{ threadId, leaseToken }] = requests as [PutWritesRequest];
    const batch = { threadId, leaseToken, ...toBatch(checkpointWrites, requests, writes) };
    return answerOf(await run(call, parametersOf(batch), signal));
  };
}

function answerOf(rows: Awaited<ReturnType<Run>>): string | undefined {
  expectCount(rows, 1);
  const [[answer = null] = []] = rows as readonly Row[];
  return answer === null ? undefined : text(answer);
}

/** Whether a routed put says that a value that is extended is not stored. */
export function isNotStored(error: unknown): boolean {
  const { code, message } = error as { code?: string; message?: string };
  return code === "P0001" && message === notStored;
}
