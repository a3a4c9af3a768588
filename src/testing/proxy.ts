/** Real proxies before a server: nginx, haproxy and Envoy, which `.ci/run` installs. */
import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, readFileSync, writeFileSync } from "node:fs";
import { rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { answers, findFreePort } from "./port.js";

/** The proxies that there are configurations for. */
export type Program = "nginx" | "haproxy" | "envoy";

/** A proxy that runs. */
export interface Proxy {
  readonly port: number;
  /** What it wrote so far. */
  log(): string;
  /** Ends it and removes its files. */
  close(): Promise<void>;
}

/** The program's path: from the PATH, /usr/sbin, or a variable such as ENVOY; undefined if there is none. */
export function findProgram(program: Program): string | undefined {
  const given = process.env[program.toUpperCase()];
  for (const name of given ? [given] : [program, `/usr/sbin/${program}`]) {
    try {
      execFileSync(name, [program === "envoy" ? "--version" : "-v"], { stdio: "ignore" });
      return name;
    } catch {
      // Not there.
    }
  }
  return undefined;
}

/** The text of a file of docs/proxies. */
export function readConfig(name: string): string {
  return readFileSync(
    fileURLToPath(new URL(`../../docs/proxies/${name}`, import.meta.url)),
    "utf8",
  );
}

/**
 * Starts a proxy with a configuration. Of each pair in `changes` the first has to be in it, and the
 * second stands in its place; PORT in the second is that on which it is to listen.
 */
export async function startProxy(
  program: Program,
  config: string,
  changes: readonly (readonly [string, string])[],
): Promise<Proxy> {
  const file = findProgram(program);
  if (file === undefined) throw new Error(`there is no ${program}: install it`);
  const port = await findFreePort();
  let text = config;
  for (const [from, to] of changes) {
    if (!text.includes(from)) throw new Error(`the configuration has no "${from}"`);
    text = text.replaceAll(from, to.replaceAll("PORT", `${port}`));
  }
  const folder = mkdtempSync(path.join(tmpdir(), `checkpointd-${program}-`));
  const configFile = path.join(folder, program === "envoy" ? "envoy.yaml" : `${program}.conf`);
  writeFileSync(configFile, program === "nginx" ? aroundServer(text, folder) : text);
  const child = spawn(file, argumentsOf[program](configFile, folder), {
    stdio: ["ignore", "pipe", "pipe"],
  });
  let log = "";
  for (const stream of [child.stdout, child.stderr]) {
    stream.setEncoding("utf8").on("data", (chunk: string) => {
      log += chunk;
    });
  }
  while (!(await answers(port))) {
    if (child.exitCode !== null) throw new Error(`${program} ended:\n${log}`);
    await sleep(20);
  }
  return {
    port,
    log: () => log,
    async close() {
      await end(child);
      await rm(folder, { recursive: true, force: true });
    },
  };
}

const argumentsOf: Record<Program, (config: string, folder: string) => string[]> = {
  nginx: (config, folder) => ["-c", config, "-p", folder, "-e", "stderr", "-g", "daemon off;"],
  haproxy: (config) => ["-f", config, "-db"],
  // Otherwise a second one on the machine would take the first one's shared memory.
  envoy: (config) => ["-c", config, "--use-dynamic-base-id", "-l", "warning", "--concurrency", "1"],
};

/** As Debian's nginx.conf has it around the files of conf.d, with a place of its own for its files. */
function aroundServer(server: string, folder: string): string {
  const temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
    .map((name) => `${name}_temp_path ${folder}/${name};`)
    .join("\n");
  // Its workers are another user's otherwise, who may not write there.
  const user = process.getuid?.() === 0 ? "user root;" : "";
  return `${user}
worker_processes 1;
pid ${folder}/pid;
events { worker_connections 768; }
http {
  ${temporary}
  access_log off;
  default_type application/octet-stream;
  sendfile on;
  tcp_nopush on;
  ${server}
}`;
}

async function end(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const exit = once(child, "exit");
  // nginx ends its workers at once then; SIGKILL would leave them.
  child.kill("SIGTERM");
  const timer = setTimeout(() => child.kill("SIGKILL"), 5_000);
  await exit;
  clearTimeout(timer);
}
