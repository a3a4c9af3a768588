/** Brings a thread back from a file. */
import { useState } from "preact/hooks";
import { Dialog, Problem, useRun } from "../dialog.js";
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
  const { isRunning, problem, begin } = useRun(async (signal) => {
    if (!file) return;
    const thread = await importThread(file, name, signal, setStored);
    if (!signal.aborted) go({ thread });
  });
  return (
    <Dialog title="Import a thread" onClose={onClose}>
      <form
        onSubmit={(event) => {
          event.preventDefault();
          void begin();
        }}
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
        <p role="status">{isRunning && `${toCount(stored, "checkpoint")} stored…`}</p>
        <Problem text={problem} />
        <div class="buttons">
          <button type="button" onClick={onClose}>
            Cancel
          </button>
          <button type="submit" class="main" disabled={isRunning}>
            Import
          </button>
        </div>
      </form>
    </Dialog>
  );
}
