/** Brings a thread back from a file. */
import { useState } from "preact/hooks";
import { Ask } from "../dialog.js";
import { go } from "../place.js";
import { isReadOnly } from "../service.js";
import { importThread } from "../thread/transfer.js";
import { toCount } from "../words.js";

export function ImportButton() {
  const [isOpen, setOpen] = useState(false);
  if (isReadOnly) return null;
  return (
    <>
      <button type="button" class="import" onClick={() => setOpen(true)}>
        Import
      </button>
      {isOpen && <Import onClose={() => setOpen(false)} />}
    </>
  );
}

function Import({ onClose }: { onClose: () => void }) {
  const [file, setFile] = useState<File>();
  const [name, setName] = useState("");
  const [stored, setStored] = useState(0);
  const store = async (signal: AbortSignal) => {
    if (!file) return;
    const thread = await importThread(file, name, signal, setStored);
    if (!signal.aborted) go({ thread });
  };
  return (
    <Ask
      title="Import a thread"
      button="Import"
      status={`${toCount(stored, "checkpoint")} stored…`}
      onClose={onClose}
      run={store}
    >
      <label>
        An exported file (.jsonl)
        <input
          type="file"
          accept=".jsonl"
          onChange={(event) => setFile(event.currentTarget.files?.[0])}
          required
        />
      </label>
      <label>
        The thread's name here; empty keeps the one it had
        <input value={name} onInput={(event) => setName(event.currentTarget.value)} />
      </label>
    </Ask>
  );
}
