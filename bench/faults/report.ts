import { readdirSync, readFileSync } from "node:fs";
import type { Violation } from "./check.js";
import type { Injected, RoundResult } from "./round.js";
import type { World } from "./world.js";

/** What a run has shown so far. */
export interface Totals {
  rounds: number;
  acknowledged: number;
  failed: number;
  failures: Record<string, number>;
  injected: number;
  violations: (Violation & { round: number; faults: string[] })[];
  faults: Record<string, { times: number; worstStallMs: number; failed: number }>;
}

/** Adds up rounds, a line each. */
export function createReport(print: (line: string) => void) {
  const totals: Totals = {
    rounds: 0,
    acknowledged: 0,
    failed: 0,
    failures: {},
    injected: 0,
    violations: [],
    faults: {},
  };
  const blame = (explanation: string) => {
    const none = { thread: "", ops: [], round: -1, faults: [] };
    totals.violations.push({ rule: "deadlines", explanation, ...none });
    print(`  VIOLATION: ${explanation}`);
  };
  return {
    totals: () => totals,
    violations: () => totals.violations.length,
    add({ number, injected, acknowledged, failed, failures, violations }: RoundResult) {
      for (const [what, count] of Object.entries(failures)) {
        totals.failures[what] = (totals.failures[what] ?? 0) + count;
      }
      totals.rounds++;
      totals.acknowledged += acknowledged;
      totals.failed += failed;
      totals.injected += injected.length;
      const faults = injected.map(({ name }) => name);
      for (const violation of violations) {
        totals.violations.push({ ...violation, round: number, faults });
      }
      for (const fault of injected) addFault(totals, fault);
      print(`round ${number}: ${acknowledged} acknowledged, ${failed} failed`);
      for (const { name, note, worstStallMs, failed } of injected) {
        const what = note ? `${name} (${note})` : name;
        print(`  ${what}: stall ${worstStallMs} ms, ${failed} failed`);
      }
      for (const { rule, thread, ops, explanation } of violations.slice(0, 10)) {
        print(`  VIOLATION ${rule} ${thread}: ${explanation} [${ops.join(" ")}]`);
      }
    },
    /** What is left of a world's processes when all is over. */
    look(world: World) {
      for (const death of world.deaths) blame(death);
      for (const { number, child, log } of world.servers) {
        const lines = readFileSync(log, "utf8").split("\n");
        const unhandled = lines.filter((line) => /unhandled|uncaught/i.test(line)).length;
        if (unhandled > 0) blame(`server ${number} logged ${unhandled} unhandled errors`);
        const descriptors = readdirSync(`/proc/${child.pid}/fd`).length;
        print(`server ${number}: ${descriptors} file descriptors, ${lines.length} lines of log`);
        // A pool of 8, the listener, the log, and what Node itself has.
        if (descriptors > 80) blame(`server ${number} holds ${descriptors} file descriptors`);
      }
    },
    /** The table. */
    close() {
      for (const [name, { times, worstStallMs, failed }] of Object.entries(totals.faults).sort()) {
        print(
          `${name.padEnd(42)} ${String(times).padStart(4)} times, worst stall ${String(worstStallMs).padStart(6)} ms, ${failed} failed`,
        );
      }
      for (const [what, count] of Object.entries(totals.failures)) {
        print(`failed with ${what}: ${count}`);
      }
      print(
        `${totals.acknowledged} operations acknowledged through ${totals.injected} faults in ${totals.rounds} rounds, ${totals.failed} failed: ${totals.violations.length} violations`,
      );
    },
  };
}

function addFault(totals: Totals, { name, worstStallMs, failed }: Injected): void {
  totals.faults[name] ??= { times: 0, worstStallMs: 0, failed: 0 };
  const fault = totals.faults[name];
  fault.times++;
  fault.failed += failed;
  fault.worstStallMs = Math.max(fault.worstStallMs, worstStallMs);
}
