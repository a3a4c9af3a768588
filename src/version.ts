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
