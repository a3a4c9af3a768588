/** README.md and docs/: every command is run as it stands, and what they name is there. */
import { execFile, spawn } from "node:child_process";
import { existsSync } from "node:fs";
import { mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { delimiter, dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { Server } from "../server/server.js";
import { createDatabase, type TestDatabase } from "../testing/postgres.js";
import { startTestServer } from "../testing/test_server.js";
import { settings } from "./settings.js";

const run = promisify(execFile);
const root = fileURLToPath(new URL("../..", import.meta.url));
const main = `${JSON.stringify(process.execPath)} ${JSON.stringify(join(root, "dist/src/cli/main.js"))}`;

interface Page {
  name: string;
  text: string;
}

/** A fenced block of a page. */
interface Block {
  page: string;
  language: string;
  text: string;
  /** Why it is not run here; undefined: it is. */
  notRun: string | undefined;
}

const toPage = async (name: string): Promise<Page> => ({
  name,
  text: await readFile(join(root, name), "utf8"),
});
const docs = (await readdir(join(root, "docs")))
  .filter((name) => name.endsWith(".md"))
  .sort()
  .map((name) => `docs/${name}`);
/** The pages with commands, in the order in which these are run: the first makes a thread. */
const pages = await Promise.all(["README.md", ...docs].map(toPage));
const maps = await Promise.all(
  ["ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md", "src/testing/README.md"]
    .filter((name) => existsSync(join(root, name)))
    .map(toPage),
);
const readme = pages[0] as Page;
const blocks = pages.flatMap(blocksOf);
const commands = blocks.filter(({ language, notRun }) => language === "sh" && !notRun);
const scripts = blocks.filter(({ language, notRun }) => language === "ts" && !notRun);

/** What a script of the pages prints, by a word that is in no other. */
const printed: [word: string, output: string][] = [
  ["getStateHistory", "source: 'input'"],
  ["connect-web", "messages ai: Hello!"],
  ["keyring", '{ diagnosis: "nobody\'s business" }'],
  ["recoverThreads", "{ resumed: 0, failed: 0, stuck: 0, skipped: 0, lost: 0 }"],
];

describe("README and docs", () => {
  let database: TestDatabase;
  /** Of each page one, at first without tables, for commands that have a database of their own. */
  const own = new Map<string, TestDatabase>();
  let server: Server;
  let folder: string;
  beforeAll(async () => {
    database = await createDatabase();
    for (const { name } of pages) own.set(name, await createDatabase({ template: false }));
    server = await startTestServer(database.url);
    folder = await mkdtemp(join(tmpdir(), "checkpointd-readme-"));
  });
  afterAll(async () => {
    await server?.drain();
    for (const { drop } of own.values()) await drop();
    await database?.drop();
    await rm(folder, { recursive: true });
  });

  it("have a README that is read in a minute", () => {
    expect(readme.text.trimEnd().split("\n").length).toBeLessThanOrEqual(120);
  });

  it("have the table of settings that the code has", () => {
    const rows = Object.values(settings).map(({ flag, env, fallback, help }) => {
      const shown = fallback === undefined ? "" : `\`${fallback}\``;
      return `| \`--${flag}\` | \`${env}\` | ${shown} | ${help} |`;
    });
    const { text } = pages.find(({ name }) => name === "docs/operate.md") as Page;
    const table = /<!-- settings[^\n]*\n([\s\S]*?)<!-- \/settings -->/.exec(text)?.[1];
    expect(table?.trim().split("\n").slice(2)).toEqual(rows);
  });

  it("say what to do at each reason of an error", async () => {
    const source = await readFile(`${root}src/errors.ts`, "utf8");
    const reasons = [...source.matchAll(/^ {2}\| "([A-Z_]+)"/gm)].map(([, reason]) => reason);
    expect(reasons.length).toBeGreaterThan(30);
    const { text } = pages.find(({ name }) => name === "docs/operate.md") as Page;
    const table = text.slice(text.indexOf("| reason | code |"));
    const told = [...table.matchAll(/^\| (`[A-Z_`, ]+`) \|/gm)].flatMap(([, cell = ""]) =>
      cell.split(", ").map((reason) => reason.replaceAll("`", "")),
    );
    expect(told.sort()).toEqual(reasons.sort());
    const proto = await readFile(`${root}proto/checkpointd/v1/checkpoint.proto`, "utf8");
    for (const reason of reasons) expect(proto).toMatch(new RegExp(`// .*\\b${reason}\\b`));
  });

  it.each(scripts)("$page: a script works as it stands: $text", async ({ text }) => {
    const [expected] = printed.filter(([word]) => text.includes(word));
    expect(expected, "what the script prints is listed above").toBeDefined();
    const { stdout } = await runScript(text);
    expect(stdout).toContain(expected?.[1]);
  });

  it("have each of the scripts that are told to be there", () => {
    for (const [word] of printed) {
      expect(
        scripts.filter(({ text }) => text.includes(word)),
        word,
      ).not.toEqual([]);
    }
  });

  it("have a README with the commands of grpcurl and of threads", () => {
    const first = commands.filter(({ page }) => page === "README.md").map(({ text }) => text);
    expect(first.find((text) => text.startsWith("grpcurl"))?.split("\n")).toHaveLength(5);
    expect(first.find((text) => text.startsWith("checkpointd threads"))).toBeDefined();
  });

  it.each(commands)("$page: commands work as they stand: $text", async ({ page, text }) => {
    const databaseUrl = (own.get(page) as TestDatabase).url;
    for (const command of text.split("\n")) {
      if (/\bcheckpointd serve\b/.test(command)) {
        await expectServed(command, databaseUrl);
        continue;
      }
      // Small systems lack these; CI runs the page once more with what it has (test:grpcurl).
      const piped = [...command.matchAll(/\| (curl|jq|tr) /g)].map(([, program = ""]) => program);
      if (!piped.every(isInstalled)) continue;
      const { stdout, stderr } = await run("bash", ["-c", toRun(command, databaseUrl)], {
        cwd: command.includes("curl ") ? root : folder,
        env: environment(databaseUrl),
        maxBuffer: 1e8,
      });
      // Hints are told there, and what migrate has come to, step by step.
      expect(stdout + stderr, command).not.toBe("");
      const hint = command.includes("checkpointd threads ls") ? /^(No threads\.\n)?$/ : /^$/;
      if (!command.includes("checkpointd migrate")) expect(stderr, command).toMatch(hint);
      if (command.includes("| jq")) {
        expect(stdout).toMatch(/^messages$/m);
        expect(stdout).toContain("AIMessage");
      } else if (command.includes("curl ") && command.includes('"readme"')) {
        expect(stdout).toMatch(/"threadId": ?"readme"/);
      }
    }
  });

  it("have these commands that are not run here, and say why", () => {
    const list = blocks
      .filter(({ notRun }) => notRun)
      .map(({ page, text, notRun }) => `${page}: ${text.split("\n")[0]}: ${notRun}`);
    expect(list).toEqual([
      "README.md: npx checkpointd-server  # the service, with a Postgres of its own, on 127.0.0.1:8080: .ci/packages runs both with the packed files",
      "README.md: DATABASE_URL=postgres://user:password@host:5432/database npx checkpointd-server: .ci/packages serves with the packed files, docs/operate.md with a database",
      "README.md: npm ci: .ci/packages packs, installs and uses both packages",
      'docs/clients.md: const token = async () => (await readFile("/var/run/secrets/token", "utf8")).trim();: src/client/credential.test.ts and endpoint.test.ts have such a function and files',
      "docs/operate.md: npm pack --workspace checkpointd-server --pack-destination /tmp: .ci/packages packs and installs the package; the second is an example's folder",
      "docs/operate.md: checkpointd serve --token-file /var/lib/checkpointd/key: src/cli/listening.test.ts starts servers so, with files of its own",
      "docs/operate.md: docker build -f deploy/Dockerfile -t checkpointd .: needs Docker; .ci/image.mjs carries out its steps",
      "docs/operate.md: docker compose -f deploy/compose.yaml up --build --detach: needs Docker; npm run test:deploy runs what its containers run",
      "docs/operate.md: kubectl create secret generic checkpointd-database --from-file=url --from-file=migrate-url: needs a cluster; npm run test:deploy renders the chart",
      "docs/operate.md: npm install --prefix /opt/checkpointd --omit=optional /tmp/checkpointd-server-0.1.0.tgz: needs systemd; npm run test:deploy has it analyze the units",
      'docs/security.md: import { DecryptCommand, GenerateDataKeyCommand, KMSClient } from "@aws-sdk/client-kms";: needs AWS; src/client/encryption.test.ts has keys like these',
    ]);
  });

  it("name scripts, files, pages and tests that are there", async () => {
    const { scripts } = JSON.parse(await readFile(`${root}package.json`, "utf8"));
    const missing: string[] = [];
    for (const { name, text } of [...pages, ...maps]) {
      const lacks = (what: string) => missing.push(`${name}: ${what}`);
      for (const [, script = ""] of text.matchAll(/npm run ([\w:]+)/g)) {
        if (!(script in scripts)) lacks(script);
      }
      for (const [, file = ""] of text.matchAll(
        /`((?:src|packages|proto|bench|docs|gen|migrations|examples|\.ci)\/[\w./-]*)`/g,
      )) {
        if (!existsSync(root + file)) lacks(file);
      }
      for (const [, link = "", anchor] of text.matchAll(/\]\(([\w./-]*)(?:#([\w-]+))?\)/g)) {
        const file = link === "" ? join(root, name) : join(root, dirname(name), link);
        if (!existsSync(file)) lacks(link);
        else if (anchor && !(await anchorsOf(file)).includes(anchor)) lacks(`${link}#${anchor}`);
      }
      for (const [, file = "", test = ""] of text.matchAll(/`(src\/[\w./-]+)`: "([^"]+)"/g)) {
        const source = existsSync(root + file) ? await readFile(root + file, "utf8") : "";
        if (!source.includes(test)) lacks(`${file}: "${test}"`);
      }
    }
    expect(missing).toEqual([]);
  });

  const atTestServer = (text: string) =>
    text.replaceAll("127.0.0.1:8080", `127.0.0.1:${server.port}`);

  const environment = (databaseUrl: string) => ({
    ...process.env,
    CHECKPOINTD_URL: server.url,
    CHECKPOINTD_PORT: "0",
    DATABASE_URL: databaseUrl,
  });

  const toRun = (command: string, databaseUrl: string) =>
    atTestServer(/^(grpcurl|curl -s -H) /.test(command) ? substitute(command) : fetched(command))
      .replaceAll("postgres://user:password@host:5432/database", databaseUrl)
      .replace(/\bcheckpointd (?=serve|migrate|threads|keys)/, `${main} `);

  /** Starts the service, and ends it when it is ready. */
  async function expectServed(command: string, databaseUrl: string) {
    const child = spawn("bash", ["-c", `exec env ${toRun(command, databaseUrl)}`], {
      env: environment(databaseUrl),
    });
    let said = "";
    const ended = new Promise((resolve) => child.on("exit", (code) => resolve(code)));
    await new Promise<void>((resolve) => {
      child.stderr.on("data", (chunk) => (said += chunk));
      child.stdout.on("data", (chunk) => {
        said += chunk;
        if (said.includes("checkpointd is ready")) resolve();
      });
      void ended.then(() => resolve());
    });
    child.kill();
    expect(await ended, said).toBe(0);
    expect(said).toContain("checkpointd is ready");
  }

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

/** The fenced blocks of a page, also those that belong to a point of a list. */
function blocksOf({ name, text }: Page): Block[] {
  const fenced = /(?:<!-- not run: (.*) -->\n)?^( *)```(\w+)\n([\s\S]*?)\n *```$/gm;
  return [...text.matchAll(fenced)].map(([, notRun, indent = "", language = "", body = ""]) => ({
    page: name,
    language,
    text: body.replaceAll(new RegExp(`^${indent}`, "gm"), ""),
    notRun,
  }));
}

const isInstalled = (program: string) =>
  (process.env.PATH ?? "").split(delimiter).some((folder) => existsSync(join(folder, program)));

/** Where curl is not installed, a plain GET is Node's. */
function fetched(command: string): string {
  const [, url] = /^curl -s (http\S+)$/.exec(command) ?? [];
  if (!url || isInstalled("curl")) return command;
  return `node -e 'fetch("${url}").then((answer) => answer.text()).then(console.log)'`;
}

/** The anchors of a page's headings, as GitHub makes them. */
async function anchorsOf(file: string): Promise<string[]> {
  const text = await readFile(file, "utf8");
  return [...text.matchAll(/^#+ (.*)$/gm)].map(([, heading = ""]) =>
    heading
      .toLowerCase()
      .replaceAll(/[^\w -]/g, "")
      .replaceAll(" ", "-"),
  );
}

/** Where grpcurl or curl is not installed, buf's curl is asked the same; grpcurl's over reflection. */
function substitute(command: string): string {
  const [program = ""] = command.split(" ");
  if (isInstalled(program)) return command;
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
