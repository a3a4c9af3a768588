/** Metrics of several workers on one page. */
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { put, type Samples } from "../metrics/samples.js";
import { createClients } from "../testing/edge.js";
import { createDatabase, type TestDatabase } from "../testing/postgres.js";
import { readPage, scrape } from "../testing/prometheus.js";
import { runCommand, type ServeProcess, startServe } from "../testing/serve_process.js";
import { createWorkerMetrics } from "./worker_metrics.js";

let database: TestDatabase;
const servers: ServeProcess[] = [];
beforeAll(async () => {
  database = await createDatabase();
});
afterEach(() => {
  // Of a test that failed; its workers go with it.
  for (const { child } of servers.splice(0)) child.kill("SIGKILL");
});
afterAll(() => database?.drop());

async function serve(...args: string[]) {
  const server = await startServe(["--database-url", database.url, "--workers", "2", ...args]);
  servers.push(server);
  await server.printed("is ready");
  const metricsUrl = /its metrics: (\S+)/.exec(server.output().stdout)?.[1] as string;
  return { ...server, metricsUrl };
}

const request = (threadId: string) => ({ threadId, checkpointId: "1", checkpointJson: "{}" });
/** Over more connections than there are workers, which have them in turn. */
async function putAll(url: string, count: number): Promise<void> {
  for (let i = 0; i < count; i++) await createClients(url).connect.put(request(`t${i}`));
}

describe("the page of two workers", () => {
  it("has what both did, and loses nothing when one is killed", async () => {
    const server = await serve("--metrics-port", "0");
    const calls = async () =>
      (await scrape(server.metricsUrl)).sum("checkpointd_calls_total", { rpc: "put", code: "Ok" });
    await putAll(server.url, 6);
    await expect.poll(calls).toBe(6);
    const page = await scrape(server.metricsUrl);
    expect(page.get("checkpointd_workers")).toBe(2);
    expect(page.get("checkpointd_workers_silent")).toBe(0);
    expect(page.get("checkpointd_pool_connections_limit")).toBe(8);
    expect(page.get("checkpointd_ready")).toBe(1);
    const [, pid] = /"pid":(\d+),"msg":"a worker listens"/.exec(server.output().stderr) ?? [];
    process.kill(Number(pid), "SIGKILL");
    await expect
      .poll(async () => (await scrape(server.metricsUrl)).get("checkpointd_workers_ended_total"))
      .toBe(1);
    await expect
      .poll(async () => {
        const page = await scrape(server.metricsUrl);
        return [page.get("checkpointd_workers"), page.get("checkpointd_ready")];
      })
      .toEqual([2, 1]);
    expect(await calls()).toBe(6);
    await putAll(server.url, 4);
    await expect.poll(calls).toBe(10);
    expect((await server.stop()).code).toBe(0);
  });

  it("tells of a worker that is frozen, and what it had counted", async () => {
    const server = await serve("--metrics-port", "0");
    await putAll(server.url, 4);
    const [, text] = /"pid":(\d+),"msg":"a worker listens"/.exec(server.output().stderr) ?? [];
    const pid = Number(text);
    await expect
      .poll(async () => (await scrape(server.metricsUrl)).sum("checkpointd_calls_total"))
      .toBe(4);
    process.kill(pid, "SIGSTOP");
    await expect
      .poll(async () => (await scrape(server.metricsUrl)).get("checkpointd_workers_silent"))
      .toBe(1);
    const page = await scrape(server.metricsUrl);
    process.kill(pid, "SIGCONT");
    expect(page.get("checkpointd_workers")).toBe(1);
    expect(page.sum("checkpointd_calls_total")).toBe(4);
  });

  it("is on the port that they share, whichever of them is asked", async () => {
    const server = await serve("--metrics-port", "main");
    expect(server.metricsUrl).toBe(`${server.url}/metrics`);
    await putAll(server.url, 6);
    for (let i = 0; i < 4; i++) {
      const asked = async () =>
        readPage(
          await (await fetch(server.metricsUrl, { headers: { connection: "close" } })).text(),
        );
      await expect.poll(async () => (await asked()).sum("checkpointd_calls_total")).toBe(6);
      expect((await asked()).get("checkpointd_workers")).toBe(2);
    }
  });

  it("cannot be where something else listens", async () => {
    const server = await serve("--metrics-port", "0");
    const { port } = new URL(server.metricsUrl);
    const args = ["serve", "--port", "0", "--workers", "2", "--metrics-port", port];
    const { code, stderr } = await runCommand(args, { DATABASE_URL: database.url });
    expect(code).toBe(1);
    expect(stderr).toContain(`cannot listen on 127.0.0.1 port ${port}`);
  });
});

describe("gathering", () => {
  const counted = (calls: number, inFlight: number): Samples => {
    const samples: Samples = {};
    put(samples, "calls", calls, "put", "session", "Ok");
    put(samples, "callsInFlight", inFlight);
    return samples;
  };

  it("asks each once for all who ask at once, and waits for none for long", async () => {
    const gathered = createWorkerMetrics(50);
    const asked: number[] = [];
    const first = { ask: (id: number) => void asked.push(id) };
    const quiet = { ask: () => {} };
    gathered.begin(first);
    gathered.begin(quiet);
    gathered.answered(quiet, 0, counted(7, 3));
    const pages = [gathered.page(), gathered.page()];
    expect(asked).toHaveLength(1);
    gathered.answered(first, asked[0] as number, counted(5, 1));
    const [one, two] = await Promise.all(pages);
    expect(one).toBe(two);
    const page = readPage(one as string);
    expect(page.sum("checkpointd_calls_total")).toBe(12);
    expect(page.get("checkpointd_calls_in_flight")).toBe(1);
    expect(page.get("checkpointd_workers_silent")).toBe(1);
  });

  it("keeps what one that ended had counted, its last words included", async () => {
    const gathered = createWorkerMetrics(50);
    const worker = { ask: () => {} };
    gathered.begin(worker);
    gathered.answered(worker, 0, counted(9, 2));
    gathered.end(worker, false);
    // Of one that is gone, and was on its way.
    gathered.answered(worker, 0, counted(100, 2));
    await sleep(0);
    const page = readPage(await gathered.page());
    expect(page.sum("checkpointd_calls_total")).toBe(9);
    expect(page.values.has("checkpointd_calls_in_flight")).toBe(false);
    expect(page.get("checkpointd_workers_ended_total")).toBe(0);
  });
});
