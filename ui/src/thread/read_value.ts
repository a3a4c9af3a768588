/** One value of a checkpoint, read alone. */
import { createClient } from "@connectrpc/connect";
import {
  CheckpointService,
  type CheckpointTuple,
  type OmittedValue,
  type StoredValue,
  splitValue,
} from "checkpointd/client";
import { createTransport } from "../service.js";
import { runInSteps } from "../steps.js";

/**
 * Reads a value that was left out of a checkpoint. `onProgress` is told how many bytes have come.
 * undefined: it is not stored any more.
 */
export async function readOmitted(
  { key }: Pick<CheckpointTuple, "key">,
  { channel, taskId, idx }: OmittedValue,
  signal: AbortSignal,
  onProgress: (bytes: number) => void,
): Promise<StoredValue | undefined> {
  const { threadId = "", checkpointNs = "", checkpointId = "" } = key ?? {};
  const { list } = createClient(CheckpointService, createTransport(counting(onProgress)));
  const onlyValues = [{ channel, taskId, idx }];
  const one = { threadId, checkpointNs, checkpointId, limit: 1, onlyValues };
  for await (const { tuple } of list(one, { signal })) {
    if (taskId !== "") {
      return tuple?.pendingWrites.find((each) => each.taskId === taskId && each.idx === idx)?.value;
    }
    const blob = tuple?.blobs.find((each) => each.channel === channel);
    return blob?.value ?? (await inlinedIn(tuple?.checkpointJson ?? "", channel, signal));
  }
  return undefined;
}

/** The value of a channel that is in the checkpoint's JSON, where Python agents have texts. */
async function inlinedIn(checkpointJson: string, channel: string, signal: AbortSignal) {
  let stored: StoredValue = { type: "json", data: new TextEncoder().encode(checkpointJson) };
  for (const name of ["channel_values", channel]) {
    const parts = await runInSteps(splitValue(stored), signal);
    let i = 0;
    while (parts && i < parts.size && parts.key(i) !== name) i++;
    if (parts?.isList !== false || i === parts.size) return undefined;
    stored = parts.value(i);
  }
  return stored;
}

/** fetch, with the bytes of the answer counted as they come. */
const counting =
  (onProgress: (bytes: number) => void): typeof fetch =>
  async (input, init) => {
    const response = await fetch(input, init);
    let bytes = 0;
    const counter = new TransformStream<Uint8Array, Uint8Array>({
      transform(chunk, controller) {
        bytes += chunk.length;
        onProgress(bytes);
        controller.enqueue(chunk);
      },
    });
    const { status, statusText, headers } = response;
    return new Response(response.body?.pipeThrough(counter) ?? null, {
      status,
      statusText,
      headers,
    });
  };
