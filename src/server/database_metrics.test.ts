/** What is measured of Postgres itself: when it was started, and how far a standby is behind. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import pg from "pg";
import { expect, onTestFinished, test } from "vitest";
import { startEmbedded } from "../store/embedded.js";
import { scrape } from "../testing/prometheus.js";
import { startStandby } from "../testing/standby.js";
import { startTestServer } from "../testing/test_server.js";

const metric = "checkpointd_database_standby_lag_bytes";

async function connect(databaseUrl: string): Promise<pg.Client> {
  const client = new pg.Client({ connectionString: databaseUrl });
  client.on("error", () => {});
  await client.connect();
  onTestFinished(() => client.end());
  return client;
}

test("is told of the slowest standby, to a role that may know, and of none where there is none", async () => {
  const folder = mkdtempSync(path.join(tmpdir(), "standby-"));
  onTestFinished(() => rmSync(folder, { recursive: true, force: true }));
  const dataDir = path.join(folder, "primary");
  const primary = await startEmbedded({ dataDir, onProgress: () => {} });
  onTestFinished(() => primary.stop());
  const ours = await startTestServer(primary.databaseUrl, { metricsPort: 0 }, { metricsPageMs: 0 });
  onTestFinished(() => ours.drain());
  const lag = async (server = ours) => (await scrape(server.metricsUrl as string)).sum(metric);
  const isTold = async (server = ours) =>
    (await scrape(server.metricsUrl as string)).types.has(metric);
  expect(await isTold()).toBe(false);

  const { databaseUrl } = primary;
  const standby = await startStandby({ databaseUrl, dataDir }, path.join(folder, "standby"));
  onTestFinished(() => standby.stop());
  await expect.poll(isTold, { timeout: 30_000 }).toBe(true);

  const [ofPrimary, ofStandby] = [await connect(databaseUrl), await connect(standby.databaseUrl)];
  await ofStandby.query("select pg_wal_replay_pause()");
  await ofPrimary.query(
    "create table filler as select repeat(md5(n::text), 100) from generate_series(1, 5000) n",
  );
  await expect.poll(lag, { timeout: 30_000 }).toBeGreaterThan(1e5);
  await ofStandby.query("select pg_wal_replay_resume()");
  await expect.poll(lag, { timeout: 30_000 }).toBeLessThan(1e5);

  // Postgres tells the role that serves by default that there are standbys, and no more.
  const { servingUrl } = await primary.makeRoles();
  const server = await startTestServer(
    servingUrl,
    { metricsPort: 0, migrate: false },
    { metricsPageMs: 0 },
  );
  onTestFinished(() => server.drain());
  expect(await isTold(server)).toBe(false);
});

test("when Postgres was started is told, and changes when it was started again", async () => {
  const folder = mkdtempSync(path.join(tmpdir(), "restarted-"));
  onTestFinished(() => rmSync(folder, { recursive: true, force: true }));
  const dataDir = path.join(folder, "data");
  const first = await startEmbedded({ dataDir, onProgress: () => {} });
  const { port } = new URL(first.databaseUrl);
  const server = await startTestServer(first.databaseUrl, { metricsPort: 0 }, { metricsPageMs: 0 });
  onTestFinished(() => server.drain());
  const started = async () =>
    (await scrape(server.metricsUrl as string)).get("checkpointd_database_start_timestamp_seconds");
  const before = (await started()) as number;
  expect(Math.abs(before - Date.now() / 1_000)).toBeLessThan(3_600);
  await first.stop();
  const again = await startEmbedded({ dataDir, onProgress: () => {}, settings: { port } });
  onTestFinished(() => again.stop());
  await expect.poll(started, { timeout: 30_000 }).toBeGreaterThan(before);
});
