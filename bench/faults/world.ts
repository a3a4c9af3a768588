/** The processes of a fault run, and how they are hurt and brought back. */
import { type ChildProcess, spawn } from "node:child_process";
import { openSync, readdirSync, readFileSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import pg from "pg";
import { type Embedded, startEmbedded } from "../../src/store/embedded.js";
import { type PostgresRelay, startPostgresRelay } from "../../src/testing/postgres_relay.js";
import { startRelay } from "../../src/testing/relay.js";
import type { AgentPlan } from "./agent.js";

/** What a world is made of. */
export interface WorldPlan {
  servers: number;
  /** The folder of the compiled service and client. */
  dist: string;
  /** Further flags of `serve`. */
  flags: readonly string[];
  /** What is made of Postgres before servers start, and what stands before it. */
  prepare?: (prepared: Prepared) => Promise<void>;
}

/** What a kind of world is prepared with. */
export interface Prepared {
  folder: string;
  /** Postgres itself. */
  databaseUrl: string;
  /** Where servers look for it, which is a relay. */
  serversUrl: string;
  /** What servers have in their environment besides. */
  serversEnv: Record<string, string>;
  /** Called when all is over. */
  onStop: (stop: () => Promise<void>) => void;
  sql: Sql;
}

/** Runs a statement and returns its rows. */
export type Sql = <Row extends pg.QueryResultRow>(
  text: string,
  values?: unknown[],
) => Promise<Row[]>;

/** A server process. */
export interface ServerProcess {
  readonly number: number;
  /** The folder of what it runs, compiled. */
  dist: string;
  child: ChildProcess;
  port: number;
  log: string;
  /** It was ended on purpose. */
  isMeantToEnd: boolean;
}

/** All that runs. */
export type World = Awaited<ReturnType<typeof startWorld>>;

/** Durable as an operator would have it; small, since it is started often. */
const settings = { shared_buffers: "64MB", max_connections: "120", deadlock_timeout: "300ms" };
const readyMs = 60_000;

/** Starts Postgres, servers and the relays between. */
export async function startWorld(plan: WorldPlan) {
  const folder = await mkdtemp(path.join(tmpdir(), "checkpointd-faults-"));
  let dataDir = path.join(folder, "data");
  let postgres: Embedded = await startEmbedded({ dataDir, onProgress: () => {}, settings });
  const direct = new URL(postgres.databaseUrl);
  let databasePort = Number(direct.port);
  const toPostgres = await startRelay(() => databasePort);
  // Message by message, before the one that knows only bytes.
  const messages: PostgresRelay = await startPostgresRelay(toPostgres.through(direct.href));
  const servers: ServerProcess[] = [];
  const agents = new Set<ChildProcess>();
  /** Processes that ended though nobody ended them. */
  const deaths: string[] = [];
  let turn = 0;
  const toServers = await startRelay(() => {
    // A balancer that leaves out what is down.
    for (let i = 0; i < servers.length; i++) {
      const server = servers[turn++ % servers.length]!;
      if (server.child.exitCode === null && !server.isMeantToEnd && server.port > 0) {
        return server.port;
      }
    }
    return servers[0]?.port || 1;
  });

  /** Calls `use` with a session of its own, past what is turned against the servers. */
  const session = async <T>(use: (query: Sql) => Promise<T>): Promise<T> => {
    const client = new pg.Client({ connectionString: direct.href });
    client.on("error", () => {});
    await client.connect();
    try {
      await client.query("set default_transaction_read_only = off; set statement_timeout = 0");
      return await use(async (text, values = []) => (await client.query(text, values)).rows);
    } finally {
      await client.end();
    }
  };
  const sql: Sql = (text, values) => session((query) => query(text, values));

  const stops: (() => Promise<void>)[] = [];
  const prepared: Prepared = {
    folder,
    databaseUrl: direct.href,
    serversUrl: messages.url,
    serversEnv: {},
    onStop: (stop) => stops.push(stop),
    sql,
  };

  function start(server: ServerProcess): Promise<void> {
    const main = path.join(server.dist, "src/cli/main.js");
    const args = ["serve", "--port", String(server.port), "--drain-timeout", "5s"];
    const child = spawn(process.execPath, [main, ...args, ...plan.flags], {
      env: {
        PATH: process.env.PATH ?? "",
        DATABASE_URL: prepared.serversUrl,
        ...prepared.serversEnv,
      },
      stdio: ["ignore", "pipe", openSync(server.log, "a")],
    });
    server.child = child;
    server.isMeantToEnd = false;
    child.once("exit", (code, signal) => {
      if (server.child !== child || server.isMeantToEnd) return;
      deaths.push(`server ${server.number} ended by itself: ${signal ?? code}`);
      // The run goes on, and shows what else there is.
      void start(server).catch(() => {});
    });
    return new Promise((resolve, reject) => {
      let said = "";
      child.stdout?.setEncoding("utf8").on("data", (chunk: string) => {
        said += chunk;
        const port = /listens on \S+:(\d+)/.exec(said)?.[1];
        if (port) {
          server.port = Number(port);
          resolve();
        }
      });
      child.once("exit", () => reject(new Error(`server ${server.number} did not start`)));
    });
  }

  const world = {
    folder,
    servers,
    agents,
    deaths,
    toServers,
    toPostgres,
    messages,
    sql,
    session,
    get databaseUrl() {
      return direct.href;
    },
    url: () => toServers.url,
    /**
     * Another Postgres of the same password takes over: new connections lead there. Returns how
     * the one before is ended.
     */
    takeOver(next: Embedded, nextDataDir: string) {
      const before = postgres;
      postgres = next;
      dataDir = nextDataDir;
      databasePort = Number(new URL(next.databaseUrl).port);
      direct.port = String(databasePort);
      return () => before.stop();
    },
    /** The folder of the Postgres that serves now. */
    dataDir: () => dataDir,
    async untilReady() {
      const until = Date.now() + readyMs;
      for (const server of servers) {
        for (;;) {
          const url = `http://127.0.0.1:${server.port}/readyz`;
          const signal = AbortSignal.timeout(1_000);
          const { status } = await fetch(url, { signal }).catch(() => ({ status: 0 }));
          if (status === 200) break;
          if (Date.now() > until) throw new Error(`server ${server.number} is not ready`);
          await sleep(100);
        }
      }
    },
    async restartServer(server: ServerProcess, signal: NodeJS.Signals, awayMs: number) {
      server.isMeantToEnd = true;
      const { child } = server;
      if (child.exitCode === null && child.signalCode === null) {
        const ended = new Promise((resolve) => child.once("exit", resolve));
        child.kill(signal);
        await ended;
      }
      await sleep(awayMs);
      await start(server);
    },
    async restartPostgres(awayMs: number) {
      const pid = postmaster();
      for (const each of [pid, ...childrenOf(pid)]) killQuietly(each, "SIGKILL");
      await postgres.exited;
      await sleep(awayMs);
      const again = { ...settings, port: String(databasePort) };
      postgres = await startEmbedded({ dataDir, onProgress: () => {}, settings: again });
    },
    /** Its processes, the first of all first. */
    postgresPids() {
      const pid = postmaster();
      return [pid, ...childrenOf(pid)];
    },
    startAgent(
      agent: Omit<AgentPlan, "url" | "dist"> & { dist?: string | undefined },
    ): ChildProcess {
      const program = fileURLToPath(new URL("agent.js", import.meta.url));
      const argument = JSON.stringify({ dist: plan.dist, ...agent, url: world.url() });
      const child = spawn(process.execPath, [program, argument], {
        stdio: ["pipe", "inherit", openSync(path.join(folder, "agents.log"), "a")],
      });
      agents.add(child);
      child.once("exit", () => agents.delete(child));
      return child;
    },
    async stop(keep: boolean) {
      for (const child of agents) child.kill("SIGKILL");
      for (const server of servers) {
        server.isMeantToEnd = true;
        server.child.kill("SIGCONT");
        server.child.kill("SIGKILL");
      }
      for (const relay of [toServers, toPostgres, messages]) relay.close();
      for (const pid of world.postgresPids()) killQuietly(pid, "SIGCONT");
      await postgres.stop();
      for (const stop of stops) await stop();
      if (!keep) await rm(folder, { recursive: true, force: true });
    },
  };

  function postmaster(): number {
    return Number(
      readFileSync(path.join(dataDir, "postgres/postmaster.pid"), "utf8").split("\n")[0],
    );
  }

  try {
    await plan.prepare?.(prepared);
    for (let number = 0; number < plan.servers; number++) {
      const log = path.join(folder, `server-${number}.log`);
      const { dist } = plan;
      const server = { number, dist, port: 0, log, isMeantToEnd: false } as ServerProcess;
      servers.push(server);
      await start(server);
    }
    await world.untilReady();
  } catch (error) {
    for (const { log } of servers) process.stderr.write(readFileSync(log, "utf8").slice(-4_000));
    await world.stop(false);
    throw error;
  }
  return world;
}

/** Sends a signal to a process that may be gone. */
export function killQuietly(pid: number, signal: NodeJS.Signals): void {
  try {
    process.kill(pid, signal);
  } catch {
    // It is gone.
  }
}

/** Returns the processes that a process started, and those that they started (Linux). */
export function childrenOf(pid: number): number[] {
  const parents = new Map<number, number>();
  for (const name of readdirSync("/proc")) {
    if (!/^\d+$/.test(name)) continue;
    try {
      const stat = readFileSync(`/proc/${name}/stat`, "utf8");
      parents.set(Number(name), Number(stat.slice(stat.lastIndexOf(")") + 2).split(" ")[1]));
    } catch {
      // It ended meanwhile.
    }
  }
  const found: number[] = [];
  for (let frontier = [pid]; frontier.length > 0; ) {
    frontier = [...parents]
      .filter(([, parent]) => frontier.includes(parent))
      .map(([child]) => child);
    found.push(...frontier);
  }
  return found;
}
