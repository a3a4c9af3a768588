import type { Contender } from "./contenders.js";
import type { Workload } from "./load.js";

/** What one contender did in one round. */
export interface Round {
  operations: number;
  elapsedMs: number;
  latenciesMs: number[];
  firstTupleMs: number[];
  cpuMicros: Split;
  connections: number;
}

/** A sum over the processes of each kind. */
export interface Split {
  agent: number;
  service: number;
  postgres: number;
}

/** One row of the results: medians over the rounds. */
export interface Row {
  workload: string;
  /** Operations in flight over all processes. */
  inFlight: number;
  /** Agent processes. */
  processes: number;
  contender: Contender;
  opsPerSecond: number;
  p50Ms: number;
  p99Ms: number;
  /** Agent, service and Postgres together, per operation. */
  cpuMicrosPerOp: number;
  /** To Postgres, held by the contender at the end of a round; the most of all rounds. */
  connections: number;
  /** The parts of `cpuMicrosPerOp`. */
  cpuSplit: Split;
  /** Operations per second of the slowest and of the fastest round. */
  opsPerSecondRange: [number, number];
  rounds: number;
  /** Operations in all rounds together. */
  operations: number;
  /** The most resident memory of one agent process, in MB. */
  clientPeakMb: number;
  /** The same of the service or proxy; null where there is none. */
  serverPeakMb: number | null;
  /** For lists: from the call to the first tuple. */
  firstTupleMs?: number;
  /** For lists: to the end of the list. */
  tuplesPerSecond?: number;
}

/** The middle one, or the mean of the two in the middle. */
export function median(values: readonly number[]): number {
  return percentile(values, 0.5);
}

function percentile(values: readonly number[], share: number): number {
  const sorted = [...values].sort((a, b) => a - b);
  const place = (sorted.length - 1) * share;
  const [low, high] = [sorted[Math.floor(place)]!, sorted[Math.ceil(place)]!];
  return low + (high - low) * (place - Math.floor(place));
}

const rounded = (value: number) => Number(value.toPrecision(4));

/** The row of a cell from its rounds. */
export function toRow(
  cell: Pick<Row, "workload" | "inFlight" | "processes" | "contender">,
  { tuples }: Workload,
  rounds: readonly Round[],
  peakMemory: { client: number; server: number | null },
): Row {
  const over = (figure: (round: Round) => number) => rounded(median(rounds.map(figure)));
  const speed = (round: Round) => (round.operations / round.elapsedMs) * 1000;
  const cpu = (part: keyof Split) => over((round) => round.cpuMicros[part] / round.operations);
  const speeds = rounds.map(speed);
  const row: Row = {
    ...cell,
    opsPerSecond: over(speed),
    p50Ms: over((round) => percentile(round.latenciesMs, 0.5)),
    p99Ms: over((round) => percentile(round.latenciesMs, 0.99)),
    cpuMicrosPerOp: over(
      ({ cpuMicros, operations }) =>
        (cpuMicros.agent + cpuMicros.service + cpuMicros.postgres) / operations,
    ),
    connections: Math.max(...rounds.map((round) => round.connections)),
    cpuSplit: { agent: cpu("agent"), service: cpu("service"), postgres: cpu("postgres") },
    opsPerSecondRange: [rounded(Math.min(...speeds)), rounded(Math.max(...speeds))],
    rounds: rounds.length,
    operations: rounds.reduce((sum, round) => sum + round.operations, 0),
    clientPeakMb: peakMemory.client,
    serverPeakMb: peakMemory.server,
  };
  if (tuples === undefined) return row;
  return {
    ...row,
    firstTupleMs: over((round) => percentile(round.firstTupleMs, 0.5)),
    tuplesPerSecond: rounded(row.opsPerSecond * tuples),
  };
}
