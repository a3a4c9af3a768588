/**
 * Checkpoints whose JSON is too large to be told. jsonb keeps the number 1e131071 in ten bytes and
 * prints 128 KiB of it, so a row of some KB can print to more than Postgres can make (1 GB) or a
 * process should hold. A put refuses them; those that a direct saver stored must not break what
 * reads many rows: they are left out, reported, and an error where one is asked for by its name.
 */
import { CheckpointdError } from "../errors.js";
import type { Db, Parameter, Row, Run, Signal } from "./db.js";

/** The name of a checkpoint that was left out of an answer. */
export interface LeftOut {
  threadId: string;
  checkpointNs: string;
  checkpointId: string;
}

/** Bytes of printed JSON that are told at the most, of a checkpoint and of its metadata each. */
export const mostJsonBytes = 128 * 1024 * 1024;

/**
 * Levels of JSON that is told under guard. Postgres reads 16,000 with its usual stack, of which a walk
 * through them (`$.**`) takes 11,000 and a comparison (`@>`) 9,000; a put has no more than these.
 */
export const mostJsonLevels = 2_000;

/**
 * How a statement treats JSON that it prints: "all" prints it, and fails where that is too large
 * for Postgres; "guarded" looks at the numbers first, which costs a walk through each document, and
 * has null in the place of what is too large.
 */
export type JsonForm = "all" | "guarded";

/**
 * For how long statements are guarded after one has failed, or has printed what was too large to be
 * told, so that few do: each costs seconds.
 */
export const guardedMs = 60_000;

/**
 * Runs a statement that prints JSON, and again with a guard if Postgres could not print it, or at
 * once where that was so a short while ago.
 */
export async function runGuarded(
  db: Pick<Db, "guard">,
  run: Run,
  statement: (json: JsonForm) => string,
  parameters: readonly Parameter[],
  signal: Signal | undefined,
): Promise<Row[]> {
  return guarded(db, (json) => run(statement(json), parameters, signal));
}

/** The same for whatever runs such a statement. */
export async function guarded<T>(
  { guard }: Pick<Db, "guard">,
  use: (json: JsonForm) => Promise<T>,
): Promise<T> {
  if (performance.now() < guard.until) return use("guarded");
  try {
    return await use("all");
  } catch (error) {
    if (!isTooLarge(error)) throw error;
    const answer = await use("guarded");
    guard.until = performance.now() + guardedMs;
    return answer;
  }
}

/**
 * Whether Postgres says that a text grew beyond what it can make: 54000 beyond 1 GB, 53200 out of
 * memory before that, XX000 "invalid memory alloc request size". It says 54000 of other things too.
 */
export function isTooLarge(error: unknown): boolean {
  return /^(54000|53200|XX000)$/.test((error as { code?: string }).code ?? "");
}

/** A row of checkpoints in a FROM clause, in which what is too large to print is null. */
export const checkpointRows = (schema: string, json: JsonForm) =>
  json === "all"
    ? `${schema}.checkpoints`
    : `(
    select thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, created_at,
      ${printable("checkpoint", json)} as checkpoint, ${printable("metadata", json)} as metadata
    from ${schema}.checkpoints
  )`;

/**
 * A jsonb column, null if its numbers alone print to too much, or if it is too deep to be looked
 * through. The size of a number is taken from above, since to tell its digits Postgres would have to
 * print it.
 */
export function printable(column: string, json: JsonForm): string {
  if (json === "all") return column;
  return `case when not jsonb_path_exists(${column}, 'strict $.**{${mostJsonLevels + 1}}') and (
      select coalesce(sum(case when abs(n) >= 1e1000 then 131072 else 0 end + scale(n)), 0)
      from (
        select value::numeric as n
        from jsonb_path_query(${column}, 'strict $.**{0 to ${mostJsonLevels}} ? (@.type() == "number")') as value
        offset 0
      ) as numbers
    ) <= ${mostJsonBytes} then ${column} end`;
}

/** A text that was printed, null if it is too large to be told. */
export const tellable = (text: string) =>
  `case when octet_length(${text}) <= ${mostJsonBytes} then ${text} end`;

/** How many bytes a checkpoint's JSON prints to; nothing is counted of what is too large. */
export const jsonBytes = (c: string, json: JsonForm) =>
  ["checkpoint", "metadata"]
    .map((column) =>
      json === "all"
        ? `octet_length(${c}.${column}::text)`
        : `coalesce(octet_length((${printable(`${c}.${column}`, json)})::text), 0)`,
    )
    .join(" + ");

/** The error of a call that asks for such a checkpoint by its name. */
export function undeliverable(checkpointId: string): CheckpointdError {
  const which = checkpointId === "" ? "a checkpoint of this thread" : `checkpoint ${checkpointId}`;
  return new CheckpointdError(
    "failed_precondition",
    `${which}: its JSON prints to more than ${mostJsonBytes} bytes, as numbers such as 1e131071 do, ` +
      `or is nested more than ${mostJsonLevels} levels deep, and cannot be told; delete the thread`,
    { reason: "UNDELIVERABLE", limit: mostJsonBytes },
  );
}
