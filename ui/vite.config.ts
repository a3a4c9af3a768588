import { fileURLToPath } from "node:url";
import { defineConfig } from "vite";

const here = (path: string) => fileURLToPath(new URL(path, import.meta.url));

/** Static files for the server to ship: no inline script or style, names that tell what is in them. */
export default defineConfig({
  root: here("."),
  // Relative, so that a proxy may serve it below a path of its own.
  base: "./",
  resolve: { alias: { "checkpointd/client": here("../src/client.ts") } },
  build: {
    outDir: here("../dist/ui"),
    emptyOutDir: true,
    target: "es2023",
    assetsDir: "ui",
    assetsInlineLimit: 0,
    modulePreload: false,
    reportCompressedSize: false,
  },
});
