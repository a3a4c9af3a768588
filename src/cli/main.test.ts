import { describe, expect, it } from "vitest";
import { createDatabase } from "../testing/postgres.js";
import { runCommand } from "../testing/serve_process.js";

describe("the command line", () => {
  it.each([
    [["--version"], /^\d+\.\d+\.\d+\n$/],
    [["--help"], /Usage:[\s\S]*--database-url[\s\S]*Exit codes/],
    [["serve", "--help"], /Usage:/],
    [["migrate", "-h"], /Usage:/],
  ])("%j prints to standard output and exits 0", async (args, expected) => {
    const { code, stdout, stderr } = await runCommand(args);
    expect({ code, stderr }).toEqual({ code: 0, stderr: "" });
    expect(stdout).toMatch(expected);
  });

  it.each([
    [[], {}, "Usage:"],
    [["surf"], {}, 'Unknown command "surf". Commands are serve, migrate, threads, keys.'],
    [["migrat"], {}, 'Unknown command "migrat". Did you mean migrate?'],
    [["--port", "1"], {}, "The command comes before its flags, such as --port."],
    [["serve", "--prot", "1"], {}, "Unknown flag --prot. Did you mean --port?"],
    [["serve", "--frobnicate"], {}, "Unknown flag --frobnicate. Allowed are --database-url,"],
    [["serve", "extra"], {}, 'Unexpected argument "extra".'],
    [
      ["serve", "--port", "99999"],
      {},
      '--port must be a whole number from 0 to 65535, or none, not "99999".',
    ],
    [["serve", "--port"], {}, "--port needs a value: a whole number from 0 to 65535, or none."],
    [["serve", "--host", "--port", "1"], {}, "--host needs a value"],
    [["serve", "--pool-size=0"], {}, "--pool-size must be a whole number from 1 to 1000"],
    [["serve", "--drain-timeout", "5"], {}, "--drain-timeout must be a duration from 1ms to 60m"],
    [["serve", "--max-message-size", "1GB"], {}, "--max-message-size must be a size from 1KiB"],
    [["serve", "--migrate=maybe"], {}, '--migrate must be true or false, not "maybe".'],
    [["serve", "--schema", "pg_x"], {}, "--schema must be a schema name"],
    [["serve", "--cors-origins", "example.com"], {}, "--cors-origins must be origins such as"],
    [["serve", "--migrate=flase"], {}, 'true or false, not "flase". Did you mean false?'],
    [["serve", "--log-level=inf"], {}, 'debug, not "inf". Did you mean info?'],
    [
      ["serve", "--retention", "keep=2"],
      {},
      '--retention is wrong in rule 1, "keep=2": there is no condition "keep". Did you mean keep_last?',
    ],
    [
      ["migrate", "--port", "1"],
      {},
      "Unknown flag --port. Allowed are --database-url, --database-url-file,",
    ],
    [["serve"], { CHECKPOINTD_LOG_LEVEL: "loud" }, "CHECKPOINTD_LOG_LEVEL must be one of silent,"],
    [["serve"], { DATABASE_URL: "mysql://secret@x" }, "DATABASE_URL must be a URL such as"],
    [["serve"], { DATABASE_URL: "postgres://u:secret%zz@x/y" }, "DATABASE_URL must be a URL such"],
    [["serve"], { DATABASE_URL: "postgres://u:secret@x:y/z" }, "DATABASE_URL must be a URL such"],
    [
      ["migrate"],
      {},
      "migrate needs a database: give --database-url-file or --database-url, or set",
    ],
    [["migrate", "--dry-run=1"], {}, "--dry-run takes no value."],
  ])("%j with %j is refused with exit code 2 and a sentence", async (args, env, sentence) => {
    const { code, stdout, stderr } = await runCommand(args, env as Record<string, string>);
    expect({ code, stdout }).toEqual({ code: 2, stdout: "" });
    expect(stderr).toContain(sentence);
    expect(stderr).not.toContain("secret");
  });

  it("checkpointd-server serves unless a command is given", async () => {
    const server = (...args: string[]) => runCommand(args, {}, undefined, "checkpointd_server.js");
    for (const args of [
      ["--prot", "1"],
      ["serve", "--prot", "1"],
    ]) {
      expect((await server(...args)).stderr).toContain("Unknown flag --prot. Did you mean --port?");
    }
    expect((await server("migrate")).stderr).toContain("migrate needs a database");
    expect((await server("surf")).stderr).toContain('Unknown command "surf".');
    expect(await server("--version")).toEqual(await runCommand(["--version"]));
    expect(await server("--help")).toEqual(await runCommand(["--help"]));
    expect((await server("threads", "--help")).stdout).toContain("checkpointd threads ls");
  });

  it("migrate prints its SQL, applies it, and then has nothing to do", async () => {
    const database = await createDatabase({ template: false });
    const env = { DATABASE_URL: database.url };
    const dry = await runCommand(["migrate", "--dry-run"], env);
    expect(dry.stdout).toContain("CREATE TABLE IF NOT EXISTS checkpoints");
    const first = await runCommand(["migrate"], env);
    expect(first).toMatchObject({ code: 0, stdout: expect.stringContaining("Applied 0001_") });
    const second = await runCommand(["migrate"], env);
    expect(second).toMatchObject({ code: 0, stdout: expect.stringContaining("Nothing to do") });
    expect(await runCommand(["migrate", "--dry-run"], env)).toMatchObject({
      code: 0,
      stdout: "",
      stderr: "Nothing to do: the tables are up to date.\n",
    });
    expect(await runCommand(["migrate", "--distribute"], env)).toMatchObject({
      code: 1,
      stderr: expect.stringContaining("this database has no Citus"),
    });
    expect(await runCommand(["migrate", "--distribute", "--dry-run"], env)).toMatchObject({
      code: 2,
      stderr: expect.stringContaining("give one of them"),
    });
    await database.drop();
  });

  it("migrate exits 1 when the database cannot be reached", async () => {
    const { code, stderr } = await runCommand(["migrate"], {
      DATABASE_URL: "postgres://127.0.0.1:1/none",
    });
    expect(code).toBe(1);
    expect(stderr).toContain("ECONNREFUSED");
    expect(stderr).toMatch(/^checkpointd: the database cannot be reached: see that it runs .*\n$/);
  });

  it("migrate exits 1 with a sentence when the password or the name is wrong", async () => {
    const database = await createDatabase({ template: false });
    const wrong = new URL(database.url);
    wrong.password = "s3cr3t";
    for (const args of [["migrate"], ["migrate", "--dry-run"]]) {
      const refused = await runCommand(args, { DATABASE_URL: wrong.href });
      expect(refused).toMatchObject({ code: 1, stdout: "" });
      expect(refused.stderr).toMatch(/^checkpointd: the database refuses the user or .*\n$/);
      expect(refused.stderr).not.toContain("s3cr3t");
    }
    const nobody = new URL(database.url);
    nobody.pathname = "/nobody";
    expect(await runCommand(["migrate"], { DATABASE_URL: nobody.href })).toMatchObject({
      code: 1,
      stderr: expect.stringMatching(/^checkpointd: the database that .* does not exist: .*\n$/),
    });
    await database.drop();
  });
});
