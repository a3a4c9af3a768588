/** Values of metrics: what a process has, what several have together, and the page that tells them. */
import { catalogue, type Metric, type MetricKey } from "./catalogue.js";

/** What a histogram has counted, bucket by bucket and not yet added up; the last is all above. */
export interface Distribution {
  readonly counts: readonly number[];
  readonly sum: number;
}

/** The value under the labels, which are in the catalogue's order. */
export type Sample = readonly [labels: readonly string[], value: number | Distribution];

/** Values by metric, as they also travel from a worker to its primary. */
export type Samples = { [Key in MetricKey]?: Sample[] };

/** Adds one. */
export function put(
  samples: Samples,
  key: MetricKey,
  value: number | Distribution,
  ...labels: string[]
): void {
  samples[key] ??= [];
  samples[key].push([labels, value]);
}

/** Counts values into the buckets of a metric. */
export class Histogram implements Distribution {
  readonly counts: number[];
  sum = 0;
  readonly #bounds: readonly number[];

  constructor({ buckets }: Pick<Metric, "buckets">) {
    this.#bounds = buckets;
    this.counts = new Array(buckets.length + 1).fill(0);
  }

  observe(value: number): void {
    const bounds = this.#bounds;
    let i = 0;
    while (i < bounds.length && value > (bounds[i] as number)) i++;
    (this.counts[i] as number)++;
    this.sum += value;
  }
}

/** The values of several processes as if they were one. */
export function merge(all: readonly Samples[]): Samples {
  const merged: Samples = {};
  for (const key of keys) {
    const { merge: how } = catalogue[key];
    const byLabels = new Map<string, Sample>();
    for (const samples of all) {
      for (const sample of samples[key] ?? []) {
        const id = JSON.stringify(sample[0]);
        const before = byLabels.get(id);
        byLabels.set(id, before ? [sample[0], mergeTwo(how, before[1], sample[1])] : sample);
      }
    }
    if (byLabels.size > 0) merged[key] = [...byLabels.values()];
  }
  return merged;
}

/** Of a process that is gone: what must not go back, or Prometheus would count it once more. */
export function onlyCounted(samples: Samples): Samples {
  const counted: Samples = {};
  for (const key of keys) {
    const found = samples[key];
    if (found && catalogue[key].type !== "gauge") counted[key] = found;
  }
  return counted;
}

function mergeTwo(
  how: Metric["merge"],
  a: number | Distribution,
  b: number | Distribution,
): number | Distribution {
  if (typeof a === "object" && typeof b === "object") {
    return { counts: a.counts.map((n, i) => n + (b.counts[i] ?? 0)), sum: a.sum + b.sum };
  }
  const [x, y] = [Number(a), Number(b)];
  return how === "sum" ? x + y : how === "max" ? Math.max(x, y) : Math.min(x, y);
}

const keys = Object.keys(catalogue) as MetricKey[];

/** What a page of text says it is. */
export const contentType = "text/plain; version=0.0.4; charset=utf-8";

/** The page, in Prometheus's text format 0.0.4. A metric without a value is left out. */
export function toText(samples: Samples): string {
  let page = "";
  for (const key of keys) {
    const found = samples[key];
    if (!found || found.length === 0) continue;
    const { name, type, help, labels: names, buckets } = catalogue[key] as Metric;
    page += `# HELP ${name} ${help.replace(/[\\\n]/g, escapes)}\n# TYPE ${name} ${type}\n`;
    for (const [values, value] of found) {
      const labels = names
        .map((label, i) => `${label}="${escapeValue(values[i] ?? "")}"`)
        .join(",");
      const braced = labels && `{${labels}}`;
      if (typeof value === "number") {
        page += `${name}${braced} ${toNumber(value)}\n`;
        continue;
      }
      let count = 0;
      for (const [i, n] of value.counts.entries()) {
        count += n;
        const bound = i < buckets.length ? String(buckets[i]) : "+Inf";
        page += `${name}_bucket{${labels && `${labels},`}le="${bound}"} ${count}\n`;
      }
      page += `${name}_sum${braced} ${toNumber(value.sum)}\n${name}_count${braced} ${count}\n`;
    }
  }
  return page;
}

const escapeValue = (value: string) => value.replace(/[\\"\n]/g, escapes);
const escapes = (found: string) => (found === "\n" ? "\\n" : `\\${found}`);

function toNumber(value: number): string {
  if (value === Number.POSITIVE_INFINITY) return "+Inf";
  return value === Number.NEGATIVE_INFINITY ? "-Inf" : String(value);
}
