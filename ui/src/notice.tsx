/** That something failed, said where it is seen and heard. */
import type { ComponentChildren } from "preact";
import { useEffect, useErrorBoundary } from "preact/hooks";
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

/** What is shown in place of what the page cannot draw, whatever was stored: all around it goes on. */
export function Guarded({ of, children }: { of: string; children: ComponentChildren }) {
  const [error, reset] = useErrorBoundary();
  useEffect(() => {
    if (error !== undefined) reset();
  }, [of]);
  if (error === undefined) return <>{children}</>;
  return (
    <p class="notice" role="alert">
      The page has a mistake and cannot show this:{" "}
      {error instanceof Error ? error.message : String(error)}
    </p>
  );
}
