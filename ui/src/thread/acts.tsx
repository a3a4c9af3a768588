/** What can be done with a thread, each thing asked for once more before it is done. */
import type { Thread, ThreadCounts } from "checkpointd/client";
import type { ComponentChildren } from "preact";
import { useState } from "preact/hooks";
import { Dialog } from "../dialog.js";
import { go, type Place } from "../place.js";
import { checkpoints, isReadOnly, threads, toFailure } from "../service.js";
import { toCount, toSize } from "../words.js";
import { snippets } from "./snippets.js";
import { exportThread } from "./transfer.js";

type Act = "code" | "export" | "copy" | "prune" | "release" | "delete";

interface Props {
  threadId: string;
  thread: Thread | undefined;
  place: Place;
  onChange: () => void;
}

export function Acts(props: Props) {
  const { threadId, thread, place, onChange } = props;
  const [act, setAct] = useState<Act>();
  if (!thread) return null;
  const shown: [act: Act, label: string][] = [
    ["code", "Code"],
    ["export", "Export"],
  ];
  if (!isReadOnly) {
    shown.push(["copy", "Copy"], ["prune", "Prune"]);
    if (thread.claim) shown.push(["release", "Release the lease"]);
    shown.push(["delete", "Delete"]);
  }
  const onClose = () => setAct(undefined);
  const onDone = () => {
    onClose();
    onChange();
  };
  return (
    <div class="acts">
      {shown.map(([name, label]) => (
        <button type="button" key={name} onClick={() => setAct(name)}>
          {label}
        </button>
      ))}
      {act === "code" && (
        <Code
          name={{
            threadId,
            ns: place.ns ?? "",
            checkpointId: place.checkpoint ?? (place.ns ? "" : thread.checkpointId),
          }}
          onClose={onClose}
        />
      )}
      {act === "export" && <Export threadId={threadId} onClose={onClose} />}
      {act === "copy" && <Copy threadId={threadId} onClose={onClose} />}
      {act === "prune" && <Prune threadId={threadId} onClose={onClose} onDone={onDone} />}
      {act === "release" && (
        <Confirm
          title="End the lease?"
          button="End the lease"
          onClose={onClose}
          run={async () => {
            await threads.releaseClaim({ threadId, force: true });
            onDone();
          }}
        >
          <p>
            <strong>{thread.claim?.owner}</strong> holds this thread. It can store nothing more
            under its lease then, and others may take the thread.
          </p>
        </Confirm>
      )}
      {act === "delete" && (
        <Confirm
          title="Delete this thread?"
          button="Delete it"
          onClose={onClose}
          run={async () => {
            await checkpoints.deleteThread({ threadId });
            go({});
          }}
        >
          <p>
            Everything of <strong>{threadId}</strong> goes, in all its namespaces. Nothing brings it
            back, unless you export it first.
          </p>
        </Confirm>
      )}
    </div>
  );
}

/** Runs something once, and tells why it failed. */
export function useRun(run: () => Promise<void>) {
  const [state, setState] = useState<{ isRunning: boolean; problem?: string }>({
    isRunning: false,
  });
  return {
    ...state,
    begin: async () => {
      setState({ isRunning: true });
      try {
        await run();
        setState({ isRunning: false });
      } catch (error) {
        const isOwn = error instanceof Error && error.constructor === Error;
        const problem = isOwn ? error.message : (toFailure(error)?.text ?? "It was given up.");
        setState({ isRunning: false, problem });
      }
    },
  };
}

export const Problem = ({ text }: { text: string | undefined }) =>
  text === undefined ? null : (
    <p class="notice" role="alert">
      {text}
    </p>
  );

function Confirm(props: {
  title: string;
  button: string;
  onClose: () => void;
  run: () => Promise<void>;
  children: ComponentChildren;
}) {
  const { isRunning, problem, begin } = useRun(props.run);
  return (
    <Dialog title={props.title} onClose={props.onClose}>
      {props.children}
      <Problem text={problem} />
      <div class="buttons">
        <button type="button" onClick={props.onClose}>
          Cancel
        </button>
        <button type="button" class="danger" disabled={isRunning} onClick={begin}>
          {props.button}
        </button>
      </div>
    </Dialog>
  );
}

