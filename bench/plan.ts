/** What is run: which workloads at which concurrency, and for how long. */
import { parseArgs } from "node:util";
import { type Contender, contenders } from "./contenders.js";
import { findWorkload } from "./workloads.js";

/** Operations in flight over all processes, and the processes they are spread over. */
export type Concurrency = [inFlight: number, processes: number];

/** One workload at several concurrencies. */
export interface Stage {
  workload: string;
  concurrencies: Concurrency[];
}

/** A run. */
export interface Plan {
  stages: Stage[];
  contenders: Contender[];
  /** Each contender runs this many times, in turn with the others. */
  rounds: number;
  /** What a round lasts; operations under way at its end are finished and counted. */
  seconds: number;
  /** Whether the results replace those in the repository. */
  keep: boolean;
}

const all: Record<string, Concurrency[]> = {
  put: [
    [1, 1],
    [8, 1],
    [32, 1],
    [32, 8],
    [128, 8],
  ],
  putWrites: [
    [1, 1],
    [8, 1],
    [32, 1],
    [128, 8],
  ],
  getTuple: [
    [1, 1],
    [8, 1],
    [32, 1],
    [128, 8],
  ],
  invoke: [
    [1, 1],
    [8, 1],
    [32, 1],
    [32, 8],
  ],
  chat: [
    [1, 1],
    [32, 1],
  ],
  "blob-1mb": [
    [1, 1],
    [8, 1],
  ],
  "blob-16mb": [[1, 1]],
  "list-10": [
    [1, 1],
    [32, 1],
  ],
  "list-1000": [
    [1, 1],
    [8, 1],
  ],
  "list-10000": [[1, 1]],
  "delta-1000": [[1, 1]],
};

const few: Record<string, Concurrency[]> = {
  put: [
    [1, 1],
    [32, 1],
    [128, 8],
  ],
  putWrites: [
    [1, 1],
    [32, 1],
  ],
  getTuple: [
    [1, 1],
    [32, 1],
  ],
  invoke: [
    [1, 1],
    [32, 1],
  ],
  chat: [
    [1, 1],
    [32, 1],
  ],
  "list-10000": [[1, 1]],
};

/** Those that the bars are about. */
const compared: Contender[] = ["direct", "connect", "http-json"];

/** The flags, for people. */
export const usage = `npm run bench -- [flags]
  --quick              a few minutes: what the bars are about, in short rounds
  --only a,b           these workloads
  --in-flight 1,32     these numbers of operations in flight
  --processes 1,8      these numbers of agent processes
  --contenders a,b     these of ${contenders.join(", ")}
  --rounds N           rounds of each contender
  --seconds S          length of a round
  --python             Python's savers instead, with --rounds, --seconds, --cells aput:32,get_tuple:1
  --keep               keep the results in bench/results/, as a run of everything does`;

/** Reads the command line. Throws with a sentence for the person who typed it. */
export function readPlan(args: string[]): Plan {
  const option = { type: "string" } as const;
  const { values } = parseArgs({
    args,
    options: {
      quick: { type: "boolean", default: false },
      only: option,
      "in-flight": option,
      processes: option,
      contenders: option,
      rounds: option,
      seconds: option,
      keep: { type: "boolean", default: false },
    },
  });
  const list = (text: string | undefined) => text?.split(",").map((part) => part.trim());
  const numbers = (name: string, text: string | undefined) =>
    list(text)?.map((part) => {
      const number = Number(part);
      const fits = name === "seconds" ? number > 0 : Number.isInteger(number) && number >= 1;
      if (fits && number <= 1000) return number;
      const kind = name === "seconds" ? "a number above 0" : "whole numbers from 1";
      throw new Error(`--${name} takes ${kind} to 1000, not "${part}"`);
    });
  const only = list(values.only)?.map((name) => findWorkload(name).name);
  const inFlight = numbers("in-flight", values["in-flight"]);
  const processes = numbers("processes", values.processes);
  const chosen = list(values.contenders)?.map((name) => {
    const found = contenders.find((each) => each === name);
    if (found) return found;
    throw new Error(`no contender is called "${name}"; there are ${contenders.join(", ")}`);
  });

  const { quick } = values;
  const table = quick ? { ...few, ...pick(all, only) } : all;
  const stages = Object.entries(table)
    .filter(([workload]) => only?.includes(workload) ?? true)
    .map(([workload, concurrencies]) => ({
      workload,
      concurrencies: choose(concurrencies, inFlight, processes),
    }))
    .filter(({ concurrencies }) => concurrencies.length > 0);
  return {
    stages,
    contenders: chosen ?? (quick ? compared : ["direct", "connect", "grpc", "http-json"]),
    rounds: numbers("rounds", values.rounds)?.[0] ?? (quick ? 3 : 5),
    seconds: numbers("seconds", values.seconds)?.[0] ?? (quick ? 0.7 : 1.2),
    keep: values.keep || !(quick || only || inFlight || processes || chosen),
  };
}

const pick = (table: Record<string, Concurrency[]>, names: string[] | undefined) =>
  Object.fromEntries(Object.entries(table).filter(([name]) => names?.includes(name)));

/** The planned ones that were asked for, or just what was asked for where none was planned. */
function choose(
  planned: Concurrency[],
  inFlight: number[] | undefined,
  processes: number[] | undefined,
): Concurrency[] {
  if (!inFlight && !processes) return planned;
  const wanted = planned.filter(
    ([flight, count]) =>
      (inFlight?.includes(flight) ?? true) && (processes?.includes(count) ?? true),
  );
  if (wanted.length > 0) return wanted;
  const flights = inFlight ?? [32];
  return (processes ?? [1]).flatMap((count) =>
    flights.filter((flight) => flight >= count).map((flight): Concurrency => [flight, count]),
  );
}
