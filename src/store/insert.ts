/**
 * The parts of which the statements of puts are made, from the lists of columns in tables.ts. The
 * number of a parameter comes from the place where its value is named, so neither is counted by
 * hand. Texts are made once, when the service starts.
 */
import type { Parameter } from "./db.js";
import { type Column, columnNames, type Table } from "./tables.js";
import { mostSingleValues, type PackedBytes, packBytes, unpack, unpacked } from "./values.js";

/** Adds a parameter to a statement: given what takes its value, returns its `$` and number. */
export type Bind<Input> = (parameterOf: (input: Input) => Parameter) => string;

/** A statement that is run with many inputs. */
export interface Statement<Input> {
  text: string;
  parametersOf: (input: Input) => Parameter[];
}

/** Makes a statement of the text that `write` returns and the parameters it binds meanwhile. */
export function createStatement<Input>(write: (bind: Bind<Input>) => string): Statement<Input> {
  const bound: ((input: Input) => Parameter)[] = [];
  const text = write((parameterOf) => `$${bound.push(parameterOf)}`);
  return { text, parametersOf: (input) => bound.map((parameterOf) => parameterOf(input)) };
}

/** A part of a request, and the request it came with. */
export interface Sent<Request, Part> {
  request: Request;
  part: Part;
}

/** What one statement stores for any number of requests. */
export interface Batch<Request, Part, Row = Sent<Request, Part>> {
  /** In the order in which they are written. */
  requests: readonly Request[];
  /** The parts of all requests, in the order in which they are written. */
  rows: readonly Row[];
  /** Of each row its request, its part and its value. */
  requestOfRow: readonly Request[];
  partOfRow: readonly Part[];
  values: PackedBytes;
}

/** Makes a batch of requests and rows, which are in the order in which they are to be written. */
export function toBatch<Request, Part, Row extends Sent<Request, Part>>(
  table: Table<Request, Part>,
  requests: readonly Request[],
  rows: readonly Row[],
): Batch<Request, Part, Row> {
  const partOfRow = rows.map(({ part }) => part);
  return {
    requests,
    rows,
    requestOfRow: rows.map(({ request }) => request),
    partOfRow,
    values: packBytes(partOfRow.map((part) => table.blobOf?.(part))),
  };
}

/** What one statement stores for one request: a row for each of few parts. */
export interface Single<Request, Part> {
  request: Request;
  parts: readonly Part[];
}

/** Begins an insert; in its conflict clause a row that is there already is called `stored`. */
export const insertInto = (schema: string, table: Table<never, never>) =>
  `insert into ${schema}.${table.name} as stored (${columnNames(table).join(", ")})`;

/**
 * Rows that are stored already are left as they are, but locked (`do nothing` would not lock them):
 * - a prune that is about to remove a value as unused waits for this statement and then sees the
 *   checkpoint that names it;
 * - a deleteThread beside a putWrites that is repeated takes all of its writes or none.
 */
export const keepStored = (table: Table<never, never>) =>
  `on conflict (${keyOf(table)}) do update set type = stored.type where false`;

/** Rows that are stored already take what is new, of the columns that are replaced. */
export const replaceStored = (table: Table<never, never>) => {
  const names = columnsOf(table).flatMap(({ name, isReplaced }) => (isReplaced ? [name] : []));
  if (table.blobOf) names.push("blob");
  return `on conflict (${keyOf(table)}) do update
    set ${names.map((name) => `${name} = excluded.${name}`).join(", ")}`;
};

const columnsOf = ({ ofRequest, ofPart }: Table<never, never>): readonly Column<never>[] => [
  ...ofRequest,
  ...ofPart,
];

const keyOf = (table: Table<never, never>) =>
  columnsOf(table)
    .flatMap(({ name, isKey }) => (isKey ? [name] : []))
    .join(", ");

/** A column of `sent`: the parameter that has its values, and of which type that is. */
export interface SentArray {
  name: string;
  parameter: string;
  type: string;
}

/** Writes the relation `sent` of arrays. */
export const sentArrays = (arrays: readonly SentArray[]) =>
  `unnest(${arrays.map(({ parameter, type }) => `${parameter}::${type}`).join(", ")}) as sent (${arrays
    .map(({ name }) => name)
    .join(", ")})`;

/** Writes the relation `sent` of the requests of a batch: the columns of a table, and `more`. */
export const sentRequests = <Request>(
  bind: Bind<{ requests: readonly Request[] }>,
  table: Table<Request, never>,
  more: readonly Column<Request>[],
) => sentArrays(arraysOfRequests(bind, [...table.ofRequest, ...more]));

/** Of the requests of a batch, an array for each column. */
export const arraysOfRequests = <Request>(
  bind: Bind<{ requests: readonly Request[] }>,
  columns: readonly Column<Request>[],
): SentArray[] =>
  columns.map(({ name, of, type }) =>
    bindArray(bind, name, type, ({ requests }) => requests.map(of)),
  );

