/** Which values make nodes run: what the service tells of plain values by their bytes (thread_status.ts). */
import { TASKS } from "@langchain/langgraph-checkpoint";

/** Whether the channel is one that makes nodes run and has none to run at this value. */
export function isIdle(channel: string, type: string, data: Uint8Array): boolean {
  if (channel === TASKS) return data.length <= (type === "json" ? 2 : 1);
  // A deferred node that has run leaves this.
  if (channel.startsWith("branch:to:")) return type === "json" && text(data) === undefinedText;
  const names = /^join:(.*):[^:]*$/s.exec(channel)?.[1];
  return names !== undefined && !(type === "json" && isFull(names, data));
}

/** Whether a join has heard from all that it waits for, and a deferred one that the run would end. */
function isFull(names: string, data: Uint8Array): boolean {
  // Longer than all names and their escapes it is no join's.
  if (data.length > 8 * names.length + 64) return false;
  try {
    const value: unknown = JSON.parse(text(data));
    const [first, isFinished] = value as unknown[];
    const heard = Array.isArray(first) ? isFinished === true && first : value;
    return Array.isArray(heard) && heard.join("+").length === names.length;
  } catch {
    return false;
  }
}

const undefinedText = '{"lc":2,"type":"undefined"}';
const text = (data: Uint8Array) => new TextDecoder().decode(data);
