/** `npm run bench -- --python`: Python's saver against those that go to Postgres, and a proxy. */
import { execFileSync } from "node:child_process";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { runProgram, startListening, startServer } from "./run_processes.js";
import { describeMachine, format } from "./summary.js";
import { withEnvironment } from "./with_environment.js";

/** What python/measure.py prints of a cell; times in microseconds, p50 in milliseconds. */
interface Cell {
  workload: string;
  atOnce: number;
  contenders: Record<string, Figures>;
}

interface Figures {
  ops: number;
  client: number;
  service: number;
  postgres: number;
  p50: number;
}

type Figure = (figures: Figures) => number;
const ops: Figure = ({ ops }) => ops;
const client: Figure = ({ client }) => client;
const p50: Figure = ({ p50 }) => p50;
const allCpu: Figure = ({ client, service, postgres }) => client + service + postgres;

/** The bars, as ratios to direct: of rates at least, of the others at the most. */
const bars: [cell: string, what: string, figure: Figure, ratio: number][] = [
  ["aput:32", "op/s", ops, 4],
  ["aput_writes:32", "op/s", ops, 4.5],
  ["aget_tuple:32", "op/s", ops, 2],
  ["aput:32", "client CPU", client, 0.15],
  ["aput_writes:32", "client CPU", client, 0.08],
  ["aget_tuple:32", "client CPU", client, 0.2],
  ["aput:1", "p50", p50, 1],
  ["aput_writes:1", "p50", p50, 1],
  ["aget_tuple:1", "p50", p50, 1.2],
  ["put:32", "op/s", ops, 2.2],
  ["put_writes:32", "op/s", ops, 2.5],
  ["get_tuple:32", "op/s", ops, 2],
  ["put:32", "client CPU", client, 0.4],
  ["put_writes:32", "client CPU", client, 0.4],
  ["get_tuple:32", "client CPU", client, 0.4],
  ["put:1", "p50", p50, 1],
  ["put_writes:1", "p50", p50, 1],
  ["get_tuple:1", "p50", p50, 1.3],
  ["aget_writes:1", "all CPU", allCpu, 1],
  ["aget_writes:16", "all CPU", allCpu, 1],
  ["ainvoke:16", "op/s", ops, 1.8],
  ["ainvoke:1", "p50", p50, 1],
];
const cells = [...new Set(bars.map(([cell]) => cell))];

/** Each contender runs at the same Postgres, in one process, in turn. */
const names = {
  connect: "checkpointd",
  direct: "direct",
  unlocked: "direct without its lock",
  "http-json": "FastAPI proxy",
};

const fileOf = (path: string) => fileURLToPath(new URL(`../../${path}`, import.meta.url));
/** A run that takes longer is broken. */
const limitMinutes = 40;

/** Measures and prints a table of all cells and one of the bars. */
export async function benchPython(args: string[], print: (text: string) => void): Promise<void> {
  const option = { type: "string" } as const;
  const options = { python: { type: "boolean" }, rounds: option, seconds: option } as const;
  const { values } = parseArgs({ args, options: { ...options, cells: option } });
  const venv = execFileSync(fileOf("python/venv"), ["bench"], { encoding: "utf8" }).trim();
  if (!venv) throw new Error("there is no Python of 3.10 or later with venv");
  const python = `${venv}/bin/python`;
  const { rounds = "7", seconds = "0.8" } = values;
  const machine = describeMachine();
  const rows = await withEnvironment(["connect"], limitMinutes, async (environment) => {
    const dsn = environment.databaseUrl("connect");
    const service = (await startServer("connect", dsn))!;
    const proxyArgs = [fileOf("bench/python/http_proxy.py"), dsn];
    const proxy = await startListening(python, proxyArgs, "listens on");
    print(
      `${machine.cores} × ${machine.cpu}, ${machine.os}; Postgres ${environment.postgresVersion}; ` +
        `medians of ${rounds} rounds of ${seconds} s, alternating`,
    );
    print(`\n${head}`);
    const found: Cell[] = [];
    const measure = [
      fileOf("bench/python/measure.py"),
      ...["--url", service.url, "--service", String(service.pid), "--dsn", dsn],
      ...["--proxy", proxy.url, "--proxy-pid", String(proxy.pid)],
      ...["--rounds", rounds, "--seconds", seconds],
      ...(values.cells?.split(",") ?? cells),
    ];
    await runProgram(python, measure, (line) => {
      const cell = JSON.parse(line) as Cell;
      found.push(cell);
      print(toLines(cell));
    });
    return found;
  });
  print(`\n${toBars(rows)}`);
}

const head = [
  "| | at once | | op/s | p50, ms | CPU of client, µs | of the service | of Postgres |",
  "|---|---|---|---|---|---|---|---|",
].join("\n");

function toLines({ workload, atOnce, contenders }: Cell): string {
  return Object.entries(contenders)
    .map(([who, { ops, p50, client, service, postgres }]) => {
      const name = names[who as keyof typeof names];
      const figures = [ops, p50, client, service, postgres].map(format);
      return `| ${[workload, atOnce, name, ...figures].join(" | ")} |`;
    })
    .join("\n");
}

function toBars(rows: Cell[]): string {
  const lines = bars.flatMap(([name, what, figure, ratio]) => {
    const cell = rows.find(({ workload, atOnce }) => `${workload}:${atOnce}` === name);
    if (!cell) return [];
    const { connect, direct, unlocked, "http-json": proxy } = cell.contenders;
    const to = (other: Figures | undefined) =>
      connect && other ? figure(connect) / figure(other) : Number.NaN;
    const isMore = what === "op/s";
    const isMet = isMore ? to(direct) >= ratio : to(direct) <= ratio;
    const shown = [direct, unlocked, proxy].map((other) =>
      Number.isNaN(to(other)) ? "–" : `${to(other).toFixed(2)} ×`,
    );
    const bar = `${isMore ? "≥" : "≤"} ${ratio} ×`;
    return `| ${name.replace(":", " at ")}: ${what} | ${bar} | ${shown.join(" | ")} | ${isMet ? "yes" : "no"} |`;
  });
  return [
    "| | bar | against direct | without its lock | FastAPI proxy | met |",
    "|---|---|---|---|---|---|",
    ...lines,
  ].join("\n");
}
