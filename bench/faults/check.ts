/**
 * Judges what agents were told by what they did and by what is stored in the end, in the manner of
 * etcd's robustness tests and of porcupine. Each rule holds for every order in which the
 * operations can have been carried out, so what it finds is an error, never a guess: an operation
 * without an answer may have happened at any time after it was invoked, or not at all.
 */

import {
  type Event,
  type Operation,
  type Rows,
  toHistories,
  type Unanswered,
} from "./call_history.js";
import { checkLeases } from "./check_leases.js";
import { checkState } from "./check_state.js";

/**
 * acknowledged: what was acknowledged is stored, unless a deleteThread can have removed it.
 * whole: a checkpoint has its blobs, and of the writes of one call all are stored or none.
 * deleted: what was deleted does not come back by itself.
 * reads: a read shows a state that an order of the operations allows.
 * leases: a thread has one holder, and nobody writes under a lease that is lost.
 * deadlines: no call outlives its deadline.
 */
export type Rule = "acknowledged" | "whole" | "deleted" | "reads" | "leases" | "deadlines";

/** An error: operations (agent/op) that cannot all be as they are told. */
export interface Violation {
  rule: Rule;
  thread: string;
  ops: string[];
  explanation: string;
}

/** What a run may have besides. */
export interface CheckOptions {
  /** By how much the database's clock may have gone ahead while a lease was held. Default 0. */
  clockSlackMs?: number;
  /** By how much a call may outlive its deadline. Default 500. */
  deadlineSlackMs?: number;
}

/** Violations that are told of one thread: more say nothing new. */
const mostOfThread = 20;
/** An agent that writes so many events over so long after a deadline was alive and not late. */
const aliveEvents = 20;
const aliveMs = 2_000;

/** The violations of all rules, thread by thread. No rows: only what agents were told is judged. */
export function checkHistories(
  events: Iterable<Event>,
  rows: Rows | undefined,
  { clockSlackMs = 0, deadlineSlackMs = 500 }: CheckOptions = {},
): Violation[] {
  const { threads, unanswered } = toHistories(events);
  const violations: Violation[] = [];
  const rowsOf = rows && partition(rows);
  for (const [thread, operations] of threads) {
    const found: Violation[] = [];
    const report = (
      rule: Rule,
      culprits: readonly (Operation | undefined)[],
      explanation: string,
    ) => {
      if (found.length >= mostOfThread) return;
      const ops = [...new Set(culprits.flatMap((operation) => operation ?? []).map(nameOf))];
      found.push({ rule, thread, ops, explanation });
    };
    checkDeadlines(operations, deadlineSlackMs, report);
    checkLeases(operations, clockSlackMs, report);
    checkState(operations, rowsOf && (rowsOf.get(thread) ?? noRows()), report);
    violations.push(...found);
  }
  violations.push(...unanswered.flatMap((each) => checkHung(each, deadlineSlackMs)));
  return violations;
}

/** Tells of a violation, with the operations that show it. */
export type Report = (
  rule: Rule,
  operations: readonly (Operation | undefined)[],
  explanation: string,
) => void;

const nameOf = ({ call }: Operation) => `${call.agent}/${call.op}`;

function checkDeadlines(operations: readonly Operation[], slackMs: number, report: Report): void {
  for (const operation of operations) {
    const { call, answer } = operation;
    if (!answer || call.timeoutMs === undefined) continue;
    const tookMs = answer.at - call.at - (answer.lagMs ?? 0);
    if (tookMs <= call.timeoutMs + slackMs) continue;
    report(
      "deadlines",
      [operation],
      `${call.kind} was answered after ${Math.round(tookMs)} ms, with a deadline of ${call.timeoutMs} ms`,
    );
  }
}

/** A call without an answer whose agent went on for long after its deadline. */
function checkHung({ operation, lived, ended }: Unanswered, slackMs: number): Violation[] {
  const { call } = operation;
  if (!ended) {
    if (call.timeoutMs === undefined) return [];
    const due = call.at + call.timeoutMs + slackMs;
    const after = lived.slice(lived.findLastIndex((at) => at <= due) + 1);
    if (after.length < aliveEvents || after.at(-1)! - after[0]! < aliveMs) return [];
  }
  const explanation = `${call.kind} was never answered, and its agent lived on`;
  return [{ rule: "deadlines", thread: call.thread, ops: [nameOf(operation)], explanation }];
}

const noRows = (): Rows => ({ checkpoints: [], blobs: [], writes: [] });

function partition(rows: Rows): Map<string, Rows> {
  const threads = new Map<string, Rows>();
  for (const table of ["checkpoints", "blobs", "writes"] as const) {
    for (const row of rows[table]) {
      let of = threads.get(row.thread);
      if (!of) {
        of = noRows();
        threads.set(row.thread, of);
      }
      (of[table] as (typeof row)[]).push(row);
    }
  }
  return threads;
}
