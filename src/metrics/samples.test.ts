import { describe, expect, it } from "vitest";
import { readPage } from "../testing/prometheus.js";
import { catalogue, type Metric } from "./catalogue.js";
import { Histogram, merge, onlyCounted, put, type Samples, toText } from "./samples.js";

describe("the catalogue", () => {
  const all: [string, Metric][] = Object.entries(catalogue);

  it("has names by Prometheus's conventions, each once", () => {
    expect(new Set(all.map(([, { name }]) => name)).size).toBe(all.length);
    for (const [, { name, type, help, labels, buckets }] of all) {
      expect(name).toMatch(/^(checkpointd|process)_[a-z_]+$/);
      expect(name.endsWith("_total"), name).toBe(type === "counter");
      expect(name, "base units only").not.toMatch(
        /_(ms|millis\w*|micros\w*|kb|mb|mib|minutes)(_|$)/,
      );
      expect(help, name).toMatch(/^[A-Z0-9].*[^ ]\.$/s);
      expect(labels, name).not.toContain("le");
      expect(buckets.length > 0, name).toBe(type === "histogram");
      expect([...buckets].sort((a, b) => a - b)).toEqual(buckets);
    }
  });
});

describe("a page", () => {
  it("tells counters, gauges and histograms, and nothing of what has no value", () => {
    const samples: Samples = {};
    put(samples, "calls", 3, "put", "session", "Ok");
    put(samples, "ready", 1);
    const seconds = new Histogram(catalogue.standstillSeconds);
    for (const value of [0, 0.005, 0.006, 7]) seconds.observe(value);
    put(samples, "standstillSeconds", seconds);
    const text = toText(samples);
    expect(text.split("\n").slice(0, 4)).toEqual([
      "# HELP checkpointd_calls_total Calls that are over.",
      "# TYPE checkpointd_calls_total counter",
      'checkpointd_calls_total{rpc="put",carrier="session",code="Ok"} 3',
      `# HELP checkpointd_ready ${catalogue.ready.help}`,
    ]);
    const page = readPage(text);
    expect([...page.types.keys()]).toEqual([
      "checkpointd_calls_total",
      "checkpointd_ready",
      "checkpointd_event_loop_standstill_seconds",
    ]);
    const bucket = (le: string) =>
      page.get(`checkpointd_event_loop_standstill_seconds_bucket{le="${le}"}`);
    expect(["0.005", "0.01", "5", "+Inf"].map(bucket)).toEqual([2, 3, 3, 4]);
    expect(page.get("checkpointd_event_loop_standstill_seconds_sum")).toBeCloseTo(7.011);
  });

  it("escapes what a label may not hold as it is", () => {
    const samples: Samples = {};
    put(samples, "tenantCalls", 1, 'a"b\\c\nd');
    const text = toText(samples);
    expect(text).toContain('{tenant="a\\"b\\\\c\\nd"} 1\n');
    expect(readPage(text).sum("checkpointd_tenant_calls_total", { tenant: 'a"b\\c\nd' })).toBe(1);
  });
});

describe("the values of several processes", () => {
  const of = (calls: number, heap: number, ready: number, seconds: number): Samples => {
    const samples: Samples = {};
    put(samples, "calls", calls, "put", "session", "Ok");
    put(samples, "heapUsed", heap);
    put(samples, "ready", ready);
    const histogram = new Histogram(catalogue.callSeconds);
    histogram.observe(seconds);
    put(samples, "callSeconds", histogram, "put", "session");
    return samples;
  };

  it("are added up, or the most or the least of them", () => {
    const extra: Samples = {};
    put(extra, "calls", 5, "list", "grpc", "Ok");
    const page = readPage(toText(merge([of(1, 10, 1, 0.01), of(2, 7, 0, 20), extra])));
    expect(page.sum("checkpointd_calls_total")).toBe(8);
    expect(page.sum("checkpointd_calls_total", { rpc: "put" })).toBe(3);
    expect(page.get("checkpointd_heap_used_bytes")).toBe(10);
    expect(page.get("checkpointd_ready")).toBe(0);
    expect(page.sum("checkpointd_call_duration_seconds_count")).toBe(2);
    expect(page.sum("checkpointd_call_duration_seconds_bucket", { le: "0.01" })).toBe(1);
    expect(page.sum("checkpointd_call_duration_seconds_sum")).toBeCloseTo(20.01);
  });

  it("travel as JSON, and leave only what was counted", () => {
    const sent = JSON.parse(JSON.stringify(of(4, 10, 1, 0.01))) as Samples;
    const page = readPage(toText(merge([onlyCounted(sent), of(1, 3, 1, 0.01)])));
    expect(page.sum("checkpointd_calls_total")).toBe(5);
    expect(page.get("checkpointd_heap_used_bytes")).toBe(3);
  });
});
