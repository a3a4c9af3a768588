/** Why a thread does not go on: what its tasks asked, and the errors they ended with. */
import type { PendingWrite, Value } from "../../gen/checkpointd/v1/checkpoint_pb.js";

/** What is told of each reason. */
interface ThreadReason {
  /** The task that left it. */
  taskId: string;
  /** The node that the task ran, where the saver that stored it tells one. */
  name: string | undefined;
  /**
   * Why its value is not here, which is undefined then: it is larger than 65536 bytes (getTuple reads
   * it whole), or this saver cannot decode or decrypt it.
   */
  unread: string | undefined;
}

/** A question, as LangGraph's Interrupt has it. */
export interface ThreadInterrupt extends ThreadReason {
  /** What answers it: `new Command({ resume: { [id]: answer } })`. */
  id: string | undefined;
  /** What was given to `interrupt()`. */
  value: unknown;
}

/** An error that a task ended with. */
export interface ThreadError extends ThreadReason {
  /** As LangGraph stored it: of JavaScript `{ name, message }`, of Python its representation. */
  error: unknown;
}

/** Both, each in the order of their tasks. */
export interface ThreadReasons {
  interrupts: ThreadInterrupt[];
  errors: ThreadError[];
}

/** The channels of a checkpoint's writes that hold them. */
export const isReason = ({ channel }: PendingWrite) =>
  channel === "__interrupt__" || channel === "__error__";

/** What the writes say. What `decode` throws is told as what was not read. */
export async function toReasons(
  writes: readonly PendingWrite[],
  decode: (value: Value | undefined) => unknown,
): Promise<ThreadReasons> {
  const told: ThreadReasons = { interrupts: [], errors: [] };
  for (const { channel, taskId, taskPath, value } of writes) {
    let decoded: unknown;
    let unread: string | undefined;
    try {
      // The service leaves out what is larger; none of these is empty otherwise.
      if (value?.data.length === 0 && ["json", "msgpack"].includes(value.type)) {
        throw new Error("it is larger than 65536 bytes");
      }
      decoded = await decode(value);
    } catch (error) {
      unread = error instanceof Error ? error.message : String(error);
    }
    const name = /^~__pregel_pull, (.+)$/s.exec(taskPath)?.[1];
    const of = { taskId, name, unread };
    if (channel === "__error__") told.errors.push({ error: decoded, ...of });
    else for (const each of listOf(decoded)) told.interrupts.push({ ...toInterrupt(each), ...of });
  }
  return told;
}

/** LangGraph stores what a task asks as a list. */
const listOf = (decoded: unknown): unknown[] => (Array.isArray(decoded) ? decoded : [decoded]);

function toInterrupt(asked: unknown): Pick<ThreadInterrupt, "id" | "value"> {
  if (typeof asked !== "object" || asked === null || !("value" in asked)) {
    return { id: undefined, value: asked };
  }
  const id = "id" in asked && typeof asked.id === "string" ? asked.id : undefined;
  return { id, value: asked.value };
}
