/** What goes wrong in a fault run. Each fault ends by itself, and leaves what it hurt to recover. */
import { setTimeout as sleep } from "node:timers/promises";
import pg from "pg";
import type { Fate } from "../../src/testing/postgres_relay.js";
import { killQuietly, type World } from "./world.js";

/** What a fault works on. */
export interface Scene {
  world: World;
  /** From 0 to below 1, from the run's seed. */
  random: () => number;
  /** Ends an agent without a word and starts another one. */
  replaceAgent: () => void;
}

/** One way in which things go wrong. */
export interface Fault {
  name: string;
  /** What it needs for itself: of two faults that hurt the same processes one waits. */
  hurts?: "servers" | "Postgres";
  /** Tells what it did, where the name does not. */
  inject: (scene: Scene) => Promise<string | undefined>;
}

const between = ({ random }: Scene, least: number, most: number) =>
  least + random() * (most - least);

/** On the way from agents to servers, and from servers to Postgres. */
const onTheWay: Fault[] = (["agents", "database"] as const).flatMap((side) => {
  const relayOf = ({ world }: Scene) => (side === "agents" ? world.toServers : world.toPostgres);
  const faults: Fault[] = [
    {
      name: "resets",
      async inject(scene) {
        const times = Math.ceil(between(scene, 5, 30));
        for (let i = 0; i < times; i++) {
          relayOf(scene).cut("reset");
          await sleep(between(scene, 20, 150));
        }
        return `${times} times all connections`;
      },
    },
    {
      name: "ends",
      async inject(scene) {
        for (let i = 0; i < 5; i++) {
          relayOf(scene).cut("end");
          await sleep(between(scene, 50, 300));
        }
        return undefined;
      },
    },
    {
      name: "frozen connections",
      async inject(scene) {
        const frozen = relayOf(scene).freeze();
        await sleep(3_000);
        return `${frozen}, for ever; new ones pass`;
      },
    },
    {
      name: "half-open connections",
      async inject(scene) {
        const left = relayOf(scene).leaveHalfOpen();
        await sleep(3_000);
        return `${left}`;
      },
    },
    {
      name: "stall",
      async inject(scene) {
        const ms = between(scene, 500, 7_000);
        relayOf(scene).stall(true);
        await sleep(ms);
        relayOf(scene).stall(false);
        return `${Math.round(ms)} ms`;
      },
    },
    {
      name: "slow",
      async inject(scene) {
        const bytesPerMs = Math.ceil(between(scene, 5, 60));
        relayOf(scene).slow(bytesPerMs);
        await sleep(2_500);
        relayOf(scene).slow(0);
        return `${bytesPerMs} bytes a ms`;
      },
    },
    {
      name: "cut at a byte",
      async inject(scene) {
        relayOf(scene).cutAfter(() => Math.ceil(scene.random() ** 3 * 40_000));
        await sleep(2_000);
        relayOf(scene).cutAfter(undefined);
        return undefined;
      },
    },
    ...(["refuses", "accepts and closes"] as const).map((door) => ({
      name: door,
      async inject(scene: Scene) {
        const relay = relayOf(scene);
        const before = relay.accepted();
        relay.door = door;
        relay.cut("reset");
        await sleep(between(scene, 500, 3_500));
        relay.door = "open";
        return `${relay.accepted() - before} connections tried`;
      },
    })),
  ];
  return faults.map((fault) => ({ ...fault, name: `${side}: ${fault.name}` }));
});

const letters = {
  client: ["startup", "p", "P", "D", "H", "B", "E", "S", "Q", "cancel"],
  postgres: ["R", "S", "K", "Z", "1", "t", "T", "2", "D", "C", "n", "E"],
};
const fates: Fate[] = ["reset", "end", "pass and reset", "pass and end", "fatal", "lose"];

/** Where it hurts most: what Postgres did is not heard. */
const unheard: Fault[] = (["reset", "end", "lose"] as const).map((fate) => ({
  name: `database: a commit's answer, ${fate}`,
  async inject(scene) {
    const { messages } = scene.world;
    let lost = 0;
    messages.decide = ({ from, type }) => {
      if (from !== "postgres" || type !== "C" || scene.random() > 0.05) return "pass";
      lost++;
      return fate;
    };
    await sleep(1_500);
    messages.decide = () => "pass";
    return `${lost} times`;
  },
}));

const atAMessage: Fault = {
  name: "database: death at a message",
  async inject(scene) {
    const { messages } = scene.world;
    const from = scene.random() < 0.4 ? "client" : "postgres";
    const type = letters[from][Math.floor(scene.random() * letters[from].length)]!;
    const fate = fates[Math.floor(scene.random() * fates.length)]!;
    const share = ["startup", "p", "R", "S", "K"].includes(type) ? 0.5 : 0.05;
    let times = 0;
    messages.decide = (message) => {
      if (message.from !== from || message.type !== type) return "pass";
      if (scene.random() > share) return "pass";
      times++;
      return fate;
    };
    // What is seen only at a start-up is to be seen.
    if (share === 0.5) scene.world.toPostgres.cut("reset");
    await sleep(1_200);
    messages.decide = () => "pass";
    return `${from} ${type}: ${fate}, ${times} times`;
  },
};

const pick = <T>({ random }: Scene, from: readonly T[]) =>
  from[Math.floor(random() * from.length)]!;

