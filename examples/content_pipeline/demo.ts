/**
 * The demo: one campaign goes through the pipeline in five processes, one of which is killed, and
 * then into its own past. It uses the service at CHECKPOINTD_URL, else the one that `npm start` runs
 * on this machine, else one of its own, which ends with it. In a service that goes on it leaves threads
 * to look at; `-- --look` keeps its own up for that, until Enter is pressed. Exit code 0: all of it
 * was so. 1: something was not, with what was expected and found.
 */

import { once } from "node:events";
import { chmodSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { countChecks, say } from "./checks.js";
import { leaveThreads, sayWhatIsLeft } from "./leave.js";
import { endProcesses, findService, readServiceLog, startService } from "./processes.js";
import { tellStory } from "./story.js";

const LIMIT_SECONDS = 180;

const running = process.env.CHECKPOINTD_URL || (await findService());
const folder = mkdtempSync(join(tmpdir(), "checkpointd-demo-"));
// As root, the embedded Postgres runs as another user, who must be able to enter.
chmodSync(folder, 0o755);
let timer: NodeJS.Timeout | undefined;
let told: Promise<void> | undefined;
try {
  const stopped = new Promise<never>((_, reject) => {
    const stop = (why: string) => reject(new Error(why));
    timer = setTimeout(stop, LIMIT_SECONDS * 1000, `it took more than ${LIMIT_SECONDS} s`);
    for (const signal of ["SIGINT", "SIGTERM"]) process.once(signal, () => stop(`got ${signal}`));
  });
  const tell = async () => {
    const url = running ?? (await startService(folder));
    const isLeft = running !== undefined || process.argv.includes("--look");
    await tellStory(url, join(folder, "journal.jsonl"), isLeft ? leaveThreads : undefined);
    say(`\nThe end: ${countChecks()} checks, all hold.`);
    clearTimeout(timer);
    if (!isLeft) return;
    sayWhatIsLeft(url, running !== undefined);
    if (running === undefined) await once(process.stdin, "data");
  };
  told = tell();
  await Promise.race([told, stopped]);
} catch (error) {
  console.error(`\n   ✗ ${error instanceof Error ? error.message : error}`);
  const log = readServiceLog(folder);
  if (log) console.error(`\nThe last words of the service:\n${log}`);
  console.error(`\nThe demo failed, after ${countChecks()} checks that held.`);
  process.exitCode = 1;
} finally {
  clearTimeout(timer);
  await endProcesses();
  // After a stop the story, whose workers are gone, still deletes what it has in a service that goes on.
  // It may wait for something else, which must not keep the process.
  if (running) await Promise.race([told?.catch(() => {}), sleep(5_000)]);
  rmSync(folder, { recursive: true, force: true });
}
process.exit();
