import type { Contender } from "./contenders.js";
import { type Environment, startEnvironment } from "./environment.js";
import { postgresSettings } from "./postgres_settings.js";
import { stopAll } from "./run_processes.js";

/**
 * Runs `work` with a Postgres of its own and gives everything back: processes by their pids,
 * and the folder. So too when it fails, at SIGINT or SIGTERM (the process then exits with 130
 * or 143), and when it takes longer than `limitMinutes`, which is a failure. `settings` are
 * those of Postgres.
 */
export async function withEnvironment<T>(
  contenders: readonly Contender[],
  limitMinutes: number,
  work: (environment: Environment) => Promise<T>,
  settings = postgresSettings,
): Promise<T> {
  let environment: Environment | undefined;
  let stopping: Promise<void> | undefined;
  const stop = () => {
    stopping ??= (async () => {
      await stopAll();
      await environment?.close();
    })();
    return stopping;
  };
  let interrupt: (error: Error) => void = () => {};
  const interrupted = new Promise<never>((_, reject) => {
    interrupt = reject;
  });
  interrupted.catch(() => {});
  const onSignal = (signal: NodeJS.Signals) => {
    process.exitCode = signal === "SIGINT" ? 130 : 143;
    interrupt(new Error(`stopped by ${signal}`));
  };
  const limit = setTimeout(
    () => interrupt(new Error(`not done after ${limitMinutes} minutes`)),
    limitMinutes * 60_000,
  );
  process.on("SIGINT", onSignal);
  process.on("SIGTERM", onSignal);
  try {
    const started = startEnvironment(contenders, settings);
    // An interruption waits for Postgres to be there: only then can it be stopped.
    environment = await started;
    return await Promise.race([work(environment), interrupted]);
  } finally {
    clearTimeout(limit);
    await stop();
    process.off("SIGINT", onSignal);
    process.off("SIGTERM", onSignal);
  }
}
