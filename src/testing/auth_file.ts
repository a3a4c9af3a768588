/** An auth file for a test, with a key for each principal. */
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { createKey, hashKey } from "../auth/api_keys.js";

/** A principal as the file has it, without its keys. */
export interface GivenPrincipal {
  tenant?: string;
  grants: { operations: string[]; threads: string[] }[];
  limits?: Record<string, number | string>;
  /** When its key expires. */
  expires?: string;
}

/** Every operation on every thread. */
export const everything: GivenPrincipal["grants"] = [
  {
    operations: ["read", "write", "delete", "lease", "prune", "copy", "admin"],
    threads: ["*"],
  },
];

/**
 * Writes an auth file with these tenants and principals, each with a key of its own. `write` writes
 * it anew with the same keys; a principal that is no longer there loses its own.
 */
export function createAuthFile(
  tenants: Record<string, object>,
  principals: Record<string, GivenPrincipal>,
) {
  const folder = mkdtempSync(path.join(tmpdir(), "auth-"));
  const file = path.join(folder, "auth.json");
  const keys: Record<string, string> = {};
  const write = (given: Record<string, GivenPrincipal>) => {
    for (const name of Object.keys(given)) keys[name] ??= createKey();
    const text = JSON.stringify({
      tenants,
      keys: Object.entries(given).map(([name, { expires }]) => ({
        id: name,
        sha256: hashKey(keys[name] as string),
        ...(expires ? { expires } : {}),
      })),
      principals: Object.entries(given).map(([name, { expires: _, ...rest }]) => ({
        name,
        keys: [name],
        ...rest,
      })),
    });
    writeFileSync(file, text, { mode: 0o600 });
  };
  write(principals);
  return { file, keys, write, remove: () => rmSync(folder, { recursive: true }) };
}