const processes: Fault[] = [
  {
    name: "server killed",
    hurts: "servers",
    async inject(scene) {
      const { world } = scene;
      await world.restartServer(pick(scene, world.servers), "SIGKILL", between(scene, 0, 2_500));
      return undefined;
    },
  },
  {
    name: "servers restarted in turn",
    hurts: "servers",
    async inject({ world }) {
      for (const server of world.servers) await world.restartServer(server, "SIGTERM", 100);
      return undefined;
    },
  },
  {
    name: "server frozen",
    hurts: "servers",
    async inject(scene) {
      const { child } = pick(scene, scene.world.servers);
      const ms = between(scene, 500, 7_000);
      child.kill("SIGSTOP");
      await sleep(ms);
      child.kill("SIGCONT");
      return `${Math.round(ms)} ms`;
    },
  },
  {
    name: "agent killed",
    async inject({ replaceAgent }) {
      replaceAgent();
      await sleep(500);
      return undefined;
    },
  },
  {
    name: "Postgres killed",
    hurts: "Postgres",
    async inject(scene) {
      await scene.world.restartPostgres(between(scene, 0, 2_000));
      return undefined;
    },
  },
  {
    name: "Postgres frozen",
    hurts: "Postgres",
    async inject(scene) {
      const pids = scene.world.postgresPids();
      const ms = between(scene, 500, 6_000);
      for (const pid of pids) killQuietly(pid, "SIGSTOP");
      await sleep(ms);
      for (const pid of pids) killQuietly(pid, "SIGCONT");
      return `${Math.round(ms)} ms`;
    },
  },
  {
    name: "a backend killed",
    hurts: "Postgres",
    async inject(scene) {
      // Postgres then ends all others and recovers.
      const rows = await scene.world.sql<{ pid: number }>(`select pid ${backends} limit 1`);
      if (rows[0]) killQuietly(rows[0].pid, "SIGKILL");
      await sleep(1_000);
      return undefined;
    },
  },
];

const backends =
  "from pg_stat_activity where application_name = 'checkpointd' and pid <> pg_backend_pid()";

async function repeatedly(scene: Scene, text: string, ms: number): Promise<number> {
  const until = performance.now() + ms;
  let rows = 0;
  while (performance.now() < until) {
    rows += (await scene.world.sql(text)).length;
    await sleep(between(scene, 30, 200));
  }
  return rows;
}

/** For a while a setting holds for whoever connects. */
function withSetting(name: string, setting: string, ms: number): Fault {
  return {
    name,
    hurts: "Postgres",
    async inject({ world }) {
      const end = `select pg_terminate_backend(pid) ${backends}`;
      await world.sql(`alter database postgres set ${setting}`);
      await world.sql(end);
      await sleep(ms);
      await world.sql(`alter database postgres reset ${setting.split(" ")[0]}`);
      // One that refuses writes is left by the service itself.
      if (!setting.includes("read_only")) await world.sql(end);
      return undefined;
    },
  };
}

const inTheDatabase: Fault[] = [
  {
    name: "backends terminated",
    hurts: "Postgres",
    async inject(scene) {
      const ended = await repeatedly(scene, `select pg_terminate_backend(pid) ${backends}`, 2_500);
      return `${ended}`;
    },
  },
  {
    name: "statements cancelled",
    hurts: "Postgres",
    async inject(scene) {
      const text = `select pg_cancel_backend(pid) ${backends} and state = 'active'`;
      return `${await repeatedly(scene, text, 2_500)}`;
    },
  },
  {
    name: "tables locked",
    hurts: "Postgres",
    async inject(scene) {
      const table = pick(scene, ["checkpoints", "checkpoint_blobs", "checkpoint_writes"]);
      const mode = pick(scene, ["access exclusive", "share", "exclusive"]);
      const ms = between(scene, 300, 4_000);
      await hold(scene.world.databaseUrl, [`lock table ${table} in ${mode} mode`], ms);
      return `${table}, ${mode}, ${Math.round(ms)} ms`;
    },
  },
  {
    name: "deadlocks",
    hurts: "Postgres",
    async inject(scene) {
      const { world } = scene;
      let refused = 0;
      const count = async () => {
        const [row] = await world.sql<{ deadlocks: string }>(
          "select deadlocks from pg_stat_database where datname = 'postgres'",
        );
        return Number(row?.deadlocks);
      };
      const before = await count();
      for (let i = 0; i < 8; i++) {
        // A put has the one table when it asks for the other.
        const steps = [
          "set deadlock_timeout = '5s'",
          "lock table checkpoints in share row exclusive mode",
          "select pg_sleep(0.05)",
          "lock table checkpoint_blobs in share row exclusive mode",
        ];
        await hold(world.databaseUrl, steps, 50).catch(() => {
          refused++;
        });
      }
      // Postgres counts with some delay.
      await sleep(1_000);
      return `${(await count()) - before} of the service's, ${refused} of the other side`;
    },
  },
  withSetting("serializable", "default_transaction_isolation = 'serializable'", 2_500),
  withSetting("read-only", "default_transaction_read_only = on", 2_000),
  withSetting("statement timeout", "statement_timeout = '3ms'", 2_000),
];

/** A transaction that does these and is held for a while, and then undone. */
async function hold(databaseUrl: string, steps: readonly string[], ms: number): Promise<void> {
  const client = new pg.Client({ connectionString: databaseUrl });
  client.on("error", () => {});
  await client.connect();
  try {
    await client.query("set statement_timeout = 0; set default_transaction_read_only = off");
    await client.query("begin");
    for (const step of steps) await client.query(step);
    await sleep(ms);
  } finally {
    await client.end();
  }
}

/** All faults, in an order that does not change. */
export const allFaults: readonly Fault[] = [
  ...onTheWay,
  ...unheard,
  atAMessage,
  ...processes,
  ...inTheDatabase,
];

/** The most telling ones, for a short run. */
export const shortFaults: readonly string[] = [
  "database: resets",
  "database: a commit's answer, reset",
  "database: death at a message",
  "backends terminated",
  "database: frozen connections",
  "Postgres killed",
  "server killed",
  "agents: resets",
  "agents: cut at a byte",
  "agent killed",
];
