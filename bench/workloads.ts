import { chat, invoke } from "./graphs.js";
import { delta, lists } from "./histories.js";
import type { Workload } from "./load.js";
import { blob1, blob16, getTuple, put, putWrites } from "./single_calls.js";

/** All of them, in the order of the table. */
export const workloads: readonly Workload[] = [
  put,
  putWrites,
  getTuple,
  invoke,
  chat,
  blob1,
  blob16,
  ...lists,
  delta,
];

/** The workload of that name. Throws with the names there are. */
export function findWorkload(name: string): Workload {
  const found = workloads.find((workload) => workload.name === name);
  if (found) return found;
  const names = workloads.map((workload) => workload.name).join(", ");
  throw new Error(`no workload is called "${name}"; there are ${names}`);
}
