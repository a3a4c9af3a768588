import { isOlder, version } from "../version.js";
import { type Db, isDistributed, type Signal } from "./db.js";
import { BOOKKEEPING, readMigrationFiles } from "./migration_files.js";
import { routedFunctions } from "./routed_writes.js";
import { createColumns, text } from "./rows.js";
import { checkpointBlobs, checkpoints, checkpointWrites, columnNames } from "./tables.js";

/** Something that keeps the tables from being used, as Postgres would say it. */
export class TableTrouble extends Error {
  override readonly name = "TableTrouble";

  constructor(
    /** The SQLSTATE a statement that needs it would fail with. */
    readonly code: string,
    message: string,
  ) {
    super(message);
  }
}

/** What a look at the tables found. */
export interface Look {
  /** What keeps them from being used, if something does. */
  trouble: TableTrouble | undefined;
  /** Migrations of a newer version that were applied and that this one cannot go on beside. */
  newer: string[];
  /** The version that they take; undefined where there are none, and where one does not say it. */
  needs: string | undefined;
  /** Migrations of this version that were not applied, where some were. */
  missing: string[];
  /** Whether the role may read which migrations were applied, where there is the table. */
  mayReadMigrations: boolean;
  /** Whether Postgres has the settings that the pool asks for in sessions that prepare. */
  hasSettings: boolean;
  /** Locks that make writes wait: "AccessExclusiveLock on checkpoints (process 123)". */
  locks: string[];
  /** When Postgres was started, in seconds since 1970. */
  startedAt: number;
  /** Bytes of WAL that the slowest standby has not replayed; undefined: the role is told of none. */
  standbyLagBytes: number | undefined;
}

/** The columns that our statements name: those that puts write, and what else is read. */
const needed: Record<string, readonly string[]> = {
  [checkpoints.name]: [...columnNames(checkpoints), "created_at"],
  [checkpointBlobs.name]: columnNames(checkpointBlobs),
  [checkpointWrites.name]: columnNames(checkpointWrites),
  checkpointd_claims: ["thread_id", "token", "owner", "expires_at"],
};

/** The migrations of this version, read once. */
let known: ReadonlySet<string> | undefined;

/**
 * Looks whether the tables can be read and written: they and their columns are there, the role
 * has the privileges, the session is not read-only, every migration is known. Reads catalogs
 * only and waits for no lock of a table: who holds one delays calls, which does not make the
 * other replicas better. (An insert of no rows, which would check the same, waits with them.)
 * Throws what the connection does.
 */
export async function lookAtTables(db: Db, schema: string, signal: Signal): Promise<Look> {
  const rows = (await db.run(statement, [schema], signal)).map((row) => ({
    kind: text(row[found.at.kind]),
    code: text(row[found.at.code]),
    message: text(row[found.at.text]),
  }));
  const of = (kind: string) => rows.filter((row) => row.kind === kind);
  const trouble = of("trouble");
  if (trouble.some(({ code }) => code === "25006")) {
    // Fails as every write does, and with that makes the pool look where the address leads now.
    await db.run(`delete from ${db.schema}.checkpoints where false`, [], signal);
  }
  const bookkeeping = of("bookkeeping")[0]?.code;
  const look: Look = {
    // A database that nobody has set up lacks all of them; one sentence names them all.
    trouble: trouble[0]
      ? new TableTrouble(
          trouble[0].code,
          trouble
            .filter(({ code }) => code === trouble[0]?.code)
            .map(({ message }) => message)
            .join(", "),
        )
      : undefined,
    newer: [],
    needs: undefined,
    missing: [],
    mayReadMigrations: bookkeeping !== "unreadable",
    hasSettings: (of("setting")[0]?.code ?? "").startsWith("force_"),
    locks: of("lock").map(({ message }) => message),
    startedAt: Number(of("started")[0]?.message),
    standbyLagBytes: of("lag").map(({ message }) => Number(message))[0],
  };
  if (!look.trouble && isDistributed(db)) look.trouble = await findFunctions(db, signal);
  if (bookkeeping !== "readable") return look;
  // A column that an older version has not made is null in the row's JSON.
  const applied = await db.run(
    `select name, to_jsonb(recorded)->>'safe', to_jsonb(recorded)->>'min_server'
     from ${db.schema}.${BOOKKEEPING} as recorded order by id`,
    [],
    signal,
  );
  const names = new Set(applied.map(([name]) => text(name)));
  known ??= new Set((await readMigrationFiles()).map(({ name }) => name));
  const ours = known;
  const own = version();
  const refused = applied
    .map(([name, safe, minServer]) => ({
      name: text(name),
      safe: text(safe) === "true",
      minServer: text(minServer),
    }))
    // One that does not say who can go on is not to be trusted.
    .filter(({ name, safe, minServer }) => {
      return !ours.has(name) && !safe && isOlder(own, minServer) !== false;
    });
  look.newer = refused.map(({ name }) => name);
  const versions = refused.map(({ minServer }) => minServer);
  if (versions.every((each) => isOlder(own, each))) {
    look.needs = versions.sort((a, b) => (isOlder(a, b) ? 1 : -1))[0];
  }
  look.missing = [...ours].filter((name) => !names.has(name));
  return look;
}

