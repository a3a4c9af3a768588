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

/** Why it failed, read out. */
export const Problem = ({ text }: { text: string | undefined }) =>
  text === undefined ? null : (
    <p class="notice" role="alert">
      {text}
    </p>
  );

/** Asks once more before something is done. */
export function Confirm(props: {
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
