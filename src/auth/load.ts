/** The auth file with what it names, read from the disk and looked at again. */
import { createHash } from "node:crypto";
import { open, stat } from "node:fs/promises";
import path from "node:path";
import { type AuthFile, parseAuthFile } from "./auth_file.js";
import type { Clock } from "./clock.js";
import { type IssuerKeys, readKeys } from "./issuer_keys.js";
import { FileRefusal, refuse } from "./json_fields.js";

/** An auth file and what its jwksFiles hold. */
export interface Loaded {
  readonly file: AuthFile;
  /** By the name of the issuer. */
  readonly keyFiles: ReadonlyMap<string, KeyFile>;
  /** How the files looked, as of before they were read. */
  readonly stamp: string;
  /** The SHA-256 of the auth file, in hexadecimal digits. */
  readonly sha256: string;
}

/** A file of keys. */
export interface KeyFile {
  readonly path: string;
  readonly text: string;
  readonly keys: IssuerKeys;
}

/** Reads it. @throws Error that names the file and what is wrong in it */
export async function loadAuthFile(file: string): Promise<Loaded> {
  const stamps = [await stampOf(file)];
  const ownText = await explained(file, () => read(file));
  const parsed = await explained(file, () => parseAuthFile(ownText));
  const keyFiles = new Map<string, KeyFile>();
  for (const { issuer, jwks } of parsed.issuers.values()) {
    if (!("file" in jwks)) continue;
    const where = path.resolve(path.dirname(file), jwks.file);
    stamps.push(await stampOf(where));
    const text = await explained(where, () => read(where));
    const keys = await explained(where, () => readKeys(text));
    keyFiles.set(issuer, { path: where, text, keys });
  }
  const sha256 = createHash("sha256").update(ownText).digest("hex");
  return { file: parsed, keyFiles, stamp: stamps.join("\n"), sha256 };
}

/** The text of a file that says who may do what, so who can write to it may do everything. */
async function read(file: string): Promise<string> {
  const handle = await open(file);
  try {
    // Of the very file that is read.
    if (process.platform !== "win32" && ((await handle.stat()).mode & 0o002) !== 0) {
      refuse(
        "",
        "all users of this machine can write to it: take the right from them (chmod o-w).",
      );
    }
    return await handle.readFile("utf8");
  } finally {
    await handle.close();
  }
}

/** Runs it; what it throws names the file, and of what the file holds not a word. */
async function explained<T>(file: string, run: () => T | Promise<T>): Promise<T> {
  try {
    return await run();
  } catch (error) {
    if (error instanceof FileRefusal) throw new Error(`${file}: ${error.message}`);
    const { code } = error as NodeJS.ErrnoException;
    if (code !== undefined) throw new Error(`${file}: it cannot be read (${code}).`);
    throw error;
  }
}

/** How often files are looked at, which costs microseconds; what watches a disk misses mounts. */
const lookMs = 2_000;

/**
 * Calls `onChange` when one of the files changed, and at SIGHUP whatever they are. Files are looked at
 * every 2 s; a change is seen by their time, their size, and their inode, since a secret of Kubernetes
 * is another file behind the same name.
 *
 * @param files those of now, asked for at each look
 * @param stamp how they looked when they were read
 * @param onChange resolves with how the files looked that it read; undefined: it could not read them
 * @returns ends it
 */
export function watchFiles(
  files: () => readonly string[],
  stamp: string,
  clock: Clock,
  onChange: () => Promise<string | undefined>,
): () => void {
  let seen = stamp;
  let isStopped = false;
  let callOff = () => {};
  let turn = Promise.resolve();

  /** One after the other: a signal may come while a look reads. */
  const look = (isForced: boolean) => {
    turn = turn.then(async () => {
      if (isStopped) return;
      const now = (await Promise.all(files().map(stampOf))).join("\n");
      if (isStopped || (now === seen && !isForced)) return;
      // Files that are wrong are not read again before they change again.
      seen = (await onChange()) ?? now;
    });
    return turn;
  };
  const next = () => {
    if (!isStopped) callOff = clock.after(lookMs, () => void look(false).then(next));
  };
  const onSignal = () => void look(true);
  process.on("SIGHUP", onSignal);
  next();
  return () => {
    isStopped = true;
    callOff();
    process.off("SIGHUP", onSignal);
  };
}

async function stampOf(file: string): Promise<string> {
  try {
    const { mtimeMs, ino, size } = await stat(file);
    return `${file} ${mtimeMs} ${ino} ${size}`;
  } catch (error) {
    return `${file} ${(error as NodeJS.ErrnoException).code}`;
  }
}
