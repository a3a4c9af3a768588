import { mkdtemp, rename, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { afterEach } from "vitest";
import {
  type Authenticator,
  type AuthenticatorOptions,
  startAuthenticator,
} from "../auth/authenticator.js";
import { type CapturedLog, captureLog } from "./captured_log.js";
import { createManualClock, type ManualClock } from "./manual_clock.js";

/** A running authenticator with an auth file of its own. */
export interface RunningAuth extends Authenticator {
  readonly folder: string;
  readonly clock: ManualClock;
  readonly captured: CapturedLog;
  /** Puts another file into the place of one in the folder, as a deployment does. */
  write(name: string, content: unknown): Promise<void>;
  /** Replaces the auth file, and has it looked at; resolves when a line of the log tells the end. */
  reload(content: unknown): Promise<void>;
}

const cleanups: (() => Promise<unknown> | unknown)[] = [];

/** Stops what a test began, after it. */
export function endAfterTest(cleanup: () => Promise<unknown> | unknown): void {
  cleanups.push(cleanup);
}

/** Has the authenticators of a test file stopped, and their folders removed, after each test. */
export function cleanAuthFolders(): void {
  afterEach(async () => {
    for (const cleanup of cleanups.splice(0).reverse()) await cleanup();
  });
}

/** Starts an authenticator with this auth file, on a clock that stands still. */
export async function startAuth(
  content: unknown,
  files: Readonly<Record<string, unknown>> = {},
  options: Partial<AuthenticatorOptions> = {},
): Promise<RunningAuth> {
  const folder = await mkdtemp(path.join(tmpdir(), "checkpointd-auth-"));
  endAfterTest(() => rm(folder, { recursive: true, force: true }));
  const write = async (name: string, written: unknown) => {
    const text = typeof written === "string" ? written : JSON.stringify(written);
    await writeFile(path.join(folder, "new"), text);
    await rename(path.join(folder, "new"), path.join(folder, name));
  };
  for (const [name, each] of Object.entries({ ...files, "auth.json": content })) {
    await write(name, each);
  }
  const clock = createManualClock();
  const captured = captureLog();
  const file = path.join(folder, "auth.json");
  const running = await startAuthenticator({ file, log: captured.log, clock, ...options });
  endAfterTest(() => running.stop());
  const looks = () => captured.lines().filter(({ msg }) => `${msg}`.startsWith("auth file")).length;
  return {
    folder,
    clock,
    captured,
    write,
    async reload(next) {
      const before = looks();
      await write("auth.json", next);
      while (looks() === before) {
        clock.advance(2_000);
        await new Promise((resolve) => setTimeout(resolve, 10));
      }
    },
    authenticate: running.authenticate,
    get tenants() {
      return running.tenants;
    },
    stop: running.stop,
  };
}

/** The headers that bring a key or a token. */
export const bearer = (credential: string) => ({ authorization: `Bearer ${credential}` });
