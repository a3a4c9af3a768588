import { cp, mkdtemp, readFile, rm, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("../../", import.meta.url));

/** What is compiled, installed once more. */
export interface InstalledVersion {
  /** Its command line, for `startServe`. */
  readonly program: string;
  remove(): Promise<void>;
}

/**
 * Installs what `npm run build` made as another version, with migrations that it has besides: their
 * names without `.sql`, and their texts.
 */
export async function installVersion(
  version: string,
  migrations: Record<string, string> = {},
): Promise<InstalledVersion> {
  const folder = await mkdtemp(path.join(tmpdir(), "checkpointd-version-"));
  for (const part of ["dist/src", "dist/gen", "migrations"]) {
    await cp(path.join(root, part), path.join(folder, part), {
      recursive: true,
      filter: (file) => !/\.(map|d\.ts|test\.js)$/.test(file),
    });
  }
  const manifest = JSON.parse(await readFile(path.join(root, "package.json"), "utf8"));
  await writeFile(path.join(folder, "package.json"), JSON.stringify({ ...manifest, version }));
  for (const [name, text] of Object.entries(migrations)) {
    await writeFile(path.join(folder, "migrations", `${name}.sql`), text);
  }
  await symlink(path.join(root, "node_modules"), path.join(folder, "node_modules"), "dir");
  return {
    program: path.join(folder, "dist/src/cli/main.js"),
    remove: () => rm(folder, { recursive: true, force: true }),
  };
}
