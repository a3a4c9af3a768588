import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import pg from "pg";
import type { TestProject } from "vitest/node";
import { startEmbedded } from "../store/embedded.js";
import { migrate } from "../store/migrate.js";
import { templateDatabase, withDatabase } from "./postgres.js";

declare module "vitest" {
  interface ProvidedContext {
    /** The server all test files share: the superuser's URL of its database `postgres`. */
    postgresUrl: string;
  }
}

/** Starts one Postgres for the whole run, with a migrated template database to be cloned. */
export default async function setup(project: TestProject): Promise<() => Promise<void>> {
  const dataDir = await mkdtemp(path.join(tmpdir(), "checkpointd-test-"));
  const embedded = await startEmbedded({
    dataDir,
    onProgress: () => {},
    // Nothing here outlives the run, so nothing needs to reach the disk.
    settings: {
      fsync: "off",
      synchronous_commit: "off",
      full_page_writes: "off",
      max_connections: "200",
    },
  });
  const teardown = async () => {
    await embedded.stop();
    await rm(dataDir, { recursive: true, force: true });
  };
  try {
    const client = new pg.Client({ connectionString: embedded.databaseUrl });
    await client.connect();
    await client.query(`CREATE DATABASE ${templateDatabase}`);
    await client.end();
    await migrate({
      databaseUrl: withDatabase(embedded.databaseUrl, templateDatabase),
      schema: "public",
    });
    project.provide("postgresUrl", embedded.databaseUrl);
  } catch (error) {
    await teardown();
    throw error;
  }
  return teardown;
}
