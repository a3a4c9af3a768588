import { readFileSync } from "node:fs";

/** The version in the nearest package.json above this file: ours, from src as from dist. */
export function version(): string {
  for (let folder = new URL(".", import.meta.url); ; folder = new URL("..", folder)) {
    try {
      const { version } = JSON.parse(readFileSync(new URL("package.json", folder), "utf8"));
      return version;
    } catch (error) {
      if (folder.pathname === "/") throw error;
    }
  }
}

/**
 * Whether a version comes before another, by their three numbers: what leads to a release
 * (0.3.0-rc.1) counts as the release. Undefined where one of them has no such numbers.
 */
export function isOlder(version: string, other: string): boolean | undefined {
  const [ours, theirs] = [version, other].map((text) =>
    /^(\d+)\.(\d+)\.(\d+)/.exec(text)?.slice(1),
  );
  if (!ours || !theirs) return undefined;
  const at = ours.findIndex((part, i) => part !== theirs[i]);
  return at >= 0 && Number(ours[at]) < Number(theirs[at]);
}
