import { expect, it } from "vitest";
import { readMigrationFiles } from "./migration_files.js";
import { toStatements } from "./statements.js";

it("ends a statement at a semicolon that is none of a string's, a name's, a body's or a comment's", () => {
  const script = `-- one; two
select ';', ';''', ";" ; do $do$ begin; perform $a$;$a$; end $do$;
select 1 -- the end;`;
  expect(toStatements(script)).toEqual([
    `-- one; two\nselect ';', ';''', ";" `,
    " do $do$ begin; perform $a$;$a$; end $do$",
    "\nselect 1 -- the end;",
  ]);
  expect(toStatements("\n-- nothing;\n")).toEqual([]);
});

it("leaves nothing out of the migrations", async () => {
  for (const { text } of await readMigrationFiles()) {
    const ended = /;\s*$/.test(text) ? ";" : "";
    expect(toStatements(text).join(";").trim() + ended).toBe(text.trim());
  }
});
