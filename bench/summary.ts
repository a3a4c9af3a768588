/** The results as text and as JSON. */
import { readFileSync } from "node:fs";
import { cpus, totalmem } from "node:os";
import { readBars } from "./bars.js";
import type { Row } from "./row.js";
import { findWorkload } from "./workloads.js";

/** What `latest.json` holds. */
export interface Results {
  machine: { cpu: string; cores: number; memoryGb: number; os: string };
  /** When the run ended, ISO 8601. */
  date: string;
  node: string;
  postgres: string;
  rows: Row[];
}

/** The machine in words that fit any machine of its kind. */
export function describeMachine(): Results["machine"] {
  let os = process.platform as string;
  try {
    os = /^PRETTY_NAME="?([^"\n]+)/m.exec(readFileSync("/etc/os-release", "utf8"))?.[1] ?? os;
  } catch {
    // Not every system has one.
  }
  const cores = cpus();
  return {
    cpu: cores[0]?.model.trim() ?? "unknown",
    cores: cores.length,
    memoryGb: Math.round(totalmem() / 1024 ** 3),
    os,
  };
}

/** A number in as many digits as mean something. */
export function format(value: number): string {
  const digits = value >= 100 ? 0 : value >= 10 ? 1 : 2;
  return value.toLocaleString("en", {
    minimumFractionDigits: digits,
    maximumFractionDigits: digits,
  });
}

const headings = [
  "",
  "ops/s",
  "spread",
  "×direct",
  "p50 ms",
  "p99 ms",
  "CPU µs/op",
  "×direct",
  "agent",
  "service",
  "postgres",
  "conn",
  "MB agent/service",
];
const widths = [11, 9, 7, 8, 9, 9, 12, 8, 11, 11, 11, 5, 17];

const line = (cells: string[]) =>
  cells
    .map((cell, column) => {
      return column === 0 ? `  ${cell.padEnd(widths[0]!)}` : cell.padStart(widths[column]!);
    })
    .join("")
    .trimEnd();

/** Which cell of the table a row belongs to. */
export function cellOf({ workload, inFlight, processes }: Row): string {
  return `${workload}, ${inFlight} in flight, ${processes} process${processes > 1 ? "es" : ""}`;
}

/** The line of one row; `direct` is the row it is compared to. */
export function toLine(row: Row, direct: Row | undefined): string {
  const ratio = (figure: (row: Row) => number) =>
    direct ? (figure(row) / figure(direct)).toFixed(2) : "";
  const [slowest, fastest] = row.opsPerSecondRange;
  const text = line([
    row.contender,
    format(row.opsPerSecond),
    `±${Math.round(((fastest - slowest) / 2 / row.opsPerSecond) * 100)}%`,
    ratio((each) => each.opsPerSecond),
    format(row.p50Ms),
    format(row.p99Ms),
    format(row.cpuMicrosPerOp),
    ratio((each) => each.cpuMicrosPerOp),
    format(row.cpuSplit.agent),
    format(row.cpuSplit.service),
    format(row.cpuSplit.postgres),
    `${row.connections}`,
    `${row.clientPeakMb}/${row.serverPeakMb ?? "–"}`,
  ]);
  if (row.firstTupleMs === undefined || row.tuplesPerSecond === undefined) return text;
  const lists = `first tuple after ${format(row.firstTupleMs)} ms, ${format(row.tuplesPerSecond)} tuples/s`;
  return `${text}\n${" ".repeat(widths[0]! + 4)}${lists}`;
}

/** A writer of the table that prints each row as it comes. */
export function createTable(print: (text: string) => void): (row: Row) => void {
  let cell = "";
  let direct: Row | undefined;
  return (row) => {
    if (cellOf(row) !== cell) {
      cell = cellOf(row);
      direct = undefined;
      print(`\n${cell}: ${findWorkload(row.workload).operation}\n${line(headings)}`);
    }
    if (row.contender === "direct") direct = row;
    print(toLine(row, direct));
  };
}

/** The bars, each met or not. Bars of which nothing was measured are only counted. */
export function toBarLines(rows: readonly Row[]): string {
  const bars = readBars(rows);
  const measured = bars.filter((bar) => bar.found !== undefined);
  const lines = measured.map(({ what, needed, found, met }) => {
    const value = found! >= 0.1 ? format(found!) : found!.toFixed(3);
    return `  ${met ? "met    " : "NOT MET"}  ${what.padEnd(68)} ${value.padStart(7)}  (${needed})`;
  });
  const met = measured.filter((bar) => bar.met).length;
  const rest = bars.length - measured.length;
  return [
    "The bars, for connect:",
    ...lines,
    `  ${met} of ${measured.length} met${rest > 0 ? `, ${rest} not measured in this run` : ""}`,
  ].join("\n");
}
