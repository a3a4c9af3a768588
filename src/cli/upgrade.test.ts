/** Servers of this version and of the next one, on one database and under load. */
import { setTimeout as sleep } from "node:timers/promises";
import { uuid6 } from "@langchain/langgraph-checkpoint";
import pg from "pg";
import { afterEach, expect, it } from "vitest";
import { ConnectSaver, type ConnectSaverUrlOptions } from "../index.js";
import { type InstalledVersion, installVersion } from "../testing/installed_version.js";
import { createDatabase } from "../testing/postgres.js";
import { type Relay, startRelay } from "../testing/relay.js";
import { runCommand, type ServeProcess, startServe } from "../testing/serve_process.js";
import { version } from "../version.js";

const cleanups: (() => Promise<unknown> | unknown)[] = [];
afterEach(async () => {
  for (const cleanup of cleanups.splice(0).reverse()) await cleanup();
});

const own = version().replace(/-.*/, "");
const next = own.replace(/^(\d+)\.(\d+)\.\d+/, (_, a, b) => `${a}.${Number(b) + 1}.0`);

const lock = "ACCESS EXCLUSIVE on checkpoints for an instant\nSET LOCAL lock_timeout = '5s';\n";
const expand = `-- safe: ${lock}ALTER TABLE checkpoints ADD COLUMN note text DEFAULT '';\n`;
const contract = (before: string) =>
  `-- breaking before ${before}: ${lock}ALTER TABLE checkpoints DROP COLUMN note;\n`;

/** Savers that put, write, read and list, on threads of their own. */
class Load {
  readonly acknowledged = new Map<string, { id: string; text: string }[]>();
  calls = 0;
  readonly #failures: unknown[] = [];
  #isOver = false;
  readonly #running: Promise<unknown>;

  constructor(readonly savers: readonly ConnectSaver[]) {
    this.#running = Promise.all(savers.map((saver, index) => this.#run(saver, `t${index}`)));
  }

