import { readFileSync } from "node:fs";

/** Files that are not for clients: connections to the database, the log, modules. */
const reserved = 200;

/**
 * How many connections there may be if `configured` are wanted. Where a process may open no more
 * files, libuv accepts and closes what comes without a word: our own limit, which has a line in the
 * log, is to be reached before.
 */
export function mostConnections(configured: number, limits = readLimits()): number {
  const files = /^Max open files +(\d+)/m.exec(limits)?.[1];
  if (files === undefined) return configured;
  return Math.min(configured, Math.max(1, Number(files) - reserved));
}

/** As Linux tells them; nothing elsewhere. */
function readLimits(): string {
  try {
    return readFileSync("/proc/self/limits", "latin1");
  } catch {
    return "";
  }
}
