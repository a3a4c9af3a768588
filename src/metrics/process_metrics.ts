/** What a process takes of its machine, and how its event loop does. */
import { readdirSync, readFileSync } from "node:fs";
import {
  constants,
  monitorEventLoopDelay,
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

/** How often libuv looks whether the event loop is late: without JavaScript, some microseconds a second. */
const resolutionMs = 20;

const kinds: Readonly<Record<number, string>> = {
  [constants.NODE_PERFORMANCE_GC_MAJOR]: "major",
  [constants.NODE_PERFORMANCE_GC_MINOR]: "minor",
  [constants.NODE_PERFORMANCE_GC_INCREMENTAL]: "incremental",
  [constants.NODE_PERFORMANCE_GC_WEAKCB]: "weakcb",
};

/**
 * Begins to measure. Of the event loop each second's longest standstill is counted: what Node gives,
 * percentiles since somebody last reset them, would tell two Prometheuses half of it each.
 */
export function startProcessMetrics(): ProcessMetrics {
  const standstill = new Histogram(catalogue.standstillSeconds);
  const delay = monitorEventLoopDelay({ resolution: resolutionMs });
  delay.enable();
  const timer = setInterval(() => {
    // 0 where nothing was late: it records nothing then.
    standstill.observe(Math.max(0, delay.max / 1e6 - resolutionMs) / 1e3);
    delay.reset();
  }, 1_000).unref();
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
      delay.disable();
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
