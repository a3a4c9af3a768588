/** libpq's password file: lines `host:port:database:user:password`. */
import { readFileSync, statSync } from "node:fs";
import { homedir } from "node:os";
import path from "node:path";

/** What a line of the file has to match. The host is a folder for a socket in the file system. */
export interface Wanted {
  host: string;
  port: string;
  database: string;
  user: string;
}

/** Where the password file is: PGPASSFILE, else where libpq looks for it. */
function passfile(): string {
  if (process.env.PGPASSFILE) return process.env.PGPASSFILE;
  return process.platform === "win32"
    ? path.join(process.env.APPDATA ?? "", "postgresql", "pgpass.conf")
    : path.join(homedir(), ".pgpass");
}

/**
 * The file's path where it is there and is not read because others may read it, as libpq does not
 * read it either; else undefined.
 */
export function findOpenPassfile(): string | undefined {
  const file = passfile();
  const found = statSync(file, { throwIfNoEntry: false });
  return found?.isFile() && isOpen(found.mode) ? file : undefined;
}

const isOpen = (mode: number) => process.platform !== "win32" && (mode & 0o077) !== 0;

/**
 * The password of the first line that matches; undefined where none does, or where the file cannot be
 * read or may be read by others.
 */
export function findPassword(wanted: Wanted): string | undefined {
  let lines: string[];
  try {
    const file = passfile();
    const found = statSync(file);
    if (!found.isFile() || isOpen(found.mode)) return undefined;
    lines = readFileSync(file, "utf8").split(/\r?\n/);
  } catch {
    return undefined;
  }
  // As libpq, which calls a socket in its default folder so.
  const hosts = wanted.host.startsWith("/") ? [wanted.host, "localhost"] : [wanted.host];
  for (const line of lines) {
    if (line.startsWith("#")) continue;
    const [host, port, database, user, password] = toFields(line);
    if (password === undefined) continue;
    const isMatch =
      hosts.some((name) => matches(host, name)) &&
      matches(port, wanted.port) &&
      matches(database, wanted.database) &&
      matches(user, wanted.user);
    if (isMatch) return unescaped(password);
  }
  return undefined;
}

/** The fields as they are written, divided by colons that no backslash precedes. */
function toFields(line: string): string[] {
  const fields = [""];
  for (const [part] of line.matchAll(/\\?./gs)) {
    if (part === ":") fields.push("");
    else fields.push(fields.pop() + part);
  }
  return fields;
}

const unescaped = (field: string) => field.replace(/\\(.)/g, "$1");

const matches = (field: string | undefined, value: string) =>
  field === "*" || (field !== undefined && unescaped(field) === value);
