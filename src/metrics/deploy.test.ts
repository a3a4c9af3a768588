/** What operators are given for Prometheus and Grafana, and docs/metrics.md, against the metrics there are. */
import { execFile, spawnSync } from "node:child_process";
import { readFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { parser } from "@prometheus-io/lezer-promql";
import { describe, expect, it } from "vitest";
import { parse } from "yaml";
import { catalogue, type Metric } from "./catalogue.js";

const root = fileURLToPath(new URL("../..", import.meta.url));
const read = (name: string) => readFile(root + name, "utf8");
const metrics: Metric[] = Object.values(catalogue);

/** The labels of each series that a scrape leads to; Prometheus adds the last two. */
const series = new Map<string, readonly string[]>();
for (const { name, type, labels } of metrics) {
  const own = [...labels, "instance", "job"];
  if (type !== "histogram") series.set(name, own);
  else {
    series.set(`${name}_bucket`, [...own, "le"]);
    series.set(`${name}_sum`, own);
    series.set(`${name}_count`, own);
  }
}
// Prometheus's own.
series.set("up", ["instance", "job"]);
series.set("ALERTS", ["alertname", "alertstate", "instance"]);

/** What is wrong in an expression: that it is none, or names what is not there. */
function wrongIn(expr: string): string[] {
  const wrong: string[] = [];
  const grouped: string[] = [];
  const known = new Set<string>();
  parser.parse(expr).iterate({
    enter({ type, from, to, node }) {
      const text = expr.slice(from, to);
      if (type.isError) wrong.push(`no PromQL at ${from}: ${expr}`);
      else if (type.name === "VectorSelector") {
        const name = expr.slice(node.firstChild?.from, node.firstChild?.to);
        const labels = series.get(name);
        if (!labels) wrong.push(`no metric ${name}`);
        for (const label of labels ?? []) known.add(label);
        const matchers = [...text.matchAll(/[{,]\s*(\w+)\s*(?:=~|!~|!=|=)/g)];
        for (const [, label = ""] of matchers) {
          if (labels && !labels.includes(label)) wrong.push(`${name} has no label ${label}`);
        }
      } else if (type.name === "GroupingLabels") {
        grouped.push(
          ...text
            .replace(/[()\s]/g, "")
            .split(",")
            .filter(Boolean),
        );
      }
    },
  });
  for (const label of grouped) if (!known.has(label)) wrong.push(`no label ${label}: ${expr}`);
  return wrong;
}

/** The values of labels that an expression asks for by name. */
function valuesIn(expr: string, label: string): string[] {
  return [...expr.matchAll(new RegExp(`\\b${label}(?:=|=~|!=)"([^"$]+)"`, "g"))].flatMap(
    ([, value = ""]) => value.split("|"),
  );
}

interface Rule {
  alert: string;
  expr: string;
  for: string;
  labels: { severity: string };
  annotations: { summary: string; runbook: string };
}

const file = parse(await read("deploy/prometheus/alerts.yaml")) as {
  groups: { name: string; rules: Rule[] }[];
};
const rules = file.groups.flatMap(({ rules }) => rules);

interface Target {
  expr: string;
  legendFormat: string;
}
interface Panel {
  id: number;
  type: string;
  title: string;
  gridPos: { x: number; y: number; w: number; h: number };
  targets?: Target[];
}

const dashboard = JSON.parse(await read("deploy/grafana/checkpointd.json")) as {
  panels: Panel[];
  templating: { list: { name: string; query: string | { query: string } }[] };
  annotations: { list: { expr: string }[] };
};
const targets = dashboard.panels.flatMap(({ title, targets = [] }) =>
  targets.map((target) => ({ title, ...target })),
);
/** As Grafana fills it in. */
const filled = (expr: string) =>
  expr.replaceAll("$__rate_interval", "1m").replace(/\$(instance|rpc)\b/g, ".*");

describe("an expression", () => {
  it("is found out where it names what is not there", () => {
    expect(wrongIn("sum by (rpc) (rate(checkpointd_calls_total[5m]))")).toEqual([]);
    expect(wrongIn("rate(checkpointd_call_total[5m])")).toEqual([
      "no metric checkpointd_call_total",
    ]);
    expect(wrongIn('checkpointd_ready{rpc="put"}')).toEqual(["checkpointd_ready has no label rpc"]);
    expect(wrongIn("sum by (tenant) (checkpointd_ready)")[0]).toContain("no label tenant");
    expect(wrongIn("sum by (rpc) (rate(")).not.toEqual([]);
    expect(wrongIn("checkpointd_call_duration_seconds")).not.toEqual([]);
  });
});

describe("the alert rules", () => {
  it.each(rules)("$alert asks for metrics that there are", ({ expr }) => {
    expect(wrongIn(expr)).toEqual([]);
  });

  it("have a name, a severity, a summary and what to do, each its own", () => {
    expect(rules.length).toBeGreaterThan(30);
    expect(new Set(rules.map(({ alert }) => alert)).size).toBe(rules.length);
    for (const { alert, labels, annotations, expr, for: duration } of rules) {
      expect(alert).toMatch(/^Checkpointd[A-Z]\w+$/);
      expect(["page", "ticket"], alert).toContain(labels.severity);
      expect(duration, alert).toMatch(/^\d+[sm]$/);
      expect(annotations.runbook.length, alert).toBeGreaterThan(40);
      for (const [, label = ""] of annotations.summary.matchAll(/\$labels\.(\w+)/g)) {
        expect(`${expr} instance`, alert).toContain(label);
      }
    }
  });

  it("name reasons of errors, and codes, that there are", async () => {
    const errors = await read("src/errors.ts");
    const codes = ["Internal", "Unknown", "Unavailable", "DataLoss", "DeadlineExceeded"];
    for (const { expr } of [...rules, ...targets]) {
      for (const reason of valuesIn(expr, "reason")) expect(errors).toContain(`| "${reason}"`);
      for (const code of valuesIn(expr, "code")) expect(codes).toContain(code);
    }
  });

  it("each have their line in the runbook", async () => {
    const operate = await read("docs/operate.md");
    const told = [...operate.matchAll(/^\| `(Checkpointd\w+)` \| .+ \| (.+) \|$/gm)];
    expect(told.map(([, alert, todo]) => [alert, todo])).toEqual(
      rules.map(({ alert, annotations }) => [alert, annotations.runbook]),
    );
  });
});

describe("the dashboard", () => {
  it.each(targets)("$title asks for metrics that there are: $expr", ({ expr, legendFormat }) => {
    expect(wrongIn(filled(expr))).toEqual([]);
    const labels = [...series.values()].flat();
    for (const [, label = ""] of legendFormat.matchAll(/\{\{(\w+)\}\}/g)) {
      expect(labels).toContain(label);
      expect(expr, "a label that the sum leaves").toMatch(
        new RegExp(`by \\([^)]*\\b${label}\\b|^[^(]*$|on \\(${label}|${label}|^rate|^[a-z_]+\\{`),
      );
    }
  });

  it("has panels that do not overlap, each with an id of its own", () => {
    const { panels } = dashboard;
    expect(new Set(panels.map(({ id }) => id)).size).toBe(panels.length);
    const cells = new Map<string, string>();
    for (const { title, gridPos } of panels) {
      expect(gridPos.x + gridPos.w, title).toBeLessThanOrEqual(24);
      for (let x = gridPos.x; x < gridPos.x + gridPos.w; x++) {
        for (let y = gridPos.y; y < gridPos.y + gridPos.h; y++) {
          expect(cells.get(`${x},${y}`), `${title} over`).toBeUndefined();
          cells.set(`${x},${y}`, title);
        }
      }
    }
  });

  it("has variables and annotations of what there is", () => {
    const queries = dashboard.templating.list.map(({ query }) =>
      typeof query === "string" ? query : query.query,
    );
    for (const query of queries.filter((query) => query !== "prometheus")) {
      const [, name = "", label = ""] = /^label_values\((\w+), (\w+)\)$/.exec(query) ?? [];
      expect(series.get(name), query).toContain(label);
    }
    for (const { expr } of dashboard.annotations.list) expect(wrongIn(expr)).toEqual([]);
  });

  it("shows every metric, or an alert asks for it, but for these", () => {
    const shown = targets.map(({ expr }) => expr).join(" ");
    const alerted = rules.map(({ expr }) => expr).join(" ");
    const nowhere = metrics
      .map(({ name }) => name)
      .filter((name) => !(shown + alerted).includes(name));
    expect(nowhere).toEqual([
      "checkpointd_pool_waiting_calls_limit",
      "checkpointd_pool_long_statements_limit",
      "checkpointd_sample_seconds",
      "checkpointd_sample_timestamp_seconds",
      "checkpointd_retention_removed_bytes_total",
      "checkpointd_retention_seconds_total",
      "process_start_time_seconds",
    ]);
  });
});

describe("docs/metrics.md", () => {
  it("tells what each metric means and when to worry", async () => {
    const page = await read("docs/metrics.md");
    const told = [
      ...page.matchAll(/^\| `((?:checkpointd|process)_\w+)` \| (.*?) \| (.+?) \| (.+) \|$/gm),
    ];
    expect(told.map(([, name, labels, help]) => [name, labels, help])).toEqual(
      metrics.map(({ name, labels, help }) => [
        name,
        labels.map((label) => `\`${label}\``).join(", "),
        help,
      ]),
    );
    for (const [, name, , , worry = ""] of told) expect(worry, name).toMatch(/\w{3,}.*\.$/);
  });
});

describe("promtool", () => {
  const isInstalled = spawnSync("promtool", ["--version"]).error === undefined;

  it.skipIf(!isInstalled)("takes the alert rules, and they fire when they should", async () => {
    const run = promisify(execFile);
    const folder = `${root}deploy/prometheus`;
    const check = await run("promtool", ["check", "rules", "alerts.yaml"], { cwd: folder });
    expect(check.stdout).toContain(`SUCCESS: ${rules.length} rules found`);
    const test = await run("promtool", ["test", "rules", "alerts.test.yaml"], { cwd: folder });
    expect(test.stdout).toContain("SUCCESS");
  });
});
