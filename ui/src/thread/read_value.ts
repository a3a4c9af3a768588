/** One value of a checkpoint, read alone. */
import { createClient } from "@connectrpc/connect";
import {
  CheckpointService,
  type CheckpointTuple,
  type OmittedValue,
  type StoredValue,
} from "checkpointd/client";
import { createTransport } from "../service.js";

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
    const found =
      taskId === ""
        ? tuple?.blobs.find((blob) => blob.channel === channel)
        : tuple?.pendingWrites.find((write) => write.taskId === taskId && write.idx === idx);
    return found?.value;
  }
  return undefined;
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
