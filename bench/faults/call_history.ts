/**
 * What agents record of their calls, one JSON line an event, and how it is put together.
 *
 * A line is written with writeSync, that of a call before it is made: what waits in a stream's buffer
 * dies with a process that is killed, and then something is stored that nobody seems to have put.
 */
import { closeSync, existsSync, openSync, readSync } from "node:fs";
import { StringDecoder } from "node:string_decoder";

/** A value that was written: the version of its channel, and a checksum of what it holds. */
export interface Blob {
  version: string | number;
  sum: string;
}

/** One write of a task. */
export interface TaskWrite {
  idx: number;
  channel: string;
  sum: string;
}

/** What is called, and with what. A lease is the token that claim answered. */
export type Call =
  | {
      kind: "put";
      checkpoint: string;
      parent: string | null;
      /** The channels that are new with this checkpoint. */
      blobs: Record<string, Blob>;
      step?: number;
      lease?: string | null;
    }
  | {
      kind: "putWrites";
      checkpoint: string;
      task: string;
      writes: TaskWrite[];
      lease?: string | null;
    }
  | { kind: "deleteThread" }
  | { kind: "getTuple"; checkpoint?: string | null }
  | { kind: "list" }
  | { kind: "claim"; owner: string; leaseMs: number }
  /** Without leaseMs for as long as the claim asked for. */
  | { kind: "renew"; token: string; leaseMs?: number }
  | { kind: "release"; token: string };

/** Before a call. */
export type Invoke = Call & {
  e: "invoke";
  /** With `agent` the name of the operation. An agent that starts again may count anew. */
  op: number;
  agent: string;
  /** Milliseconds by the clock that all processes of the machine share: process.hrtime. */
  at: number;
  thread: string;
  /** The deadline the call was given. */
  timeoutMs?: number;
};

/** After it. Of the results each kind has its own. */
export interface Answer {
  e: "answer";
  op: number;
  agent: string;
  at: number;
  outcome: "ok" | "failed";
  code?: string;
  reason?: string;
  /** What else was said, of a failure without a reason. */
  message?: string;
  /** For how long the agent's event loop was late, at the most, while the call went on. */
  lagMs?: number;
  /** Of a getTuple: the checkpoint that was read, and what it holds. */
  checkpoint?: string | null;
  blobs?: Record<string, string>;
  writes?: [task: string, idx: number, sum: string][];
  /** Of a list: the ids in their order. */
  checkpoints?: string[];
  /** Of a claim. */
  token?: string | null;
  expires?: number;
}

/** The agent came to its end, with every call answered. */
export interface End {
  e: "end";
  agent: string;
  at: number;
}

export type Event = Invoke | Answer | End;

/** What SQL finds in the end. Read it in one snapshot (repeatable read), when all is quiet. */
export interface Rows {
  checkpoints: CheckpointRow[];
  blobs: BlobRow[];
  writes: WriteRow[];
}

export interface CheckpointRow {
  thread: string;
  ns: string;
  id: string;
  parent: string | null;
  channel_versions: Record<string, string | number>;
}

export interface BlobRow {
  thread: string;
  ns: string;
  channel: string;
  version: string;
  sum: string;
}

export interface WriteRow {
  thread: string;
  ns: string;
  checkpoint: string;
  task: string;
  idx: number;
  sum: string;
}

/** A call and what became of it. */
export interface Operation<Called extends Invoke = Invoke> {
  call: Called;
  /** Absent: it was never answered. */
  answer: Answer | undefined;
  /** It was carried out, maybe several times, between these. */
  from: number;
  to: number;
  /** "maybe" is one of which nobody knows, "never" one that was refused. */
  done: "ok" | "maybe" | "never";
}

/** One of that kind. */
export type OperationOf<Kind extends Call["kind"]> = Operation<Extract<Invoke, { kind: Kind }>>;

/** The histories of all agents together. */
export interface Histories {
  threads: Map<string, Operation[]>;
  unanswered: Unanswered[];
}

/** A call that was never answered, and when its process wrote events: until then it lived. */
export interface Unanswered {
  operation: Operation;
  /** The moments at which its process wrote events, in their order. */
  lived: number[];
  /** Whether it said that all its calls were answered. */
  ended: boolean;
}

/** Returns the calls of one kind. */
export function ofKind<Kind extends Call["kind"]>(
  operations: readonly Operation[],
  kind: Kind,
): OperationOf<Kind>[] {
  return operations.filter(({ call }) => call.kind === kind) as OperationOf<Kind>[];
}

/** One process of an agent. */
interface Process {
  open: Map<number, Operation>;
  lastOp: number;
  lived: number[];
}

/**
 * Puts the events of all agents together. Those of one agent come in their order; where its
 * operations are counted anew, another process goes on under its name.
 */
export function toHistories(events: Iterable<Event>): Histories {
  const threads = new Map<string, Operation[]>();
  const processes = new Map<string, Process>();
  const unanswered: Unanswered[] = [];
  const leave = ({ open, lived }: Process, ended: boolean) => {
    for (const operation of open.values()) unanswered.push({ operation, lived, ended });
  };
  for (const event of events) {
    let process = processes.get(event.agent);
    if (!process || (event.e === "invoke" && event.op <= process.lastOp)) {
      if (process) leave(process, false);
      process = { open: new Map(), lastOp: Number.NEGATIVE_INFINITY, lived: [] };
      processes.set(event.agent, process);
    }
    process.lived.push(event.at);
    if (event.e === "end") {
      leave(process, true);
      processes.delete(event.agent);
    } else if (event.e === "invoke") {
      process.lastOp = event.op;
      const operation: Operation = {
        call: event,
        answer: undefined,
        from: event.at,
        to: Number.POSITIVE_INFINITY,
        done: "maybe",
      };
      process.open.set(event.op, operation);
      const operations = threads.get(event.thread);
      if (operations) operations.push(operation);
      else threads.set(event.thread, [operation]);
    } else {
      const operation = process.open.get(event.op);
      if (!operation)
        throw new Error(`${event.agent} answers ${event.op}, which it did not invoke`);
      process.open.delete(event.op);
      settle(operation, event);
    }
  }
  for (const process of processes.values()) leave(process, false);
  return { threads, unanswered };
}

function settle(operation: Operation, answer: Answer): void {
  operation.answer = answer;
  if (answer.outcome === "ok") {
    operation.done = "ok";
    operation.to = answer.at;
  } else if (/^invalid_?argument$/i.test(answer.code ?? "")) {
    operation.done = "never";
    operation.to = answer.at;
  } else if (isLeaseLost(answer)) {
    // A first try may have been carried out before the lease was lost, its answer lost with it;
    // after the refusal none can be.
    operation.to = answer.at;
  }
}

/** Whether a call was refused because its lease was lost. */
export function isLeaseLost({ outcome, reason }: Answer): boolean {
  return outcome === "failed" && reason === "LEASE_LOST";
}

/**
 * The events of a file, read piece by piece. A last line that was cut off is left out; an agent that
 * was killed before it began has no file.
 */
export function* readEvents(path: string): Generator<Event> {
  if (!existsSync(path)) return;
  const file = openSync(path, "r");
  try {
    const decoder = new StringDecoder("utf8");
    const chunk = Buffer.alloc(1024 * 1024);
    let rest = "";
    for (;;) {
      const length = readSync(file, chunk);
      if (length === 0) return;
      const lines = (rest + decoder.write(chunk.subarray(0, length))).split("\n");
      rest = lines.pop() ?? "";
      for (const line of lines) if (line !== "") yield JSON.parse(line);
    }
  } finally {
    closeSync(file);
  }
}
