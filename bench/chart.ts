/** The results as a bar chart that can be read on a white and on a dark page. */
import type { Contender } from "./contenders.js";
import type { Row } from "./row.js";
import { format, type Results } from "./summary.js";

// Dark enough for white paper, light enough for a dark page.
const colours: Record<Contender, string> = {
  direct: "#8b949e",
  connect: "#2f81f7",
  grpc: "#a371f7",
  "http-json": "#d29922",
  http2: "#39c5cf",
  unary: "#8b949e",
  encrypted: "#e5534b",
  memory: "#57ab5a",
};
const ink = "#7d8590";

interface Group {
  title: string;
  bars: { contender: Contender; value: number; label: string }[];
}

const width = 760;
const left = 230;
const right = 150;
const barHeight = 14;
const gap = 14;

/** Groups of one cell each: what every contender reached, as a ratio to direct. */
function toGroups(rows: readonly Row[]): Group[] {
  const groups: Group[] = [];
  const add = (
    title: string,
    unit: string,
    chosen: readonly Row[],
    figure: (row: Row) => number | undefined,
  ) => {
    const direct = chosen.find((row) => row.contender === "direct");
    const base = direct && figure(direct);
    if (!base) return;
    const bars = chosen.map((row) => {
      const value = (figure(row) ?? 0) / base;
      const label = `${value.toFixed(2)} ×  ${format(figure(row) ?? 0)} ${unit}`;
      return { contender: row.contender, value, label };
    });
    groups.push({ title, bars });
  };
  for (const workload of ["put", "putWrites", "getTuple", "invoke", "chat"]) {
    const chosen = rows.filter(
      (row) => row.workload === workload && row.inFlight === 32 && row.processes === 1,
    );
    add(`${workload}, 32 in flight`, "/s", chosen, (row) => row.opsPerSecond);
  }
  const lists = rows.filter((row) => row.workload === "list-10000");
  add("list of 10,000", "tuples/s", lists, (row) => row.tuplesPerSecond);
  const puts = rows.filter(
    (row) => row.workload === "put" && row.inFlight === 32 && row.processes === 1,
  );
  add("CPU of a put (less is better)", "µs", puts, (row) => row.cpuMicrosPerOp);
  return groups;
}

const text = (x: number, y: number, content: string, attributes = "") =>
  `<text x="${x}" y="${y}" ${attributes}>${content}</text>`;

/** A whole SVG document; undefined when the rows hold nothing to compare. */
export function toChart({ rows, machine, node, postgres, date }: Results): string | undefined {
  const groups = toGroups(rows);
  if (groups.length === 0) return undefined;
  const longest = Math.max(...groups.flatMap((group) => group.bars.map((bar) => bar.value)));
  const scale = (width - left - right) / longest;
  const parts: string[] = [];
  let y = 24;
  parts.push(text(12, y, "Against LangGraph's own PostgresSaver (1 ×)", `font-weight="600"`));
  y += 20;
  const about = `${machine.cores} cores for agents, service and Postgres together · Node ${node} · Postgres ${postgres} · ${date.slice(0, 10)}`;
  parts.push(text(12, y, about, `font-size="11"`));
  y += 18;
  const top = y;
  for (const { title, bars } of groups) {
    const middle = y + (bars.length * barHeight) / 2 + 4;
    parts.push(text(left - 12, middle, title, `text-anchor="end" font-weight="600"`));
    for (const { contender, value, label } of bars) {
      const length = Math.max(1, value * scale).toFixed(1);
      parts.push(
        `<rect x="${left}" y="${y}" width="${length}" height="${barHeight - 3}" rx="2" fill="${colours[contender]}"/>`,
        text(width - right + 12, y + barHeight - 4, label, `font-size="11"`),
      );
      y += barHeight;
    }
    y += gap;
  }
  const one = (left + scale).toFixed(1);
  parts.push(
    `<line x1="${one}" y1="${top - 4}" x2="${one}" y2="${y - gap + 2}" stroke="${ink}" stroke-dasharray="3 3"/>`,
  );
  let x = left;
  for (const contender of new Set(rows.map((row) => row.contender))) {
    parts.push(
      `<rect x="${x}" y="${y}" width="11" height="11" rx="2" fill="${colours[contender]}"/>`,
      text(x + 16, y + 10, contender, `font-size="11"`),
    );
    x += 90;
  }
  const height = y + 26;
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" width="${width}" height="${height}" font-family="system-ui, sans-serif" font-size="12" fill="${ink}" role="img">`,
    "<title>checkpointd against LangGraph's PostgresSaver</title>",
    ...parts,
    "</svg>",
    "",
  ].join("\n");
}
