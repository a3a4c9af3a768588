/**
 * The demo: one campaign goes through the pipeline in five processes, one of which is killed, and
 * then into its own past. `npm run demo` starts a service for it; with CHECKPOINTD_URL it uses
 * that one. Exit code 0: all of it was so. 1: something was not, with what was expected and found. With
 * `-- --look` the threads stay until Enter is pressed, for a look at them in a browser.
 */

import { once } from "node:events";
import { chmodSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { countChecks, say } from "./checks.js";
import { endProcesses, readServiceLog, startService } from "./processes.js";
import { tellStory } from "./story.js";

const LIMIT_SECONDS = 180;

const folder = mkdtempSync(join(tmpdir(), "checkpointd-demo-"));
// As root, the embedded Postgres runs as another user, who must be able to enter.
chmodSync(folder, 0o755);
let timer: NodeJS.Timeout | undefined;
try {
  const stopped = new Promise<never>((_, reject) => {
    const stop = (why: string) => reject(new Error(why));
    timer = setTimeout(stop, LIMIT_SECONDS * 1000, `it took more than ${LIMIT_SECONDS} s`);
    for (const signal of ["SIGINT", "SIGTERM"]) process.once(signal, () => stop(`got ${signal}`));
  });
  const story = async () => {
    const url = process.env.CHECKPOINTD_URL || (await startService(folder));
    const look = async (thread: string) => {
      clearTimeout(timer);
      say("\nLook at the threads in a browser; Enter ends the demo and deletes them:");
      say(`   ${url}/`);
      say(`   ${url}/?thread=${encodeURIComponent(thread)}`);
      await once(process.stdin, "data");
    };
    const wantsLook = process.argv.includes("--look");
    await tellStory(url, join(folder, "journal.jsonl"), wantsLook ? look : undefined);
  };
  await Promise.race([story(), stopped]);
  say(`\nThe end: ${countChecks()} checks, all hold.`);
} catch (error) {
  console.error(`\n   ✗ ${error instanceof Error ? error.message : error}`);
  const log = readServiceLog(folder);
  if (log) console.error(`\nThe last words of the service:\n${log}`);
  console.error(`\nThe demo failed, after ${countChecks()} checks that held.`);
  process.exitCode = 1;
} finally {
  clearTimeout(timer);
  await endProcesses();
  rmSync(folder, { recursive: true, force: true });
}
// After a stop the story may still wait for something; it must not keep the process.
process.exit();
