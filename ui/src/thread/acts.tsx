/** What can be done with a thread, each thing asked for once more before it is done. */
import type { Thread } from "checkpointd/client";
import { useState } from "preact/hooks";
import { Ask } from "../dialog.js";
import { go, type Place } from "../place.js";
import { checkpoints, isReadOnly, threads } from "../service.js";
import { interruptIdsOf } from "../values/reasons.js";
import { toCount, toRecord } from "../words.js";
import { Code } from "./code.js";
import { Prune } from "./prune.js";
import type { Start } from "./snippets.js";
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
      {act === "code" && <Code start={startOf(thread, place)} onClose={onClose} />}
      {act === "export" && <Export threadId={threadId} onClose={onClose} />}
      {act === "copy" && <Copy threadId={threadId} onClose={onClose} />}
      {act === "prune" && <Prune threadId={threadId} onClose={onClose} onDone={onDone} />}
      {act === "release" && (
        <Ask
          isDanger
          title="End the lease?"
          button="End the lease"
          onClose={onClose}
          run={async (signal) => {
            await threads.releaseClaim({ threadId, force: true });
            if (!signal.aborted) onDone();
          }}
        >
          <p>
            <strong>{thread.claim?.owner}</strong> holds this thread. It can store nothing more
            under its lease then, and others may take the thread.
          </p>
        </Ask>
      )}
      {act === "delete" && (
        <Ask
          isDanger
          title="Delete this thread?"
          button="Delete it"
          onClose={onClose}
          run={async (signal) => {
            await checkpoints.deleteThread({ threadId });
            // Who has closed the dialog meanwhile may be elsewhere.
            if (!signal.aborted) go({});
          }}
        >
          <p>
            Everything of <strong>{threadId}</strong> goes, in all its namespaces. Nothing brings it
            back, unless you export it first.
          </p>
        </Ask>
      )}
    </div>
  );
}

/** The checkpoint that is shown. */
function startOf(thread: Thread, { ns = "", checkpoint = "" }: Place): Start {
  const checkpointId = checkpoint || (ns === "" ? thread.checkpointId : "");
  const isLatest = ns === "" && checkpointId === thread.checkpointId;
  const graph = toRecord(thread.metadataJson).checkpointd_graph;
  return {
    threadId: thread.threadId,
    ns,
    checkpointId,
    isLatest,
    graph: typeof graph === "string" ? graph : undefined,
    interruptIds: isLatest ? interruptIdsOf(thread.reasons) : [],
  };
}

function Copy({ threadId, onClose }: { threadId: string; onClose: () => void }) {
  const [name, setName] = useState(`${threadId}-copy`);
  const copy = async (signal: AbortSignal) => {
    await threads.copyThread({ sourceThreadId: threadId, targetThreadId: name });
    if (!signal.aborted) go({ thread: name });
  };
  return (
    <Ask title="Copy this thread" button="Copy" onClose={onClose} run={copy}>
      <label>
        The name of the copy
        <input value={name} onInput={(event) => setName(event.currentTarget.value)} required />
      </label>
    </Ask>
  );
}

function Export({ threadId, onClose }: { threadId: string; onClose: () => void }) {
  const [read, setRead] = useState(0);
  const save = async (signal: AbortSignal) => {
    const url = URL.createObjectURL(await exportThread(threadId, signal, setRead));
    const link = document.createElement("a");
    link.href = url;
    link.download = `${threadId.replace(/[^\w.-]+/g, "_").slice(0, 100)}.jsonl`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(url), 60_000);
    onClose();
  };
  return (
    <Ask
      title="Export this thread"
      button="Export"
      status={`${toCount(read, "checkpoint")} read…`}
      onClose={onClose}
      run={save}
    >
      <p>
        All of it, as JSON lines: what <code>checkpointd threads import</code> and this page read.
      </p>
    </Ask>
  );
}
