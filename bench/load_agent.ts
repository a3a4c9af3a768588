/**
 * An agent process: opens one contender's saver and runs loads as it is told over IPC. It
 * measures its own latencies; CPU time is read from outside.
 */
import { type Contender, type OpenSaver, openSaver, type Target } from "./contenders.js";
import type { Load, Stored } from "./load.js";
import { findWorkload } from "./workloads.js";

/** What an agent is told. Each command is answered with an `Answer`. */
export type Command =
  | { do: "connect"; contender: Contender; target: Target }
  | { do: "open"; workload: string; slots: number; name: string }
  | { do: "run"; seconds: number; warmUp: boolean }
  | { do: "verify" }
  | { do: "close" };

/** What one agent measured in one round. */
export interface Measured {
  operations: number;
  elapsedMs: number;
  /** How long each operation took. */
  latenciesMs: number[];
  /** How long each operation that yields tuples took until the first of them. */
  firstTupleMs: number[];
}

/** What an agent answers: the result of its command, or why it failed. */
export type Answer = { result: Measured | Stored | null } | { error: string };

let open: OpenSaver | undefined;
let load: Load | undefined;

async function obey(command: Command): Promise<Measured | Stored | null> {
  switch (command.do) {
    case "connect":
      open = openSaver(command.contender, command.target);
      return null;
    case "open": {
      const place = { saver: open!.saver, slots: command.slots, name: command.name };
      load = await findWorkload(command.workload).open(place);
      return null;
    }
    case "run":
      return run(load!, command.seconds, command.warmUp);
    case "verify":
      return load!.verify();
    case "close":
      await open?.close();
      return null;
  }
}

async function run(load: Load, seconds: number, isWarmUp: boolean): Promise<Measured> {
  const slots = isWarmUp && load.warmUp ? [load.warmUp] : load.slots;
  const together = isWarmUp ? 1 : (load.together ?? 1);
  const measured: Measured = { operations: 0, elapsedMs: 0, latenciesMs: [], firstTupleMs: [] };
  const started = performance.now();
  const end = started + seconds * 1000;
  await Promise.all(
    slots.map(async (operation) => {
      for (let count = 0; count % together !== 0 || performance.now() < end; count += 1) {
        const before = performance.now();
        const first = await operation();
        measured.latenciesMs.push(performance.now() - before);
        if (first !== undefined) measured.firstTupleMs.push(first);
      }
    }),
  );
  measured.operations = measured.latenciesMs.length;
  measured.elapsedMs = performance.now() - started;
  return measured;
}

process.on("message", (command: Command) => {
  obey(command).then(
    (result) => process.send?.({ result } satisfies Answer),
    (error: Error) => process.send?.({ error: error.stack ?? String(error) } satisfies Answer),
  );
});
// The run that started this process is its life; Ctrl-C is for the run.
process.on("SIGINT", () => {});
process.once("disconnect", () => process.exit(0));
