/** Kinds of worlds, and what goes wrong in each. */
import { execFileSync } from "node:child_process";
import {
  closeSync,
  existsSync,
  mkdirSync,
  openSync,
  rmSync,
  statSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import path from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { migrate } from "../../src/store/migrate.js";
import { hasPgBouncer, type PgBouncer, startPgBouncer } from "../../src/testing/pgbouncer.js";
import { startStandby } from "../../src/testing/standby.js";
import { allFaults, type Fault, type Scene, shortFaults } from "./faults.js";
import type { WorldPlan } from "./world.js";

/** A kind of world. */
export interface Kind {
  name: string;
  /** The part of the run's time that it gets. */
  share: number;
  /** Overrides the number of servers that was asked for. */
  servers?: number;
  plan: Pick<WorldPlan, "prepare"> & { flags?: readonly string[] };
  faults: readonly Fault[];
  /** Why it is left out on this machine. */
  missing?: string | undefined;
}

/** The kinds of a run, made anew for each; of a short one those that find most. */
export function kindsOf(isShort: boolean): Kind[] {
  const plain = isShort ? allFaults.filter(({ name }) => shortFaults.includes(name)) : allFaults;
  const most: Kind[] = [
    { name: "plain", share: 0.7, plan: {}, faults: plain },
    {
      // Of several servers each finds out by itself, and may read meanwhile what the old one has.
      name: "failover",
      share: 0.1,
      servers: 1,
      plan: {},
      faults: [failover, ...some(/resets|^server killed/)],
    },
  ];
  return isShort ? most : [...most, pooled(), smallDisk(), steppedClocks()];
}

const some = (names: RegExp) => allFaults.filter(({ name }) => names.test(name));

function pooled(): Kind {
  let bouncer: PgBouncer | undefined;
  const killed: Fault = {
    name: "PgBouncer killed",
    async inject({ random }) {
      await bouncer?.kill();
      await sleep(random() * 2_000);
      await bouncer?.start();
      return undefined;
    },
  };
  return {
    name: "PgBouncer",
    share: 0.1,
    missing: hasPgBouncer ? undefined : "pgbouncer is not installed",
    plan: {
      // Migrations need Postgres itself.
      flags: ["--no-prepare", "--no-migrate"],
      async prepare(prepared) {
        const { databaseUrl, serversUrl, onStop } = prepared;
        await migrate({ databaseUrl, schema: "public" });
        const settings = { pool_mode: "transaction", default_pool_size: 6, max_client_conn: 200 };
        // One that ends by itself is started again, as systemd does it.
        bouncer = await startPgBouncer(serversUrl, settings, (log) => {
          console.log(`PgBouncer ended by itself:\n${log}`);
          void bouncer?.start();
        });
        onStop(() => bouncer!.close());
        prepared.serversUrl = bouncer.url;
      },
    },
    faults: [
      killed,
      ...some(/^database: (resets|ends|cut|refuses)|terminated|^agents: resets|^server killed/),
    ],
  };
}

const diskMegabytes = 320;

function smallDisk(): Kind {
  let disk = "";
  const full: Fault = {
    name: "disk full",
    hurts: "Postgres",
    async inject({ random }) {
      const filler = path.join(disk, "filler");
      const file = openSync(filler, "w");
      try {
        for (;;) writeSync(file, Buffer.alloc(64 * 1024));
      } catch {
        // There is no room any more.
      } finally {
        closeSync(file);
      }
      await sleep(500 + random() * 3_000);
      rmSync(filler);
      return undefined;
    },
  };
  return {
    name: "small disk",
    share: 0.1,
    missing: canMount() ? undefined : "a disk of its own takes a root that may mount",
    plan: {
      flags: ["--no-migrate"],
      async prepare({ folder, databaseUrl, onStop, sql }) {
        await migrate({ databaseUrl, schema: "public" });
        disk = path.join(folder, "disk");
        mkdirSync(disk);
        execFileSync("mount", ["-t", "tmpfs", "-o", `size=${diskMegabytes}m`, "tmpfs", disk]);
        onStop(async () => void execFileSync("umount", ["-l", disk]));
        const space = path.join(disk, "space");
        mkdirSync(space);
        const { uid, gid } = statSync(path.join(folder, "data/postgres"));
        execFileSync("chown", [`${uid}:${gid}`, space]);
        execFileSync("chmod", ["a+x", folder, disk]);
        // The log of Postgres stays where there is room: without it it could not even recover.
        await sql(`create tablespace small location '${space}'`);
        await sql("alter table all in tablespace pg_default set tablespace small");
        await sql("alter index all in tablespace pg_default set tablespace small");
      },
    },
    faults: [full, ...some(/^database: resets|^Postgres killed/)],
  };
}

/** Debian's libfaketime, which makes a process see another time. */
const fakeTime = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1";

function steppedClocks(): Kind {
  let file = "";
  const step: Fault = {
    name: "servers' clocks stepped",
    async inject({ random }) {
      const steps = Array.from({ length: 4 }, () => Math.round((random() - 0.5) * 7_200));
      for (const seconds of steps) {
        writeFileSync(file, `${seconds < 0 ? "" : "+"}${seconds}s`);
        await sleep(500);
      }
      writeFileSync(file, "+0s");
      return `${steps.join(", ")} s`;
    },
  };
  return {
    name: "stepped clocks",
    share: 0.05,
    missing: existsSync(fakeTime) ? undefined : "libfaketime is not installed",
    plan: {
      async prepare(prepared) {
        file = path.join(prepared.folder, "time");
        writeFileSync(file, "+0s");
        // What measures durations goes on, as in a machine whose clock is set.
        prepared.serversEnv = {
          LD_PRELOAD: fakeTime,
          FAKETIME_TIMESTAMP_FILE: file,
          FAKETIME_NO_CACHE: "1",
          DONT_FAKE_MONOTONIC: "1",
        };
      },
    },
    faults: [step, ...some(/^database: resets|^agents: resets/)],
  };
}

function canMount(): boolean {
  if (process.getuid?.() !== 0) return false;
  try {
    execFileSync("unshare", ["--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"], {
      stdio: "ignore",
    });
    return true;
  } catch {
    return false;
  }
}

let standbys = 0;

/**
 * A standby that has all that was acknowledged takes over. The address leads to it; the one before
 * stays up for a while and refuses writes.
 */
const failover: Fault = { name: "failover", hurts: "Postgres", inject: failOver };

async function failOver({ world, random }: Scene): Promise<string> {
  const { sql } = world;
  const dataDir = path.join(world.folder, `standby-${standbys++}`);
  const { databaseUrl } = world;
  const standby = await startStandby({ databaseUrl, dataDir: world.dataDir() }, dataDir);
  // From now on what is acknowledged is there too.
  await sql("alter system set synchronous_standby_names = '*'");
  await sql("select pg_reload_conf()");
  for (let tries = 0; ; tries++) {
    const [row] = await sql("select from pg_stat_replication where sync_state = 'sync'");
    if (row) break;
    if (tries > 200) throw new Error("the standby does not follow");
    await sleep(50);
  }
  await sleep(random() * 500);
  const old = world.databaseUrl;
  await sql("alter system set default_transaction_read_only = on");
  await sql("select pg_reload_conf()");
  await sleep(300);
  const endOld = world.takeOver(standby, dataDir);
  await sql("select pg_promote()");
  await sleep(3_000);
  await endOld();
  return `${new URL(old).port} to ${new URL(world.databaseUrl).port}`;
}
