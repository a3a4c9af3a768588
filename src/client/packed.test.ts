/**
 * The agent's package as it is packed, installed beside LangGraph and run in every environment that
 * the registry has: modules and CommonJS on Node, TypeScript in each of its modes, Jest, bundlers,
 * Next.js, Bun and Deno. Run by `npm run test:clients`.
 */
import { execFile, spawn } from "node:child_process";
import { existsSync } from "node:fs";
import { mkdir, mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { Server } from "../server/server.js";
import { createDatabase, type TestDatabase } from "../testing/postgres.js";
import { startTestServer } from "../testing/test_server.js";

const exec = promisify(execFile);
const root = fileURLToPath(new URL("../..", import.meta.url));

/** What an environment may take, on a busy machine and with a slow registry. */
const timeoutMs = 300_000;

let folder: string;
let database: TestDatabase;
let server: Server;

/** Nobody is told that this was run, nor asked for a newer version. */
const quiet = {
  ...process.env,
  NO_COLOR: "1",
  NEXT_TELEMETRY_DISABLED: "1",
  DENO_NO_UPDATE_CHECK: "1",
};

/** Runs a program in the folder where the package is installed; throws with what it printed. */
async function run(program: string, args: string[], cwd = folder): Promise<string> {
  const env: NodeJS.ProcessEnv = { ...quiet, CHECKPOINTD_URL: server.url };
  // vitest's own would make Jest and Next.js believe that they are under test.
  for (const name of Object.keys(env)) if (/^(VITEST|NODE_ENV$)/.test(name)) delete env[name];
  try {
    const { stdout } = await exec(program, args, {
      cwd,
      env,
      timeout: timeoutMs - 10_000,
      maxBuffer: 1e8,
    });
    return stdout;
  } catch (error) {
    const { stdout = "", stderr = "", message } = error as Record<string, string>;
    throw new Error(`${message}\n${stdout.slice(-4000)}\n${stderr.slice(-4000)}`);
  }
}

const bin = (name: string) => path.join(folder, "node_modules/.bin", name);
const install = (...packages: string[]) =>
  run("npm", ["install", "--silent", "--no-audit", "--no-fund", "--save-exact", ...packages]);

/** Writes files into a folder of their own inside the one where the package is installed. */
async function write(name: string, files: Record<string, string>): Promise<string> {
  const dir = path.join(folder, name);
  for (const [file, text] of Object.entries(files)) {
    await mkdir(path.dirname(path.join(dir, file)), { recursive: true });
    await writeFile(path.join(dir, file), text);
  }
  return dir;
}

const imports = `
import { BaseCheckpointSaver } from "@langchain/langgraph-checkpoint";
import { MessagesAnnotation, START, StateGraph } from "@langchain/langgraph";
import { ConnectSaver, errorDetail, LEASE_TOKEN } from "checkpointd";
import { CheckpointService, decodeValue } from "checkpointd/client";
`;
const requires = imports.replaceAll(/import (\{.*\}) from (".*");/g, "const $1 = require($2);");

/** An agent: a graph runs, its state is read back, an error names its field. Both ways to the service. */
const agent = `
async function runAgent(thread) {
  const seen = [];
  for (const session of [true, false]) {
    const checkpointer = ConnectSaver.fromUrl(process.env.CHECKPOINTD_URL ?? "", { session });
    if (!(checkpointer instanceof BaseCheckpointSaver)) throw new Error("not LangGraph's own saver");
    const graph = new StateGraph(MessagesAnnotation)
      .addNode("agent", () => ({ messages: [{ role: "assistant", content: "Hello!" }] }))
      .addEdge(START, "agent")
      .compile({ checkpointer });
    const config = { configurable: { thread_id: thread + session } };
    await graph.invoke({ messages: [{ role: "user", content: "Hi" }] }, config);
    const { values } = await graph.getState(config);
    seen.push(...values.messages.map((message) => message.content));
    let listed = 0;
    for await (const _ of graph.getStateHistory(config)) listed++;
    const refused = await checkpointer.threads.get("\\0").catch((error) => error.message);
    const wrong = await checkpointer
      .getTuple({ configurable: { thread_id: "x".repeat(100_000) } })
      .catch((error) => errorDetail(error)?.field);
    seen.push(listed, refused.includes("NUL"), wrong);
    await checkpointer.end();
  }
  const shown = decodeValue({ type: "json", data: new TextEncoder().encode("[1]") });
  seen.push(shown, CheckpointService.typeName, LEASE_TOKEN);
  return JSON.stringify(seen);
}
`;
const once = ["Hi", "Hello!", 3, true, "thread_id"];
const right = JSON.stringify([
  ...once,
  ...once,
  { kind: "json", value: [1] },
  "checkpointd.v1.CheckpointService",
  "__checkpointd_lease",
]);
const main = (name: string) => `runAgent("${name}").then(console.log);\n`;

beforeAll(async () => {
  database = await createDatabase();
  server = await startTestServer(database.url);
  folder = await mkdtemp(path.join(tmpdir(), "checkpointd-packed-"));
  await exec("npm", ["pack", "--silent", "--pack-destination", folder], { cwd: root });
  const [packed = ""] = await readdir(folder);
  const { devDependencies } = JSON.parse(await readFile(path.join(root, "package.json"), "utf8"));
  await writeFile(path.join(folder, "package.json"), `{ "private": true }`);
  const langgraph = ["@langchain/langgraph", "@langchain/core"].map(
    (name) => `${name}@${devDependencies[name]}`,
  );
  await install(`./${packed}`, ...langgraph);
}, timeoutMs);
afterAll(async () => {
  await server?.drain();
  await database?.drop();
  await rm(folder, { recursive: true, force: true });
});

describe("on Node", () => {
  it("as a module", { timeout: timeoutMs }, async () => {
    const dir = await write("esm", { "agent.mjs": imports + agent + main("esm") });
    expect(await run("node", ["agent.mjs"], dir)).toBe(`${right}\n`);
  });

  it("by require", { timeout: timeoutMs }, async () => {
    const dir = await write("cjs", { "agent.cjs": requires + agent + main("cjs") });
    expect(await run("node", ["agent.cjs"], dir)).toBe(`${right}\n`);
  });

  it("in both formats at once, errors and threads of either", { timeout: timeoutMs }, async () => {
    const dir = await write("both", {
      "agent.mjs": `
        import { createRequire } from "node:module";
        import * as esm from "checkpointd";
        const cjs = createRequire(import.meta.url)("checkpointd");
        const saver = cjs.ConnectSaver.fromUrl(process.env.CHECKPOINTD_URL, { graph: "nobody" });
        const error = await saver.threads.get("x".repeat(100_000)).catch((error) => error);
        const graph = { invoke: async () => {} };
        const { resumed } = await esm.recoverThreads(saver, graph, { prefix: "nobody" });
        console.log(error instanceof esm.ConnectError, esm.errorDetail(error).field, resumed);
        await saver.end();`,
    });
    expect(await run("node", ["agent.mjs"], dir)).toBe("true thread_id 0\n");
  });
});

describe("in TypeScript", () => {
  const typed = (text: string) =>
    text
      .replace("(thread)", "(thread: string)")
      .replace("(message) =>", "(message: { content: unknown }) =>")
      .replace("const seen = []", "const seen: unknown[] = []");
  const program = typed(imports + agent);
  const modes = [
    { compiler: "5", type: "module", module: "nodenext", moduleResolution: "nodenext" },
    { compiler: "5", type: "commonjs", module: "nodenext", moduleResolution: "nodenext" },
    { compiler: "5", type: "commonjs", module: "commonjs", moduleResolution: "node10" },
    { compiler: "5", type: "module", module: "esnext", moduleResolution: "bundler" },
    { compiler: "7", type: "module", module: "nodenext", moduleResolution: "nodenext" },
    { compiler: "7", type: "commonjs", module: "nodenext", moduleResolution: "nodenext" },
  ] as const;
  beforeAll(() => install("typescript5@npm:typescript@5", "@types/node@20"), timeoutMs);

  it.each(modes)("$compiler, $type, $moduleResolution", { timeout: timeoutMs }, async (mode) => {
    const { compiler, type, module, moduleResolution } = mode;
    const name = `ts-${Object.values(mode).join("-")}`;
    const dir = await write(name, {
      "agent.ts": program + main(name),
      "package.json": JSON.stringify({ type }),
      "tsconfig.json": JSON.stringify({
        compilerOptions: {
          target: "es2022",
          module,
          moduleResolution,
          strict: true,
          types: ["node"],
          // What others' types have wrong is not looked at; ours are, one by one.
          skipLibCheck: true,
          exactOptionalPropertyTypes: true,
        },
        files: ["agent.ts"],
      }),
    });
    const tsc = path.join(
      compiler === "5" ? `${folder}/node_modules/typescript5` : `${root}/node_modules/typescript`,
    );
    await run(process.execPath, [`${tsc}/bin/tsc`, "-p", "."], dir);
    const checked = await run(
      process.execPath,
      [`${tsc}/bin/tsc`, "-p", ".", "--noEmit", "--skipLibCheck", "false"],
      dir,
    ).catch((error: Error) => error.message);
    expect(checked.split("\n").filter((line) => /node_modules\/checkpointd\//.test(line))).toEqual(
      [],
    );
    expect(await run("node", ["agent.js"], dir)).toBe(`${right}\n`);
  });
});

it("in Jest, with no configuration", { timeout: timeoutMs }, async () => {
  await install("jest@30");
  const dir = await write("jest", {
    "package.json": "{}",
    "agent.test.js": `${requires}${agent}
      test("an agent", async () => expect(await runAgent("jest")).toBe(${JSON.stringify(right)}), 60_000);`,
  });
  await run(bin("jest"), ["--rootDir", dir], dir);
});

describe("bundled by esbuild", () => {
  beforeAll(() => install("esbuild@0.28"), timeoutMs);

  it.each(["esm", "cjs"])("for Node, as %s", { timeout: timeoutMs }, async (format) => {
    const dir = await write(`esbuild-${format}`, {
      "agent.mjs": imports + agent + main(`esbuild-${format}`),
    });
    // Some of LangGraph's dependencies call require, which a module does not have by itself.
    const banner = `import { createRequire } from "node:module"; const require = createRequire(import.meta.url);`;
    const out = `out.${format === "esm" ? "mjs" : "cjs"}`;
    await run(
      bin("esbuild"),
      ["agent.mjs", "--bundle", "--platform=node", `--format=${format}`, `--outfile=${out}`].concat(
        format === "esm" ? [`--banner:js=${banner}`] : [],
      ),
      dir,
    );
    expect(await run("node", [out], dir)).toBe(`${right}\n`);
  });

  it("for a browser: checkpointd/client, alone", { timeout: timeoutMs }, async () => {
    const dir = await write("page", {
      "page.js": `
        import { CheckpointService, ThreadService, decodeValue, errorDetail } from "checkpointd/client";
        console.log(CheckpointService.typeName, ThreadService.typeName, typeof errorDetail,
          decodeValue({ type: "null", data: new Uint8Array() }).kind);`,
    });
    const args = ["page.js", "--bundle", "--platform=browser", "--outfile=out.js", "--minify"];
    await run(bin("esbuild"), args, dir);
    const bundle = await readFile(path.join(dir, "out.js"), "utf8");
    expect(bundle).not.toMatch(/["']node:|langchain/);
    expect(await run("node", ["out.js"], dir)).toBe(
      "checkpointd.v1.CheckpointService checkpointd.v1.ThreadService function json\n",
    );
  });
});

it("in a Node route of Next.js, built and served", { timeout: 2 * timeoutMs }, async () => {
  await install("next@16", "react@19", "react-dom@19");
  const dir = await write("next", {
    "package.json": `{ "private": true }`,
    "next.config.mjs": `export default { outputFileTracingRoot: ${JSON.stringify(folder)}, turbopack: { root: ${JSON.stringify(folder)} } };`,
    "app/layout.js": `export default ({ children }) => <html><body>{children}</body></html>;`,
    "app/page.js": `export default () => <h1>page</h1>;`,
    "app/agent/route.js": `${imports}${agent}
      export const runtime = "nodejs";
      export const dynamic = "force-dynamic";
      export const GET = async () => new Response(await runAgent("next"));`,
  });
  await run(bin("next"), ["build", dir], dir);
  const child = spawn(process.execPath, [bin("next"), "start", dir, "-p", "0"], {
    cwd: dir,
    env: { ...quiet, NODE_ENV: "production", CHECKPOINTD_URL: server.url },
  });
  try {
    let printed = "";
    const url = await new Promise<string>((resolve, reject) => {
      const onData = (chunk: Buffer) => {
        printed += chunk;
        const at = /http:\/\/localhost:\d+/.exec(printed)?.[0];
        if (at && printed.includes("Ready")) resolve(at);
      };
      child.stdout.on("data", onData);
      child.stderr.on("data", onData);
      child.once("exit", () => reject(new Error(printed)));
    });
    expect(await (await fetch(`${url}/agent`)).text()).toBe(right);
  } finally {
    child.kill();
  }
});

it.each([
  ["bun", []],
  ["deno", ["run", "-A", "--node-modules-dir=manual"]],
] as const)("on %s", { timeout: timeoutMs }, async (runtime, args) => {
  await install(runtime);
  expect(existsSync(bin(runtime))).toBe(true);
  const dir = await write(runtime, { "agent.mjs": imports + agent + main(runtime) });
  expect(await run(bin(runtime), [...args, "agent.mjs"], dir)).toBe(`${right}\n`);
});
