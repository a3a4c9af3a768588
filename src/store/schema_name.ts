import { clean } from "../clean.js";

/** Throws one sentence when `schema` cannot be the name of a schema of ours. */
export function checkSchemaName(schema: string): void {
  const bytes = Buffer.byteLength(schema);
  if (bytes === 0 || bytes > 63) {
    throw new Error(`the schema's name must have 1 to 63 bytes, this one has ${bytes}`);
  }
  // node-pg-migrate and LangGraph's JS saver put the name between quotes as it is.
  if (/["'\\]/.test(schema) || clean(schema) !== schema) {
    throw new Error(
      "the schema's name must not hold quotes, backslashes, control characters or marks of writing direction",
    );
  }
  if (/^pg_|^information_schema$/.test(schema)) {
    throw new Error(`the schema ${schema} belongs to Postgres itself: choose another name`);
  }
}

/** The name of a schema, checked before, between quotes. */
export function quoteSchema(name: string): string {
  return `"${name}"`;
}