  /** Goes on until so many more calls were answered. */
  async pass(calls: number): Promise<void> {
    const wanted = this.calls + calls;
    while (this.calls < wanted && this.#failures.length === 0) await sleep(20);
    expect(this.#failures).toEqual([]);
  }

  async stop(): Promise<void> {
    this.#isOver = true;
    await this.#running;
    expect(this.#failures).toEqual([]);
  }

  /** All that was acknowledged is there. */
  async check(saver: ConnectSaver): Promise<void> {
    for (const [thread, told] of this.acknowledged) {
      const found: { id: string; text: string }[] = [];
      for await (const tuple of saver.list({ configurable: { thread_id: thread } })) {
        const { text, messages } = tuple.checkpoint.channel_values as Record<string, string>;
        expect(messages?.endsWith(text as string)).toBe(true);
        expect(tuple.pendingWrites).toEqual([["task", "text", `${text} written`]]);
        found.push({ id: tuple.checkpoint.id, text: text as string });
      }
      expect(found).toEqual(told.toReversed());
    }
  }

  async #run(saver: ConnectSaver, name: string): Promise<void> {
    const call = async <T>(promise: Promise<T>) => {
      const answer = await promise;
      this.calls++;
      return answer;
    };
    try {
      for (let n = 0; !this.#isOver; n++) {
        const thread = `${name}-${n}`;
        const told: { id: string; text: string }[] = [];
        this.acknowledged.set(thread, told);
        let versions: Record<string, number> = {};
        // Long enough to be sent as what is new of it.
        let messages = `${thread} `.padEnd(20_000, "lorem ipsum ");
        for (let step = 0; step < 6 && !this.#isOver; step++) {
          const id = uuid6(step);
          const text = `${thread} ${step}`;
          messages += text;
          versions = {
            text: saver.getNextVersion(versions.text),
            messages: saver.getNextVersion(versions.messages),
          };
          const at = await call(
            saver.put(
              {
                configurable: {
                  thread_id: thread,
                  checkpoint_ns: "",
                  ...(told.at(-1) ? { checkpoint_id: told.at(-1)?.id } : {}),
                },
              },
              {
                v: 4,
                id,
                ts: new Date().toISOString(),
                channel_values: { text, messages },
                channel_versions: versions,
                versions_seen: {},
              },
              { source: "loop", step, parents: {} },
              versions,
            ),
          );
          await call(saver.putWrites(at, [["text", `${text} written`]], "task"));
          told.push({ id, text });
          const read = await call(saver.getTuple({ configurable: { thread_id: thread } }));
          expect(read?.checkpoint.id).toBe(id);
          expect(read?.checkpoint.channel_values).toEqual({ text, messages });
        }
        const [held] = await call(
          saver.threads.claim({ threadId: thread, owner: name, leaseMs: 30_000, graceMs: 0 }),
        );
        if (held) await call(saver.threads.release(thread, held.token));
      }
    } catch (error) {
      this.#failures.push(error);
    }
  }
}

interface Replica {
  server: ServeProcess;
  version: InstalledVersion | undefined;
  /** Whether the balancer leads to it. */
  isIn: boolean;
}

/** Replicas of this version behind a balancer of connections, and what replaces one. */
async function startReplicas(count: number) {
  const { url, drop } = await createDatabase();
  const start = (version?: InstalledVersion) =>
    startServe(
      ["--no-migrate", "--drain-timeout", "10s"],
      { DATABASE_URL: url },
      undefined,
      version?.program,
    );
  const replicas: Replica[] = [];
  for (let i = 0; i < count; i++) {
    replicas.push({ server: await start(), version: undefined, isIn: true });
  }
  let turn = 0;
  const balancer: Relay = await startRelay(() => {
    const among = replicas.filter(({ isIn }) => isIn);
    const { server } = among[turn++ % among.length] ?? replicas[0]!;
    return Number(new URL(server.url).port);
  });
  cleanups.push(
    drop,
    () => Promise.all(replicas.map(({ server }) => server.stop("SIGKILL"))),
    () => balancer.close(),
  );
  const untilReady = async ({ server }: Replica, wanted = true) => {
    while (((await fetch(`${server.url}/readyz`)).status === 200) !== wanted) await sleep(50);
  };
  for (const replica of replicas) await untilReady(replica);
  return {
    databaseUrl: url,
    replicas,
    balancer,
    untilReady,
    /** As an orchestrator does: SIGTERM, the end, another one. */
    async replace(replica: Replica, version?: InstalledVersion) {
      replica.isIn = false;
      const { code } = await replica.server.stop("SIGTERM");
      expect(code).toBe(0);
      Object.assign(replica, { server: await start(version), version });
      await untilReady(replica);
      replica.isIn = true;
    },
    async migrate(version?: InstalledVersion) {
      const { code, stderr, stdout } = await runCommand(
        ["migrate"],
        { DATABASE_URL: url },
        undefined,
        version?.program,
      );
      expect(code, stderr).toBe(0);
      return stdout;
    },
  };
}

function openSavers(url: string, ways: readonly ConnectSaverUrlOptions[]): ConnectSaver[] {
  const savers = ways.map((way) => ConnectSaver.fromUrl(url, { timeoutMs: 30_000, ...way }));
  cleanups.push(() => Promise.all(savers.map((saver) => saver.end())));
  return savers;
}

const ways: ConnectSaverUrlOptions[] = [{}, {}, { session: false }, { protocol: "grpc" }];

it("safe: replicas are replaced one by one and back, and no call fails", {
  timeout: 180_000,
}, async () => {
  const newer = await installVersion(next, { "0901_expand": expand });
  cleanups.push(newer.remove);
  const service = await startReplicas(2);
  const load = new Load(openSavers(service.balancer.url, ways));
  await load.pass(100);
  expect(await service.migrate(newer)).toContain("Applied 0901_expand");
  await load.pass(100);
  for (const replica of service.replicas) {
    await service.replace(replica, newer);
    await load.pass(100);
  }
  // This version again: it goes on beside a migration that is safe.
  for (const replica of service.replicas) {
    await service.replace(replica);
    await load.pass(100);
  }
  expect(await service.migrate()).toContain("Nothing to do");
  await load.stop();
  for (const { server } of service.replicas) {
    const [saver] = openSavers(server.url, [{}]);
    await load.check(saver as ConnectSaver);
  }
});

it("breaking: this version goes on, or names the one that is needed", {
  timeout: 180_000,
}, async () => {
  // Two versions on: what the next one no longer needs is gone.
  const beside = await installVersion(next, {
    "0901_expand": expand,
    "0902_contract": contract(own),
  });
  const without = await installVersion(next, {
    "0901_expand": expand,
    "0902_contract": contract(own),
    "0903_expand": expand,
    "0904_contract": contract(next),
  });
  cleanups.push(beside.remove, without.remove);
  const service = await startReplicas(2);
  const [first, second] = service.replicas as [Replica, Replica];
  const load = new Load(openSavers(service.balancer.url, ways));
  await load.pass(100);
  await service.migrate(beside);
  await service.replace(second, beside);
  await load.pass(300);
  await service.untilReady(first);

  await service.migrate(without);
  // A balancer that looks at connections only: who has one to the first has to be told to go.
  await service.untilReady(first, false);
  first.isIn = false;
  await load.pass(300);
  const { stderr } = first.server.output();
  expect(stderr).toContain(`(0904_contract): start version ${next} or a later one, this is ${own}`);
  for (const replica of [first, second]) {
    await service.replace(replica, without);
    await load.pass(100);
  }
  await load.stop();
  const [saver] = openSavers(first.server.url, [{}]);
  await load.check(saver as ConnectSaver);
  const client = new pg.Client({ connectionString: service.databaseUrl });
  await client.connect();
  const { rows } = await client.query(
    "select name, safe, min_server from checkpointd_migrations where name > '09' order by id",
  );
  await client.end();
  expect(rows.map((row) => Object.values(row))).toEqual([
    ["0901_expand", true, null],
    ["0902_contract", false, own],
    ["0903_expand", true, null],
    ["0904_contract", false, next],
  ]);
});
