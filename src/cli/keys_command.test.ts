import { describe, expect, it } from "vitest";
import { hashKey, isKey } from "../auth/api_keys.js";
import { parseAuthFile } from "../auth/auth_file.js";
import { runCommand } from "../testing/serve_process.js";

const keys = (...args: string[]) => runCommand(["keys", ...args]);

describe("checkpointd keys", () => {
  it("new prints the key and its entry for the auth file, each on its line", async () => {
    const { code, stdout, stderr } = await keys("new", "--id", "agents");
    expect({ code, stderr }).toEqual({ code: 0, stderr: "" });
    const [key = "", entry = "", ...rest] = stdout.split("\n");
    expect(rest).toEqual([""]);
    expect(isKey(key)).toBe(true);
    expect(JSON.parse(entry)).toEqual({ id: "agents", sha256: hashKey(key) });
    const other = await keys("new", "--id", "agents");
    expect(other.stdout.split("\n")[0]).not.toBe(key);
  });

  it("new prints an entry that the auth file takes, with its expiry", async () => {
    const { stdout } = await keys("new", "--id", "a b", "--expires", "2999-01-31T00:00:00+01:00");
    const entry = JSON.parse(stdout.split("\n")[1] as string);
    const grants = [{ operations: ["read"], threads: ["*"] }];
    const file = { keys: [entry], principals: [{ name: "a", keys: ["a b"], grants }] };
    const { keys: parsed } = parseAuthFile(JSON.stringify(file));
    expect(parsed.get(entry.sha256)).toEqual({
      id: "a b",
      sha256: entry.sha256,
      expiresAt: Date.parse("2999-01-30T23:00:00Z"),
    });
  });

  it.each([
    [[], "keys needs a command: new."],
    [["nwe", "--id", "a"], 'Unknown command "keys nwe". Did you mean keys new?'],
    [["new"], "keys new needs --id, a name for the key."],
    [["new", "--id", ""], "--id must be a name of 1 to 1024 characters"],
    [["new", "--id", "a\u0007"], "--id must be a name of 1 to 1024 characters"],
    [["new", "--id", "a", "--key", "ckpd_x"], "Unknown flag --key. Allowed are --id, --expires."],
    [["new", "--id", "a", "b"], 'Unexpected argument "b".'],
    [["new", "--id", "a", "--expires", "2999-01-31"], "--expires must be a time to come"],
    [["new", "--id", "a", "--expires", "2020-01-31T00:00:00Z"], "--expires must be a time to come"],
  ])("%j is refused with exit code 2 and a sentence", async (args, sentence) => {
    const { code, stdout, stderr } = await keys(...args);
    expect({ code, stdout, stderr }).toEqual({
      code: 2,
      stdout: "",
      stderr: expect.stringContaining(sentence),
    });
    expect(stderr).toContain("Run checkpointd keys --help for all flags.");
  });

  it("is explained by --help", async () => {
    for (const args of [["--help"], ["new", "-h"]]) {
      const { code, stdout } = await keys(...args);
      expect(code).toBe(0);
      expect(stdout).toMatch(/checkpointd keys new --id ID[\s\S]*--expires/);
    }
  });
});
