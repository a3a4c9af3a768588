/** Dialogs, and what runs when somebody says yes. */
import type { ComponentChildren } from "preact";
import { useEffect, useId, useRef, useState } from "preact/hooks";
import { toFailure } from "./service.js";

/** A dialog: modal, closed by Escape, its heading read out. */
export function Dialog(props: { title: string; onClose: () => void; children: ComponentChildren }) {
  const element = useRef<HTMLDialogElement>(null);
  const id = useId();
  useEffect(() => {
    const dialog = element.current;
    dialog?.showModal();
    return () => dialog?.close();
  }, []);
  return (
    <dialog ref={element} aria-labelledby={id} onClose={props.onClose}>
      <div class="body">
        <h2 id={id}>{props.title}</h2>
        {props.children}
      </div>
    </dialog>
  );
}

/** Runs something once, and tells why it failed. The signal aborts when nobody waits for it any more. */
export function useRun(run: (signal: AbortSignal) => Promise<void>) {
  const [state, setState] = useState<{ isRunning: boolean; problem?: string }>({
    isRunning: false,
  });
  const under = useRef<AbortController>(undefined);
  useEffect(() => () => under.current?.abort(), []);
  return {
    ...state,
    begin: async () => {
      if (under.current) return;
      const mine = new AbortController();
      under.current = mine;
      setState({ isRunning: true });
      try {
        await run(mine.signal);
        setState({ isRunning: false });
      } catch (error) {
        const isOwn = error instanceof Error && error.constructor === Error;
        const problem = isOwn ? error.message : (toFailure(error)?.text ?? "It was given up.");
        setState({ isRunning: false, problem });
      } finally {
        under.current = undefined;
      }
    },
  };
}

/** Why it failed, read out. */
export const Problem = ({ text }: { text: string | undefined }) =>
  text === undefined ? null : (
    <p class="notice" role="alert">
      {text}
    </p>
  );

/**
 * Asks once more before something is done, for what it takes where that is among the children. `status`
 * is read out while it runs.
 */
export function Ask(props: {
  title: string;
  button: string;
  isDanger?: boolean;
  status?: string;
  onClose: () => void;
  run: (signal: AbortSignal) => Promise<void>;
  children: ComponentChildren;
}) {
  const { isRunning, problem, begin } = useRun(props.run);
  return (
    <Dialog title={props.title} onClose={props.onClose}>
      <form
        onSubmit={(event) => {
          event.preventDefault();
          void begin();
        }}
      >
        {props.children}
        {props.status !== undefined && <p role="status">{isRunning && props.status}</p>}
        <Problem text={problem} />
        <div class="buttons">
          <button type="button" onClick={props.onClose}>
            Cancel
          </button>
          <button type="submit" class={props.isDanger ? "danger" : "main"} disabled={isRunning}>
            {props.button}
          </button>
        </div>
      </form>
    </Dialog>
  );
}