/** Those that puts call where the tables are distributed. */
async function findFunctions(db: Db, signal: Signal): Promise<TableTrouble | undefined> {
  const names = routedFunctions(db.schema).map(({ name }) => name);
  const missing = await db.run(
    "select name from unnest($1::text[]) as name where to_regproc(name) is null",
    [names],
    signal,
  );
  if (missing.length === 0) return undefined;
  const list = missing.map(([name = null]) => text(name)).join(", ");
  return new TableTrouble("42883", `no function ${list}`);
}

const neededRows = Object.entries(needed)
  .map(([table, columns]) => `('${table}', '{${columns.join()}}'::text[])`)
  .join(", ");

/**
 * What a row tells of: trouble (the gravest first), bookkeeping, setting, lock, started or lag. The state of the
 * bookkeeping and the value of the setting stand in `code`.
 */
const found = createColumns("kind", "rank", "code", "text");

/** Reads catalogs only. */
const statement = `
with home as (
  select oid, has_schema_privilege(oid, 'usage') as may_use
  from pg_catalog.pg_namespace where nspname = $1
), needed (name, columns) as (values ${neededRows}),
found as (
  select needed.name, columns, c.oid
  from needed
  left join home on true
  left join pg_catalog.pg_class c on c.relnamespace = home.oid and c.relname = needed.name
)
select ${found.all({
  kind: "'trouble'",
  rank: "1",
  code: "'25006'",
  text: `case when pg_is_in_recovery() then 'the database is a standby'
    else 'the database is read-only' end`,
})}
where current_setting('transaction_read_only') = 'on'
union all
select 'trouble', 2, '3F000', 'the schema does not exist' where not exists (select from home)
union all
select 'trouble', 2, '42501', 'no USAGE on the schema' from home where not may_use
union all
select 'trouble', 3, '42P01', 'no table ' || name from found where oid is null
union all
select 'trouble', 4, '42703', 'no column ' || name || '.' || needed_column
from found, unnest(columns) as needed_column
where oid is not null and not exists (
  select from pg_catalog.pg_attribute
  where attrelid = oid and attname = needed_column and not attisdropped
)
union all
select 'trouble', 5, '42501', 'no ' || privilege || ' on ' || name
from found, unnest('{SELECT,INSERT,UPDATE,DELETE}'::text[]) as privilege
where oid is not null and not case privilege
  when 'DELETE' then has_table_privilege(oid, privilege)
  else has_any_column_privilege(oid, privilege) end
union all
select 'bookkeeping', 6,
  case when may_use and has_table_privilege(c.oid, 'SELECT') then 'readable'
    else 'unreadable' end,
  ''
from home join pg_catalog.pg_class c on c.relnamespace = home.oid and c.relname = '${BOOKKEEPING}'
union all
select 'setting', 6, current_setting('plan_cache_mode', true), ''
union all
select 'lock', 7, '', mode || ' on ' || name || ' (process ' || pid || ')'
from found join pg_catalog.pg_locks l on l.relation = found.oid
where granted and pid <> pg_backend_pid()
  and database = (select oid from pg_catalog.pg_database where datname = current_database())
  and mode in ('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')
union all
select 'started', 7, '', extract(epoch from pg_postmaster_start_time())::text
union all
select 'lag', 7, '', max(pg_wal_lsn_diff(
  case when not pg_is_in_recovery() then pg_current_wal_lsn() end, replay_lsn))::text
from pg_catalog.pg_stat_replication
having bool_or(replay_lsn is not null) and not pg_is_in_recovery()
order by rank, text`;
