/** Code that reads a checkpoint, or goes on from it. */
import { useState } from "preact/hooks";
import { Dialog } from "../dialog.js";
import { isReadOnly } from "../service.js";
import { type Purpose, purposes, type Start, snippets } from "./snippets.js";

/** The language that was chosen last: who debugs in Python does so all day. */
let lastChosen = snippets.findIndex(({ hasGraph }) => hasGraph);

export function Code({ start, onClose }: { start: Start; onClose: () => void }) {
  const [chosen, setChosen] = useState(lastChosen);
  const asks = start.interruptIds.length > 0;
  const [wanted, setWanted] = useState<Purpose>(asks ? "answer" : "resume");
  const [copied, setCopied] = useState<string>();
  const snippet = snippets[chosen] ?? snippets[0];
  if (!snippet) return null;
  // Of a subgraph only the root's graph can be run on.
  const offered = (Object.keys(purposes) as Purpose[]).filter(
    (each) =>
      each === "look" ||
      (snippet.hasGraph && !isReadOnly && start.ns === "" && (each !== "answer" || asks)),
  );
  const purpose = offered.includes(wanted) ? wanted : "look";
  const text = snippet.toText(start, purpose);
  return (
    <Dialog title="Code for this checkpoint" onClose={onClose}>
      <Choice
        legend="Language"
        labels={snippets.map(({ label }) => label)}
        chosen={chosen}
        onChoose={(i) => {
          lastChosen = i;
          setChosen(i);
        }}
      />
      {offered.length > 1 && (
        <Choice
          legend="To"
          labels={offered.map((each) => purposes[each])}
          chosen={offered.indexOf(purpose)}
          onChoose={(i) => setWanted(offered[i] ?? "look")}
        />
      )}
      <pre class="code">{text}</pre>
      {start.ns !== "" && !isReadOnly && (
        <p class="dim">What goes on is a run of the root graph: choose one of its checkpoints.</p>
      )}
      {purpose === "resume" && !start.isLatest && (
        <p class="dim">All tasks that follow this step are run again, on a branch of their own.</p>
      )}
      <div class="buttons">
        <span role="status">{copied === text && "Copied."}</span>
        <button type="button" onClick={onClose}>
          Close
        </button>
        {isSecureContext && (
          <button
            type="button"
            class="main"
            onClick={async () => {
              await navigator.clipboard.writeText(text);
              setCopied(text);
            }}
          >
            Copy
          </button>
        )}
      </div>
    </Dialog>
  );
}

function Choice(props: {
  legend: string;
  labels: string[];
  chosen: number;
  onChoose: (i: number) => void;
}) {
  return (
    <fieldset class="choices">
      <legend class="dim">{props.legend}</legend>
      {props.labels.map((label, i) => (
        <button
          type="button"
          key={label}
          class="chip"
          aria-pressed={i === props.chosen}
          onClick={() => props.onChoose(i)}
        >
          {label}
        </button>
      ))}
    </fieldset>
  );
}
