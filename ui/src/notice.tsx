/** That something failed, said where it is seen and heard. */
import type { Failure } from "./service.js";

export function FailureNotice({ failure, onAgain }: { failure: Failure; onAgain?: () => void }) {
  return (
    <div class={`notice ${failure.kind}`} role="alert">
      <strong>{failure.kind === "away" ? "The server is away" : "The server refused that"}:</strong>
      <span>
        {failure.text}
        {failure.kind === "away" && ". The page tries again by itself."}
      </span>
      {onAgain && (
        <button type="button" onClick={onAgain}>
          Try now
        </button>
      )}
    </div>
  );
}
