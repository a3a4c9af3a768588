import { defineConfig } from "vitest/config";

/** What needs a program that `npm ci` does not bring has a command of its own: `npm run test:…`. */
const others = {
  pgbouncer: ["src/server/pgbouncer.test.ts"],
  // The README's commands are among them, which `npm test` gives to buf curl.
  grpcurl: ["src/server/grpcurl.test.ts", "src/cli/readme.test.ts"],
  // Go builds them: .ci/judges/go.mod.
  conformance: ["src/server/conformance.test.ts"],
  // nginx, haproxy and Envoy.
  proxies: ["src/client/proxies.test.ts"],
  // helm, kubectl-validate, hadolint, systemd-analyze, psql.
  deploy: ["src/cli/deploy.test.ts"],
  // Brings Jest, Next.js, Bun and more from the registry: minutes.
  clients: ["src/client/packed.test.ts"],
};

export default defineConfig({
  test: {
    globalSetup: ["src/testing/global_setup.ts"],
    // Where two other processes run, everything takes three times as long.
    testTimeout: 60_000,
    expect: { poll: { timeout: 30_000 } },
    hookTimeout: 120_000,
    pool: "forks",
    maxWorkers: 2,
    reporters: ["default"],
    projects: [
      {
        extends: true,
        test: {
          name: "tests",
          include: ["src/**/*.test.ts", "examples/**/*.test.ts", "bench/**/*.test.ts"],
          exclude: [
            "src/server/pgbouncer.test.ts",
            "src/server/grpcurl.test.ts",
            "src/server/conformance.test.ts",
            "src/client/packed.test.ts",
            "src/client/proxies.test.ts",
            "src/cli/deploy.test.ts",
          ],
        },
      },
      ...Object.entries(others).map(([name, include]) => ({
        extends: true as const,
        test: { name, include },
      })),
    ],
  },
});