/**
 * Writes the relation `sent` of the rows of a batch: the columns of a table, `ofRequest` and `ofRow`
 * besides, and where the value of each is (start and length), for `unpacked`.
 */
export const sentRows = <Request, Part, Row>(
  bind: Bind<Batch<Request, Part, Row>>,
  table: Table<Request, Part>,
  ofRequest: readonly Column<Request>[],
  ofRow: readonly Column<Row>[] = [],
) => sentArrays(arraysOfRows(bind, table, ofRequest, ofRow));

/** Of the rows of a batch, an array for each column. */
export const arraysOfRows = <Request, Part, Row>(
  bind: Bind<Batch<Request, Part, Row>>,
  table: Pick<Table<Request, Part>, "ofRequest" | "ofPart">,
  ofRequest: readonly Column<Request>[],
  ofRow: readonly Column<Row>[],
): SentArray[] => [
  // A map by the column's own function: another one around it costs a call for each row.
  ...[...table.ofRequest, ...ofRequest].map(({ name, of, type }) =>
    bindArray(bind, name, type, ({ requestOfRow }) => requestOfRow.map(of)),
  ),
  ...table.ofPart.map(({ name, of, type }) =>
    bindArray(bind, name, type, ({ partOfRow }) => partOfRow.map(of)),
  ),
  ...ofRow.map(({ name, of, type }) => bindArray(bind, name, type, ({ rows }) => rows.map(of))),
  bindArray(bind, "start", "integer", ({ values }) => values.starts),
  bindArray(bind, "length", "integer", ({ values }) => values.lengths),
];

const bindArray = <Input>(
  bind: Bind<Input>,
  name: string,
  type: Column<never>["type"],
  valuesOf: (input: Input) => Parameter,
): SentArray => ({
  name,
  parameter: bind(valuesOf),
  type: `${type === "jsonb" ? "text" : type}[]`,
});

/** Writes the relation of one row that `unpacked` takes the values from, to be cross joined. */
export const sentValues = (bind: Bind<{ values: PackedBytes }>) =>
  unpack(bind(({ values }) => values.bytes));

/**
 * Writes the SELECT list, of the relation `sent`, that `insertInto` of the same table wants. `blob`
 * is the SQL of the value, `unpacked` unless it is made of something else besides.
 */
export const select = (table: Table<never, never>, blob = unpacked) => {
  const columns = columnsOf(table).map(({ name, type }) =>
    type === "jsonb" ? `sent.${name}::jsonb` : `sent.${name}`,
  );
  return (table.blobOf ? [...columns, blob] : columns).join(", ");
};

/** Returns VALUES for so many rows of a table: one for each part, or the one of the request. */
export type ValuesOf<Request, Part> = (table: Table<Request, Part>, rows: number) => string;

/**
 * Returns the statement, with its parameters, that stores one request with at most
 * `mostSingleValues` parts. `write` makes the text for so many parts. A parameter for each column
 * and row costs less than the arrays of a batch where there are few: a lone put takes 0.31 ms
 * instead of 0.39.
 */
export function createSingleStatements<Request, Part>(
  write: (valuesOf: ValuesOf<Request, Part>, parts: number) => string,
): (request: Request, parts: readonly Part[]) => { text: string; parameters: Parameter[] } {
  const statements = Array.from({ length: mostSingleValues + 1 }, (_, parts) =>
    createStatement<Single<Request, Part>>((bind) => write(bindValues(bind), parts)),
  );
  return (request, parts) => {
    const { text, parametersOf } = statements[parts.length]!;
    return { text, parameters: parametersOf({ request, parts }) };
  };
}

function bindValues<Request, Part>(bind: Bind<Single<Request, Part>>): ValuesOf<Request, Part> {
  const cast = (parameter: string, { type }: Column<never>) =>
    `${parameter}::${type === "jsonb" ? "text::jsonb" : type}`;
  const ofRequest = new Map<Column<Request>, string>();
  return (table, count) => {
    for (const column of table.ofRequest) {
      if (ofRequest.has(column)) continue;
      ofRequest.set(
        column,
        cast(
          bind(({ request }) => column.of(request, 0)),
          column,
        ),
      );
    }
    const rows = Array.from({ length: count }, (_, i) => {
      const columns = [
        ...table.ofRequest.map((column) => ofRequest.get(column)),
        ...table.ofPart.map((column) =>
          cast(
            bind(({ parts }) => column.of(parts[i] as Part, i)),
            column,
          ),
        ),
      ];
      const { blobOf } = table;
      if (blobOf) columns.push(`${bind(({ parts }) => blobOf(parts[i] as Part) ?? null)}::bytea`);
      return `(${columns.join(", ")})`;
    });
    return `values ${rows.join(", ")}`;
  };
}
