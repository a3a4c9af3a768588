/** How a thread stands: a word and a sign, so that nobody needs the colour. */
import { meaningOf, type Status } from "./words.js";

const signs: Record<Status, string> = {
  failed: "✕",
  interrupted: "?",
  pending: "…",
  completed: "✓",
};

export const StatusMark = ({ status }: { status: Status }) => (
  <span class={`status ${status}`} title={meaningOf[status]}>
    <span aria-hidden="true">{signs[status]}</span>
    {status}
  </span>
);
