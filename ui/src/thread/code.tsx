/** Code that reads a checkpoint, or goes on from it. */
import { useState } from "preact/hooks";
import { Dialog } from "../dialog.js";
import { type CheckpointName, snippets } from "./snippets.js";

export function Code(props: { name: CheckpointName; onClose: () => void }) {
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
        {isSecureContext && (
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
        )}
      </div>
    </Dialog>
  );
}
