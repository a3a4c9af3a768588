/** Rows as they come from Postgres, and their columns by name. */
import type { Row } from "./db.js";

/** A column of a row: as text, null for NULL, undefined where the statement has no such column. */
export type Cell = Row[number] | undefined;

/**
 * Names the columns of a result once: `at` is the place of each in a row, and the others make SELECT
 * lists. A row stays the array that it is, which costs a reader nothing.
 */
export function createColumns<Name extends string>(...names: Name[]) {
  type Some = { [name in Name]?: string };
  const at = Object.fromEntries(names.map((name, i) => [name, i])) as Record<Name, number>;
  const some = (expressions: Some) => names.map((name) => expressions[name] ?? "null");
  const named = (expressions: Some) =>
    some(expressions).map((expression, i) =>
      `.${expression}`.endsWith(`.${names[i]}`) ? expression : `${expression} as ${names[i]}`,
    );
  return {
    at,
    /** The SELECT list, given the expression of each column. */
    all: (expressions: Record<Name, string>) => named(expressions).join(", "),
    /** The SELECT list of rows that have some of the columns; the others are null. */
    some: (expressions: Some) => named(expressions).join(", "),
    /** The same below a `union all`, where Postgres takes the names from above. */
    union: (expressions: Some) => some(expressions).join(", "),
    /** The SELECT list of a relation that has columns of these names. */
    names: names.join(", "),
  };
}

/** A column's text, "" for NULL. */
export function text(cell: Cell): string {
  return cell ? cell.toString("utf8") : "";
}

/** A column's bytes, none for NULL. */
export function bytes(cell: Cell): Uint8Array {
  return cell ?? new Uint8Array(0);
}