function Copy({ threadId, onClose }: { threadId: string; onClose: () => void }) {
  const [name, setName] = useState(`${threadId}-copy`);
  const { isRunning, problem, begin } = useRun(async () => {
    await threads.copyThread({ sourceThreadId: threadId, targetThreadId: name });
    go({ thread: name });
  });
  return (
    <Dialog title="Copy this thread" onClose={onClose}>
      <form
        onSubmit={(event) => {
          event.preventDefault();
          void begin();
        }}
      >
        <label>
          The name of the copy
          <input value={name} onInput={(event) => setName(event.currentTarget.value)} required />
        </label>
        <Problem text={problem} />
        <div class="buttons">
          <button type="button" onClick={onClose}>
            Cancel
          </button>
          <button type="submit" class="main" disabled={isRunning}>
            Copy
          </button>
        </div>
      </form>
    </Dialog>
  );
}

/** Counts first what would go. */
function Prune(props: { threadId: string; onClose: () => void; onDone: () => void }) {
  const { threadId, onClose, onDone } = props;
  const [keepLast, setKeepLast] = useState(20);
  const [found, setFound] = useState<{ keepLast: number; counts?: ThreadCounts }>();
  const prune = async (dryRun: boolean) => {
    let removed: ThreadCounts | undefined;
    const request = {
      threadIds: [threadId],
      strategy: { case: "keepLast" as const, value: keepLast },
      dryRun,
    };
    for await (const answer of threads.pruneThreads(request)) removed = answer.removed ?? removed;
    return removed;
  };
  const count = useRun(async () => {
    const counts = await prune(true);
    setFound(counts ? { keepLast, counts } : { keepLast });
  });
  const remove = useRun(async () => {
    await prune(false);
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
          Keep so many of the newest checkpoints of each namespace
          <input
            type="number"
            min="1"
            max="1000000"
            value={keepLast}
            onInput={(event) => setKeepLast(event.currentTarget.valueAsNumber)}
            required
          />
        </label>
        <p class="dim">What a checkpoint that stays needs is kept, whatever its age.</p>
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

function Export({ threadId, onClose }: { threadId: string; onClose: () => void }) {
  const [read, setRead] = useState(0);
  const { isRunning, problem, begin } = useRun(async () => {
    const url = URL.createObjectURL(await exportThread(threadId, setRead));
    const link = document.createElement("a");
    link.href = url;
    link.download = `${threadId.replace(/[^\w.-]+/g, "_").slice(0, 100)}.jsonl`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(url), 60_000);
    onClose();
  });
  return (
    <Dialog title="Export this thread" onClose={onClose}>
      <p>
        All of it, as JSON lines: what <code>checkpointd threads import</code> and this page read.
      </p>
      <p role="status">{isRunning && `${toCount(read, "checkpoint")} read…`}</p>
      <Problem text={problem} />
      <div class="buttons">
        <button type="button" onClick={onClose}>
          Cancel
        </button>
        <button type="button" class="main" disabled={isRunning} onClick={begin}>
          Export
        </button>
      </div>
    </Dialog>
  );
}

function Code(props: {
  name: { threadId: string; ns: string; checkpointId: string };
  onClose: () => void;
}) {
  const [chosen, setChosen] = useState(0);
  const [isCopied, setCopied] = useState(false);
  const snippet = snippets[chosen] ?? snippets[0];
  if (!snippet) return null;
  const text = snippet.toText(props.name);
  return (
    <Dialog title="From exactly here" onClose={props.onClose}>
      <fieldset class="choices">
        <legend class="dim">Language</legend>
        {snippets.map(({ label }, i) => (
          <button
            type="button"
            key={label}
            class="chip"
            aria-pressed={i === chosen}
            onClick={() => {
              setChosen(i);
              setCopied(false);
            }}
          >
            {label}
          </button>
        ))}
      </fieldset>
      <pre class="code">{text}</pre>
      <div class="buttons">
        <span role="status">{isCopied && "Copied."}</span>
        <button type="button" onClick={props.onClose}>
          Close
        </button>
        <button
          type="button"
          class="main"
          onClick={async () => {
            await navigator.clipboard.writeText(text);
            setCopied(true);
          }}
        >
          Copy
        </button>
      </div>
    </Dialog>
  );
}
