/** Removes old checkpoints of a thread. */
import type { ThreadCounts } from "checkpointd/client";
import { useState } from "preact/hooks";
import { Dialog, Problem, useRun } from "../dialog.js";
import { threads } from "../service.js";
import { toCount, toSize } from "../words.js";

/** Counts first what would go. */
export function Prune(props: { threadId: string; onClose: () => void; onDone: () => void }) {
  const { threadId, onClose, onDone } = props;
  const [keepLast, setKeepLast] = useState(20);
  const [found, setFound] = useState<{ keepLast: number; counts?: ThreadCounts }>();
  const prune = async (dryRun: boolean, signal: AbortSignal) => {
    let removed: ThreadCounts | undefined;
    const request = {
      threadIds: [threadId],
      strategy: { case: "keepLast" as const, value: keepLast },
      dryRun,
    };
    for await (const answer of threads.pruneThreads(request, { signal }))
      removed = answer.removed ?? removed;
    return removed;
  };
  const count = useRun(async (signal) => {
    const counts = await prune(true, signal);
    setFound(counts ? { keepLast, counts } : { keepLast });
  });
  const remove = useRun(async (signal) => {
    await prune(false, signal);
    onDone();
  });
  const counts = found?.keepLast === keepLast ? found.counts : undefined;
  const isNothing = found?.keepLast === keepLast && !counts?.checkpoints;
  return (
    <Dialog title="Prune this thread" onClose={onClose}>
      <form
        onSubmit={(event) => {
          event.preventDefault();
          void count.begin();
        }}
      >
        <label>
          How many of the newest checkpoints to keep, in each namespace
          <input
            type="number"
            min="1"
            max="1000000"
            value={keepLast}
            onInput={(event) => setKeepLast(event.currentTarget.valueAsNumber)}
            required
          />
        </label>
        <p class="dim">Whatever a kept checkpoint needs is kept with it.</p>
        <p role="status">
          {isNothing && "Nothing would be removed."}
          {counts && counts.checkpoints > 0n && (
            <>
              Would remove <strong>{toCount(counts.checkpoints, "checkpoint")}</strong>,{" "}
              {toCount(counts.blobs, "value")} and {toCount(counts.writes, "write")}:{" "}
              {toSize(Number(counts.storedBytes))}.
            </>
          )}
        </p>
        <Problem text={count.problem ?? remove.problem} />
        <div class="buttons">
          <button type="button" onClick={onClose}>
            Cancel
          </button>
          <button type="submit" disabled={count.isRunning}>
            Count what would go
          </button>
          <button
            type="button"
            class="danger"
            disabled={!counts?.checkpoints || remove.isRunning}
            onClick={remove.begin}
          >
            Remove it
          </button>
        </div>
      </form>
    </Dialog>
  );
}
