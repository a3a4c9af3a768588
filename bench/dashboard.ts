/**
 * Draws the dashboard of deploy/grafana/ as a picture, with what a Prometheus has of the last minutes:
 * `node dist/bench/dashboard.js http://127.0.0.1:9090 6 > deploy/grafana/checkpointd.svg`, or those before a time. Grafana, which would draw
 * it, is in no registry of packages.
 */
import { readFileSync } from "node:fs";

interface Panel {
  type: string;
  title: string;
  gridPos: { x: number; y: number; w: number; h: number };
  fieldConfig?: { defaults: { unit: string; max?: number } };
  targets?: { expr: string; legendFormat: string }[];
}

interface Line {
  name: string;
  points: [seconds: number, value: number][];
}

const [url = "", minutes = "6", until] = process.argv.slice(2);
if (url === "") throw new Error("give the URL of a Prometheus, and how many minutes");
const { panels } = JSON.parse(
  readFileSync(new URL("../../deploy/grafana/checkpointd.json", import.meta.url), "utf8"),
) as { panels: Panel[] };

const end = Math.floor((until === undefined ? Date.now() : Date.parse(until)) / 1000);
const start = end - Number(minutes) * 60;
const step = Math.max(2, Math.round((end - start) / 120));
const colors = [
  "#3274d9",
  "#e02f44",
  "#37872d",
  "#e0b400",
  "#8f3bb8",
  "#fa6400",
  "#5794f2",
  "#b877d9",
];
/** Of one cell of Grafana's grid. */
const [cellWidth, cellHeight] = [50, 30];
const width = 24 * cellWidth;
const height = Math.max(...panels.map(({ gridPos }) => gridPos.y + gridPos.h)) * cellHeight;

async function linesOf({ expr, legendFormat }: { expr: string; legendFormat: string }) {
  const query = expr.replaceAll("$__rate_interval", "20s").replace(/\$(instance|rpc)\b/g, ".*");
  const asked = new URLSearchParams({ query, start: `${start}`, end: `${end}`, step: `${step}` });
  const response = await fetch(`${url}/api/v1/query_range?${asked}`);
  const { data, error } = (await response.json()) as {
    error?: string;
    data: { result: { metric: Record<string, string>; values: [number, string][] }[] };
  };
  if (error) throw new Error(`${query}: ${error}`);
  return data.result.map(
    ({ metric, values }): Line => ({
      name: legendFormat.replace(/\{\{(\w+)\}\}/g, (_, label) => metric[label] ?? ""),
      points: values.map(([at, value]): [number, number] => [at, Number(value)]),
    }),
  );
}

const prefixes: [number, string][] = [
  [1e9, "G"],
  [1e6, "M"],
  [1e3, "k"],
];
function show(value: number, unit: string): string {
  if (unit === "percentunit") return `${(value * 100).toPrecision(3).replace(/\.?0+$/, "")} %`;
  if (unit === "s")
    return value < 1
      ? `${Number((value * 1000).toPrecision(3))} ms`
      : `${Number(value.toPrecision(3))} s`;
  const [by, prefix] = prefixes.find(([from]) => value >= from) ?? [1, ""];
  const suffix = unit === "bytes" ? "B" : unit === "Bps" ? "B/s" : unit === "reqps" ? "/s" : "";
  return `${Number((value / by).toPrecision(3))} ${prefix}${suffix}`.trim();
}

const escapeText = (text: string) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;");
const label = (x: number, y: number, text: string, more = "") =>
  `<text x="${x.toFixed(1)}" y="${y.toFixed(1)}" ${more}>${escapeText(text)}</text>`;

async function draw({ type, title, gridPos, fieldConfig, targets = [] }: Panel): Promise<string> {
  const [x, y] = [gridPos.x * cellWidth, gridPos.y * cellHeight];
  const [w, h] = [gridPos.w * cellWidth, gridPos.h * cellHeight];
  if (type === "row") return label(x + 8, y + 21, title, 'font-weight="bold" font-size="14"');
  const unit = fieldConfig?.defaults.unit ?? "short";
  const lines = (await Promise.all(targets.map(linesOf))).flat();
  const frame = `<rect x="${x + 3}" y="${y + 3}" width="${w - 6}" height="${h - 6}" rx="3" fill="#fff" stroke="#d8d9da"/>`;
  const head = label(x + 12, y + 20, title, 'font-size="12" font-weight="600"');
  if (type === "stat") {
    const last = lines[0]?.points.at(-1)?.[1];
    const value = last === undefined || Number.isNaN(last) ? "–" : show(last, unit);
    return (
      frame + head + label(x + w / 2, y + h / 2 + 20, value, 'font-size="28" text-anchor="middle"')
    );
  }
  const [left, top, right, bottom] = [x + 62, y + 32, x + w - 14, y + h - 34];
  const finite = lines
    .flatMap(({ points }) => points.map(([, value]) => value))
    .filter(Number.isFinite);
  const most = fieldConfig?.defaults.max ?? Math.max(...finite, unit === "s" ? 0.001 : 1e-9) * 1.05;
  const px = (at: number) => left + ((at - start) / (end - start)) * (right - left);
  const py = (value: number) => bottom - (Math.min(value, most) / most) * (bottom - top);
  let drawn = frame + head;
  for (const part of [0, 0.5, 1]) {
    const at = py(most * part);
    drawn += `<path d="M${left} ${at.toFixed(1)}H${right}" stroke="#eee"/>`;
    drawn += label(left - 5, at + 4, show(most * part, unit), 'text-anchor="end" fill="#666"');
  }
  let legend = left - 50;
  for (const [i, { name, points }] of lines.entries()) {
    const color = colors[i % colors.length];
    let path = "";
    for (const [n, [at, value]] of points.entries()) {
      if (!Number.isFinite(value)) continue;
      const before = points[n - 1];
      const begins = !before || !Number.isFinite(before[1]) || at - before[0] > 1.5 * step;
      path += `${begins ? "M" : "L"}${Math.round(px(at))} ${Math.round(py(value))}`;
    }
    drawn += `<path d="${path}" fill="none" stroke="${color}" stroke-width="1.2"/>`;
    const room = right - legend;
    if (room < 40) continue;
    const shown = name.length * 6.2 > room ? `${name.slice(0, Math.floor(room / 6.2) - 1)}…` : name;
    drawn += `<rect x="${legend}" y="${bottom + 14}" width="8" height="3" fill="${color}"/>`;
    drawn += label(legend + 11, bottom + 19, shown);
    legend += shown.length * 6.2 + 24;
  }
  return drawn;
}

const drawn: string[] = [];
for (const panel of panels) drawn.push(await draw(panel));
process.stdout.write(
  `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" font-family="sans-serif" font-size="10">
<title>The dashboard of checkpointd, drawn of a service under load</title>
<rect width="${width}" height="${height}" fill="#f4f5f5"/>
${drawn.join("\n")}
</svg>
`,
);
