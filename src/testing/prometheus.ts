/** What Prometheus makes of a page of metrics, read as strictly as the format allows. */

/** A page as it was read: values by their series, written as on the page. */
export interface ScrapedPage {
  readonly types: ReadonlyMap<string, string>;
  readonly helps: ReadonlyMap<string, string>;
  /** By `name{label="value"}`, with the labels in the order of the page. */
  readonly values: ReadonlyMap<string, number>;
  /** The value of a series; 0 where it is not there. */
  get(series: string): number;
  /** The sum of all series of a name of which the labels are these. */
  sum(name: string, labels?: Readonly<Record<string, string>>): number;
  /** The label names of a metric, without a histogram's le. */
  labelsOf(name: string): string[];
}

/** One line of values. */
interface Line {
  name: string;
  labels: [name: string, value: string][];
  value: number;
}

/** Reads a page, or throws with the line that is wrong. */
export function readPage(text: string): ScrapedPage {
  if (!text.endsWith("\n")) throw new Error("the page does not end with a line feed");
  const types = new Map<string, string>();
  const helps = new Map<string, string>();
  const values = new Map<string, number>();
  const lines: Line[] = [];
  let current = "";
  for (const line of text.slice(0, -1).split("\n")) {
    const wrong = (why: string) => new Error(`${why}: ${line}`);
    const [, keyword, of = "", rest = ""] = /^# (HELP|TYPE) ([a-z_:]+) (.+)$/.exec(line) ?? [];
    if (keyword === "HELP") {
      if (helps.has(of)) throw wrong("told twice");
      helps.set(of, rest);
      current = of;
    } else if (keyword === "TYPE") {
      if (of !== current || types.has(of)) throw wrong("not after its HELP");
      if (!["counter", "gauge", "histogram"].includes(rest)) throw wrong("no type");
      types.set(of, rest);
    } else {
      const read = readLine(line);
      if (!read) throw wrong("no line of values");
      const isOfCurrent =
        types.get(current) === "histogram"
          ? [`${current}_bucket`, `${current}_sum`, `${current}_count`].includes(read.name)
          : read.name === current;
      if (!isOfCurrent) throw wrong("not under its TYPE");
      const series = line.slice(0, line.lastIndexOf(" "));
      if (values.has(series)) throw wrong("told twice");
      if (types.get(current) === "counter" && !(read.value >= 0)) throw wrong("no counter's value");
      values.set(series, read.value);
      lines.push(read);
    }
  }
  checkHistograms(types, lines);
  return {
    types,
    helps,
    values,
    get: (series) => values.get(series) ?? 0,
    sum: (name, wanted = {}) =>
      lines
        .filter((line) => line.name === name)
        .filter(({ labels }) =>
          Object.entries(wanted).every(([label, value]) =>
            labels.some(([each, its]) => each === label && its === value),
          ),
        )
        .reduce((sum, { value }) => sum + value, 0),
    labelsOf(name) {
      const found = lines.find((line) => line.name === name || line.name === `${name}_count`);
      return (found?.labels ?? []).map(([label]) => label);
    },
  };
}

const number = /^(?:[+-]Inf|-?\d+(?:\.\d+)?(?:e[+-]\d+)?)$/;

function readLine(line: string): Line | undefined {
  const [, name, inside = "", value = ""] =
    /^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.+)\})? (\S+)$/.exec(line) ?? [];
  if (name === undefined || !number.test(value)) return undefined;
  const labels: [string, string][] = [];
  let rest = inside;
  while (rest !== "") {
    const [whole = "", label, quoted = ""] =
      /^([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\[\\"n])*)"(?:,|$)/.exec(rest) ?? [];
    if (label === undefined || labels.some(([each]) => each === label)) return undefined;
    labels.push([label, quoted.replace(/\\(.)/g, (_, c) => (c === "n" ? "\n" : c))]);
    rest = rest.slice(whole.length);
  }
  return { name, labels, value: Number(value.replace("Inf", "Infinity")) };
}

/** Buckets that grow up to infinity, which has the count. */
function checkHistograms(types: ReadonlyMap<string, string>, lines: readonly Line[]): void {
  for (const [name, type] of types) {
    if (type !== "histogram") continue;
    const series = new Map<string, Line[]>();
    for (const line of lines) {
      if (!line.name.startsWith(`${name}_`)) continue;
      const key = JSON.stringify(line.labels.filter(([label]) => label !== "le"));
      series.set(key, [...(series.get(key) ?? []), line]);
    }
    for (const [key, of] of series) {
      const wrong = (why: string) => new Error(`${name} ${key}: ${why}`);
      const buckets = of.filter((line) => line.name === `${name}_bucket`);
      const bounds = buckets.map(({ labels }) =>
        Number(labels.find(([label]) => label === "le")?.[1].replace("Inf", "Infinity")),
      );
      if (bounds.at(-1) !== Number.POSITIVE_INFINITY) throw wrong("no bucket of infinity");
      if (bounds.some((bound, i) => i > 0 && bound <= (bounds[i - 1] as number))) {
        throw wrong("its bounds do not grow");
      }
      if (buckets.some(({ value }, i) => i > 0 && value < (buckets[i - 1]?.value as number))) {
        throw wrong("its buckets do not grow");
      }
      const count = of.find((line) => line.name === `${name}_count`)?.value;
      if (count === undefined || buckets.at(-1)?.value !== count) throw wrong("not its count");
      if (!of.some((line) => line.name === `${name}_sum`)) throw wrong("no sum");
    }
  }
}

/** Asks for a page and reads it. */
export async function scrape(
  url: string,
  headers: Record<string, string> = {},
): Promise<ScrapedPage> {
  const response = await fetch(url, { headers });
  if (response.status !== 200) throw new Error(`${response.status}: ${await response.text()}`);
  const type = response.headers.get("content-type");
  if (type !== "text/plain; version=0.0.4; charset=utf-8") throw new Error(`a page of ${type}`);
  return readPage(await response.text());
}
