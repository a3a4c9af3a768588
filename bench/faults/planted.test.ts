import { readFileSync } from "node:fs";
import { expect, it } from "vitest";
import { bugs } from "./planted_bugs.js";
import { patched } from "./planted_world.js";

it.each(bugs)("can plant: $name", ({ name, patches }) => {
  const files = new Map<string, string>();
  for (const patch of patches) {
    const path = new URL(`../../dist/src/${patch.file}`, import.meta.url);
    const compiled = files.get(patch.file) ?? readFileSync(path, "utf8");
    files.set(patch.file, patched(compiled, name, patch));
  }
  expect(files.size).toBeGreaterThan(0);
});
