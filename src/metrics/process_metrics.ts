/** What a process takes of its machine, and how its event loop does. */
import { readdirSync, readFileSync } from "node:fs";
import {
  constants,
  type PerformanceEntry,
  PerformanceObserver,
  performance,
} from "node:perf_hooks";
import { getHeapStatistics } from "node:v8";
import { catalogue } from "./catalogue.js";
import { Histogram, put, type Samples } from "./samples.js";

/** What an entry of a garbage collection has besides. */
interface OfGc {
  detail: { kind: number };
}

/** What is measured of this process. */
export interface ProcessMetrics {
  addTo(samples: Samples): void;
  stop(): void;
}

/** How often it is looked whether the event loop is late: 20 times a second, 3 us each. */
const tickMs = 50;
const secondMs = 1_000;

const kinds: Readonly<Record<number, string>> = {
  [constants.NODE_PERFORMANCE_GC_MAJOR]: "major",
  [constants.NODE_PERFORMANCE_GC_MINOR]: "minor",
  [constants.NODE_PERFORMANCE_GC_INCREMENTAL]: "incremental",
  [constants.NODE_PERFORMANCE_GC_WEAKCB]: "weakcb",
};

/**
 * Begins to measure. Of the event loop each second's longest standstill is counted. Not by Node's
 * monitorEventLoopDelay: two Prometheuses that reset its percentiles would have half of them each, and
 * it does not see what stands still right after a reset (300 ms, in Node 20).
 */
export function startProcessMetrics(): ProcessMetrics {
  const standstill = new Histogram(catalogue.standstillSeconds);
  let tickedAt = performance.now();
  let second = tickedAt;
  let longest = 0;
  const timer = setInterval(() => {
    const now = performance.now();
    longest = Math.max(longest, now - tickedAt - tickMs);
    tickedAt = now;
    if (now < second + secondMs) return;
    standstill.observe(longest / 1e3);
    second = now;
    longest = 0;
  }, tickMs).unref();
  const gc = { major: 0, minor: 0, incremental: 0, weakcb: 0 } as Record<string, number>;
  const observer = new PerformanceObserver((list) => {
    // The types of Node 20 have no detail.
    for (const { duration, detail } of list.getEntries() as (PerformanceEntry & OfGc)[]) {
      const kind = kinds[detail.kind] ?? "minor";
      gc[kind] = (gc[kind] ?? 0) + duration / 1e3;
    }
  });
  observer.observe({ entryTypes: ["gc"] });
  return {
    addTo(samples) {
      const { counts, sum } = standstill;
      put(samples, "standstillSeconds", { counts: [...counts], sum });
      put(samples, "eventLoopBusy", performance.eventLoopUtilization().active / 1e3);
      for (const [kind, seconds] of Object.entries(gc)) put(samples, "gcSeconds", seconds, kind);
      addMemory(samples);
    },
    stop() {
      clearInterval(timer);
      observer.disconnect();
    },
  };
}

/** Of a process that serves nothing itself, as a primary with workers. */
export function addMemory(samples: Samples): void {
  const { user, system } = process.cpuUsage();
  const { rss, external } = process.memoryUsage();
  const { used_heap_size, heap_size_limit } = getHeapStatistics();
  put(samples, "heapUsed", used_heap_size);
  put(samples, "heapLimit", heap_size_limit);
  put(samples, "externalBytes", external);
  put(samples, "cpuSeconds", (user + system) / 1e6);
  put(samples, "residentBytes", rss);
  put(samples, "startedAt", performance.timeOrigin / 1e3);
  addFiles(samples);
}

/** As Linux tells them; nothing elsewhere. */
function addFiles(samples: Samples): void {
  try {
    const open = readdirSync("/proc/self/fd").length - 1;
    const limits = readFileSync("/proc/self/limits", "latin1");
    const most = /^Max open files +(\d+)/m.exec(limits)?.[1];
    put(samples, "openFds", open);
    if (most !== undefined) put(samples, "maxFds", Number(most));
  } catch {
    // Another system, or one that hides it.
  }
}
