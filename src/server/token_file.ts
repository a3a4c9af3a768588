/** A key in a file, for a server that knows only one caller: whoever can read the file. */
import { closeSync, fstatSync, openSync, readFileSync, writeFileSync } from "node:fs";
import { createKey, isKey } from "../auth/api_keys.js";

/**
 * Makes a key and a file of its own with it, unless there is a file. Returns whether it made one.
 *
 * @throws Error with a sentence for the operator, also about a file that is there and cannot be used
 */
export function makeTokenFile(path: string): boolean {
  try {
    writeFileSync(path, `${createKey()}\n`, { flag: "wx", mode: 0o600 });
    return true;
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code !== "EEXIST") throw new Error(`the token file ${path} cannot be made (${code})`);
    readTokenFile(path);
    return false;
  }
}

/**
 * The key in the file.
 *
 * @throws Error with a sentence for the operator, when others can read the file too or it holds no key
 */
export function readTokenFile(path: string): string {
  let file: number | undefined;
  try {
    file = openSync(path, "r");
    // Of the very file that is read.
    const { mode, uid } = fstatSync(file);
    if (process.platform !== "win32" && (mode & 0o077) !== 0) {
      throw new Error(
        `the token file ${path} is open to others, who may have its key: remove it, and another is made`,
      );
    }
    // Root reads whatever somebody has put there, with a key of their own.
    if (![0, process.geteuid?.() ?? uid].includes(uid)) {
      throw new Error(
        `the token file ${path} is another user's, who has its key: remove it, and another is made`,
      );
    }
    const key = readFileSync(file, "utf8").trim();
    if (!isKey(key)) {
      throw new Error(`the token file ${path} holds no key: remove it, and one is made`);
    }
    return key;
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    throw code ? new Error(`the token file ${path} cannot be read (${code})`) : error;
  } finally {
    if (file !== undefined) closeSync(file);
  }
}
