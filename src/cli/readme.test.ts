import { execFile } from "node:child_process";
import { existsSync } from "node:fs";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { delimiter, join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { Server } from "../server/main.js";
import { createDatabase, type TestDatabase } from "../testing/postgres.js";
import { startTestServer } from "../testing/server.js";
import { settings } from "./settings.js";

const run = promisify(execFile);
const root = fileURLToPath(new URL("../..", import.meta.url));
const readme = await readFile(`${root}README.md`, "utf8");

describe("the README", () => {
  let database: TestDatabase;
  let server: Server;
  beforeAll(async () => {
    database = await createDatabase();
    server = await startTestServer(database.url);
  });
  afterAll(async () => {
    await server?.drain();
    await database?.drop();
  });

  it("has the table of settings that the code has", () => {
    const rows = Object.values(settings).map(({ flag, env, fallback, help }) => {
      const shown = fallback === undefined ? "" : `\`${fallback}\``;
      return `| \`--${flag}\` | \`${env}\` | ${shown} | ${help} |`;
    });
    const table = /<!-- settings[^\n]*\n([\s\S]*?)<!-- \/settings -->/.exec(readme)?.[1];
    expect(table?.trim().split("\n").slice(2)).toEqual(rows);
  });

  it("has an agent that works as it stands", async () => {
    const [agent = ""] = block("ts");
    expect(agent).toContain("ConnectSaver.fromUrl");
    const { stdout } = await runScript(agent);
    expect(stdout.trim().split("\n").length).toBeGreaterThan(1);
    expect(stdout).toContain("source: 'input'");
  });

  it("has a browser client that works as it stands, also in Node", async () => {
    const page = block("ts").find((text) => text.includes("connect-web")) ?? "";
    const { stdout } = await runScript(page.replace("./gen/", `${root}dist/gen/`));
    expect(stdout).toContain('"source": "input"');
  });

  it("has a recovery worker that works as it stands", async () => {
    const [, worker = ""] = block("ts").filter((text) => text.includes("ConnectSaver"));
    expect(worker).toContain("recoverThreads");
    const { stdout } = await runScript(worker);
    expect(stdout).toContain("{ resumed: 0, failed: 0, lost: 0 }");
  });

  it("has commands of threads that work as they stand", async () => {
    const [threads = ""] = block("sh").filter((text) => text.startsWith("checkpointd threads"));
    const folder = await mkdtemp(join(tmpdir(), "checkpointd-readme-"));
    const main = JSON.stringify(join(root, "dist/src/cli/main.js"));
    for (const command of threads.split("\n")) {
      const { stdout, stderr } = await run(
        "bash",
        ["-c", command.replace(/^checkpointd/, `${JSON.stringify(process.execPath)} ${main}`)],
        { cwd: folder, env: { ...process.env, CHECKPOINTD_URL: server.url } },
      );
      expect(stderr, command).toBe("");
      expect(stdout, command).not.toBe("");
    }
    await rm(folder, { recursive: true });
  });

  it("has curl and grpcurl commands that work as they stand", async () => {
    const [grpcurl = "", curl = ""] = block("sh").filter((text) => /^(grp)?curl /.test(text));
    expect(grpcurl.split("\n")).toHaveLength(5);
    for (const command of [...grpcurl.split("\n"), curl]) {
      const { stdout } = await run("bash", ["-c", atTestServer(substitute(command))], {
        cwd: root,
        maxBuffer: 1e8,
      });
      expect(stdout, command).not.toBe("");
      if (command.includes("readme")) expect(stdout).toMatch(/"threadId": ?"readme"/);
    }
  });

  it("names scripts and files that are there", async () => {
    const { scripts } = JSON.parse(await readFile(`${root}package.json`, "utf8"));
    for (const [, script = ""] of readme.matchAll(/npm run ([\w:]+)/g)) {
      expect(Object.keys(scripts)).toContain(script);
    }
    for (const [, file = ""] of readme.matchAll(/`((?:src|packages|proto|\.ci)\/[\w./-]*)`/g)) {
      expect(existsSync(root + file), file).toBe(true);
    }
  });

  const atTestServer = (text: string) =>
    text.replaceAll("127.0.0.1:8080", `127.0.0.1:${server.port}`);

  /** Runs a module that imports `checkpointd` by its name: this package's own. */
  async function runScript(text: string) {
    const file = join(root, "dist", `readme_${process.pid}.mjs`);
    await writeFile(file, atTestServer(text));
    try {
      return await run(process.execPath, [file]);
    } finally {
      await rm(file);
    }
  }
});

/** The fenced blocks of a language, in order. */
function block(language: string): string[] {
  return [...readme.matchAll(new RegExp(`^\`\`\`${language}\\n([\\s\\S]*?)\\n\`\`\`$`, "gm"))].map(
    ([, text = ""]) => text,
  );
}

/** Where grpcurl or curl is not installed, buf's curl is asked the same; grpcurl's over reflection. */
function substitute(command: string): string {
  const [program = ""] = command.split(" ");
  const installed = (process.env.PATH ?? "")
    .split(delimiter)
    .some((folder) => existsSync(join(folder, program)));
  if (installed) return command;
  const buf = "node_modules/.bin/buf curl --http2-prior-knowledge --protocol";
  // It sets the content type itself.
  if (program === "curl") return command.replace(/^curl -s -H '[^']*'/, `${buf} connect`);
  const [, data = "", address = "", method = ""] =
    /^grpcurl -plaintext (-d '[^']*' )?(\S+) (\S+)/.exec(command) ?? [];
  if (method === "list" || method === "describe") {
    return `${buf} grpc --list-methods http://${address}`;
  }
  return `${buf} grpc ${data} http://${address}/${method}`;
}
