/** What ConnectSaver has to reach, as ratios to another contender in the same run. */
import type { Contender } from "./contenders.js";
import type { Row } from "./row.js";

/** A bar and what the run says of it. */
export interface Bar {
  what: string;
  /** The bar as it is written: `≥ 2.0 ×`. */
  needed: string;
  /** The ratio, or the number; undefined when the run did not measure it. */
  found: number | undefined;
  met: boolean | undefined;
}

type Figure = (row: Row) => number | undefined;

const speed: Figure = (row) => row.opsPerSecond;
const p50: Figure = (row) => row.p50Ms;
const cpu: Figure = (row) => row.cpuMicrosPerOp;
const first: Figure = (row) => row.firstTupleMs;
const tuples: Figure = (row) => row.tuplesPerSecond;

interface Wanted {
  what: string;
  workload: string;
  inFlight: number;
  figure: Figure;
  /** Against direct: at least this where more is better, at the most where less is. */
  ratio: number;
  /** Whether less is better. */
  less?: boolean;
}

const calls = ["put", "putWrites", "getTuple", "invoke", "chat"];
const least: Record<string, number> = {
  put: 2,
  putWrites: 2,
  getTuple: 2.5,
  invoke: 1.8,
  chat: 1.8,
};

const wanted: Wanted[] = [
  ...calls.map((workload) => {
    const ratio = least[workload]!;
    return { what: "operations/s", workload, inFlight: 32, figure: speed, ratio };
  }),
  ...calls.map((workload) => {
    return { what: "p50 latency", workload, inFlight: 1, figure: p50, ratio: 1, less: true };
  }),
  { what: "CPU", workload: "put", inFlight: 32, figure: cpu, ratio: 0.6, less: true },
  {
    what: "time to first tuple",
    workload: "list-10000",
    inFlight: 1,
    figure: first,
    ratio: 1 / 50,
    less: true,
  },
  { what: "tuples/s", workload: "list-10000", inFlight: 1, figure: tuples, ratio: 1.5 },
];

/** Against the proxy, for every one of `wanted`. */
const overProxy = 4;
const mostConnections = 10;

/** Every bar, in the order in which they are written down. */
export function readBars(rows: readonly Row[]): Bar[] {
  const find = (contender: Contender, { workload, inFlight }: Wanted) =>
    rows.find(
      (row) =>
        row.contender === contender &&
        row.workload === workload &&
        row.inFlight === inFlight &&
        row.processes === 1,
    );
  const compare = (bar: Wanted, other: Contender, ratio: number): Bar => {
    const [ours, theirs] = [find("connect", bar), find(other, bar)];
    const [a, b] = [ours && bar.figure(ours), theirs && bar.figure(theirs)];
    const found = a === undefined || b === undefined ? undefined : a / b;
    return {
      what: `${bar.workload}, ${bar.inFlight} in flight: ${bar.what} against ${other}`,
      needed: `${bar.less ? "≤" : "≥"} ${Number(ratio.toFixed(3))} ×`,
      found,
      met: found === undefined ? undefined : bar.less ? found <= ratio : found >= ratio,
    };
  };
  const crowd = rows.filter((row) => row.contender === "connect" && row.inFlight === 128);
  const connections =
    crowd.length > 0 ? Math.max(...crowd.map((row) => row.connections)) : undefined;
  return [
    ...wanted.map((bar) => compare(bar, "direct", bar.ratio)),
    {
      what: "Postgres connections, 128 in flight",
      needed: `≤ ${mostConnections}`,
      found: connections,
      met: connections === undefined ? undefined : connections <= mostConnections,
    },
    ...wanted.map((bar) => compare(bar, "http-json", bar.less ? 1 / overProxy : overProxy)),
  ];
}
