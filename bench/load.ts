import type { Saver } from "./contenders.js";

/** Rows that must be in the tables of a contender when it is done. */
export type Stored = Partial<
  Record<"checkpoints" | "checkpoint_blobs" | "checkpoint_writes", number>
>;

/** One operation. Resolves with the milliseconds to its first tuple, where it has such. */
export type Operation = () => Promise<number | undefined>;

/** What one agent process does in one cell. */
export interface Load {
  /** One for each operation in flight; each is called again when it has resolved. */
  slots: Operation[];
  /** Calls of a slot that belong together; a round ends between them. 1 where absent. */
  together?: number;
  /** For operations that take seconds: a small one to warm up with. */
  warmUp?: Operation;
  /**
   * Reads back what was stored and compares it; throws where it differs. Resolves with the
   * rows this agent has stored since it was opened.
   */
  verify(): Promise<Stored>;
}

/** Where in the run a load is opened. */
export interface Place {
  saver: Saver;
  /** Operations in flight in this process. */
  slots: number;
  /** Distinct for each process and cell; begins the names of its threads. */
  name: string;
}

/** What is measured. */
export interface Workload {
  name: string;
  /** What one operation is, for the reader of the table. */
  operation: string;
  /** Statements that fill the tables of each contender before anything is opened. */
  seed?: string[];
  /** Tuples that one operation yields, for those that list. */
  tuples?: number;
  /** Whether an operation takes long enough to pay for its own warming up. */
  slow?: boolean;
  /** Prepares, untimed. */
  open(place: Place): Promise<Load>;
}

/** Throws, naming what was compared, unless both have the same JSON. */
export function expectSame(what: string, found: unknown, expected: unknown): void {
  const [a, b] = [JSON.stringify(found), JSON.stringify(expected)];
  if (a === b) return;
  throw new Error(`${what} read back wrong: ${a?.slice(0, 300)} instead of ${b?.slice(0, 300)}`);
}
