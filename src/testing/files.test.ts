import { readdir, readFile } from "node:fs/promises";
import { expect, test } from "vitest";

test("the README of this folder names every file in it", async () => {
  const folder = new URL(".", import.meta.url);
  const text = await readFile(new URL("README.md", folder), "utf8");
  const named = [...text.matchAll(/`(\w+(?:\.\w+)+)`/g)].map(([, name]) => name);
  const files = (await readdir(folder)).filter((name) => /\.(ts|mjs)$/.test(name));
  expect(files.filter((name) => !named.includes(name))).toEqual([]);
  expect(named.filter((name) => !files.includes(name as string))).toEqual([]);
});
