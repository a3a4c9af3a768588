/**
 * Runs a TypeScript file of this tree in a process of its own, for tests that need one to kill
 * or several at once: `node src/testing/run_ts.mjs <file.ts> [argument…]`. The file finds its
 * arguments in process.argv from 3 on. Through Vite, which vitest brings: Node 20 cannot.
 * An import() works only until the file's top level has run.
 */
import { createRequire } from "node:module";
import path from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";

const vite = createRequire(createRequire(import.meta.url).resolve("vitest/package.json")).resolve(
  "vite",
);
const { runnerImport } = await import(pathToFileURL(vite).href);
await runnerImport(path.resolve(process.argv[2]), {
  root: fileURLToPath(new URL("../..", import.meta.url)),
  configFile: false,
  logLevel: "error",
});
