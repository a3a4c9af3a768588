/** Lists of checkpoints: page by page on a session, or as a stream. */
import { Code, ConnectError } from "@connectrpc/connect";
import type { ChannelBlob, CheckpointTuple } from "../../gen/checkpointd/v1/checkpoint_pb.js";
import type { Answer, RequestInit } from "../protocol/operations.js";
import type { Calls } from "./calls.js";
import { NotCarried } from "./carrier.js";

/** What a List asks for. `after` is not the caller's: it says where the list goes on. */
export type ListInit = Omit<RequestInit<"list">, "after" | "omitUnchanged" | "$typeName">;

type ListPosition = ListInit & Pick<RequestInit<"list">, "after" | "omitUnchanged">;

/**
 * The tuples that match, in the service's order, each once and complete, read as they are
 * asked for: on a session page by page, else as a stream. Either goes on after the last tuple
 * that arrived when the connection breaks. Leaving the loop early cancels what is under way, and so
 * does the signal, with its reason.
 * Tuples share the blobs that they have in common.
 */
export function readList(
  calls: Calls,
  request: ListInit,
  signal?: AbortSignal,
): AsyncGenerator<CheckpointTuple, void, undefined> {
  return calls.reading(
    (reading) => readTuples(calls, { ...request, omitUnchanged: true }, reading),
    signal,
  );
}

async function* readTuples(
  calls: Calls,
  list: ListPosition,
  signal: AbortSignal,
): AsyncGenerator<CheckpointTuple, void, undefined> {
  if (list.limit === 0) return;
  // Those of the tuple before, by channel.
  let blobs = new Map<string, ChannelBlob>();
  for await (const tuples of readPages(calls, list, signal)) {
    for (const [i, tuple] of tuples.entries()) {
      for (const channel of tuple.unchangedChannels) {
        const blob = blobs.get(channel);
        if (blob) tuple.blobs.push(blob);
      }
      tuple.unchangedChannels = [];
      blobs = new Map(tuple.blobs.map((blob) => [blob.channel, blob]));
      // The page must not hold a long history for its consumer.
      tuples[i] = undefined as never;
      yield tuple;
    }
  }
}

/** Of a checkpoint's JSON, in characters, what is sent back for the sake of the values it names. */
const mostSentBack = 4 * 1024 * 1024;

/** The tuples as they come. `list` is kept where it goes on. */
async function* readPages(
  calls: Calls,
  list: ListPosition,
  signal: AbortSignal,
): AsyncGenerator<CheckpointTuple[], void, undefined> {
  let page = await readPage(calls, { list: { ...list } }, signal);
  for (let pages = 1; page; pages++) {
    const { tuples, nextMaxTuples } = page;
    if (nextMaxTuples === 0) {
      yield tuples;
      return;
    }
    const { checkpointJson } = advance(list, tuples);
    const request = {
      list: { ...list },
      maxTuples: nextMaxTuples,
      // With it the service tells less again of what the client has, and it may be no small message.
      afterCheckpointJson: checkpointJson.length < mostSentBack ? checkpointJson : "",
    };
    // From the second page on the next is read while one is consumed. What fails before its
    // turn comes is read anew then: the tries of who waits for it have not begun.
    let ahead = pages > 1 ? readPage(calls, request, signal) : undefined;
    ahead?.catch(() => {
      ahead = undefined;
    });
    yield tuples;
    page = await (ahead ?? readPage(calls, request, signal));
  }
  const stream = calls.stream(
    (service, context) => service.list(list, context),
    ({ tuple }) => advance(list, [tuple]),
    signal,
  );
  for await (const { tuple } of stream) {
    yield [tuple as CheckpointTuple];
    if (list.limit === 0) return;
  }
}

/** One page; undefined where there are no sessions that have pages. */
async function readPage(
  calls: Calls,
  request: RequestInit<"listPage">,
  signal: AbortSignal,
): Promise<Answer<"listPage"> | undefined> {
  try {
    return await calls.call((service, context) => service.listPage(request, context), { signal });
  } catch (error) {
    if (error instanceof NotCarried) return undefined;
    throw error;
  }
}

/** Moves a list behind tuples that came, of which there is one; returns the last. */
function advance(list: ListPosition, tuples: readonly (CheckpointTuple | undefined)[]) {
  const last = tuples.at(-1);
  if (last?.key === undefined) {
    throw new ConnectError("the service sent a list entry without a key", Code.Internal);
  }
  list.after = last.key;
  if (list.limit !== undefined) list.limit -= tuples.length;
  return last;
}
