import { describe, expect, it } from "vitest";
import { readFlags } from "../settings/flags.js";
import { runCommand } from "../testing/serve_process.js";
import { subcommands } from "./threads_command.js";
import { connectionFlags } from "./threads_flags.js";

const threads = (...args: string[]) => runCommand(["threads", ...args]);

describe("the command line of threads", () => {
  it.each([
    [[], "threads needs one of ls, show,"],
    [["list"], 'Unknown command "threads list". Did you mean threads ls?'],
    [["toString"], 'Unknown command "threads toString". Commands are ls, show,'],
    [["--url", "x"], "The command comes before its flags, such as --url."],
    [["ls", "extra"], 'Unexpected argument "extra". Usage: checkpointd threads ls [flags]'],
    [["cp", "a"], "Usage: checkpointd threads cp SOURCE TARGET [flags]"],
    [["show"], "Usage: checkpointd threads show THREAD"],
    [
      ["ls", "--colour"],
      "Unknown flag --colour. Allowed are --url, --token-file, --tls-ca, --header, --status,",
    ],
    [["ls", "--limt", "1"], "Unknown flag --limt. Did you mean --limit?"],
    [["ls", "--keep-last", "1"], "Unknown flag --keep-last."],
    [["ls", "--limit", "few"], '--limit must be a whole number from 0 to 999999999, not "few"'],
    [["ls", "--limit"], "--limit needs a value: a whole number from 0"],
    [["ls", "--json=1"], "--json takes no value."],
    [["ls", "--status", "broken"], "--status must be some of completed,"],
    [["ls", "--status=pendig"], 'not "pendig". Did you mean pending?'],
    [["ls", "--metadata", "[1]"], "--metadata must be a JSON object"],
    [["ls", "--updated-after", "then"], "--updated-after must be a time"],
    [["ls", "--updated-after", "7"], "--updated-after must be a time"],
    [["ls", "--url", "ftp://x"], "--url: the URL must begin with http"],
    [["ls", "--header", "oops"], '--header must be "name: value"'],
    [["prune"], "prune needs --keep-last N or --delete, and not both"],
    [["prune", "--keep-last", "1", "--delete"], "prune needs --keep-last N or --delete, and not"],
    [["prune", "--keep-last", "0"], "--keep-last must be a whole number from 1"],
    [["prune", "t", "--keep-last", "1", "--prefix", "t"], "prune takes threads or a filter"],
    [["prune", "--delete", "--older-than", "old"], "--older-than must be an age"],
  ])("%j is refused with exit code 2 and a sentence", async (args, sentence) => {
    const { code, stderr } = await threads(...args);
    expect({ code, stderr }).toEqual({ code: 2, stderr: expect.stringContaining(sentence) });
    expect(stderr).toContain("Run checkpointd threads --help for all flags.");
  });

  it("is explained by --help, each flag", async () => {
    const { code, stdout: help } = await threads("--help");
    expect(code).toBe(0);
    expect(help).toMatch(/checkpointd threads prune \[THREAD\.\.\.\]/);
    for (const { flags } of Object.values(subcommands)) {
      for (const { flag, help: meaning } of Object.values({ ...connectionFlags, ...flags })) {
        expect(help).toContain(`  --${flag}  ${meaning}`);
      }
    }
  });

  it("gathers headers", () => {
    const args = ["--header", "a: 1", "--header=Authorization: Bearer x:y", "--header", "a: 2"];
    const { headers, url } = readFlags(connectionFlags, args, {}).values;
    expect({ headers, url }).toEqual({
      headers: { a: "2", Authorization: "Bearer x:y" },
      url: "http://127.0.0.1:8080",
    });
    const secret = () => readFlags(connectionFlags, ["--header", "Bearer secret"], {});
    expect(secret).toThrow('--header must be "name: value".');
  });

  it("takes what comes after -- as it is", async () => {
    const { code, stderr } = await threads("show", "--url", "http://127.0.0.1:1", "--", "--help");
    expect({ code, stderr }).toEqual({
      code: 1,
      stderr: expect.stringContaining("127.0.0.1:1: ["),
    });
  });
});
