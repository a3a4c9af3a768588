/** Lets a list stand still while somebody is at it, however often what it shows is another. */
import type { Thread } from "checkpointd/client";
import type { RefObject } from "preact";
import { useEffect, useReducer, useRef } from "preact/hooks";
import { textOf } from "./read_threads.js";

/** The list as it is drawn. */
export interface Drawn {
  waiting: Thread[];
  others: Thread[];
}

/** A click so soon after rows have moved under a pointer that rests was meant for what was there before. */
const settledMs = 400;

/**
 * Returns `latest`, or what was drawn before as long as somebody is at the list: has the pointer on it,
 * the focus in it, or has scrolled down in it. Of rows that stay the facts are the latest where that
 * does not change their height. `isBehind` where there is more to be drawn: `catchUp` draws it.
 */
export function useStill(key: string, latest: Drawn, box: RefObject<HTMLElement | null>) {
  const [, draw] = useReducer((round: number, _: undefined) => round + 1, 0);
  const kept = useRef<{ key: string; drawn: Drawn }>(undefined);
  const isPointed = useRef(false);
  const mayCatchUp = useRef(false);
  /** When rows have moved, unless the pointer has moved since. */
  const movedAt = useRef(Number.NEGATIVE_INFINITY);

  useEffect(() => {
    const element = box.current;
    if (!element) return;
    let last: [x: number, y: number] | undefined;
    // Where the list came under a pointer that rests, nobody has pointed at anything yet: some browsers
    // tell of a move then.
    const onMove = ({ clientX, clientY }: PointerEvent) => {
      const isResting = last?.[0] === clientX && last[1] === clientY;
      last = [clientX, clientY];
      if (isResting) return;
      isPointed.current = true;
      movedAt.current = Number.NEGATIVE_INFINITY;
    };
    const onDown = () => {
      isPointed.current = true;
    };
    const onLeave = () => {
      isPointed.current = false;
      draw(undefined);
    };
    const onClick = (event: MouseEvent) => {
      if (event.detail === 0 || performance.now() - movedAt.current > settledMs) return;
      event.preventDefault();
      event.stopPropagation();
    };
    element.addEventListener("pointermove", onMove);
    element.addEventListener("pointerdown", onDown);
    element.addEventListener("pointerleave", onLeave);
    element.addEventListener("click", onClick, { capture: true });
    return () => {
      element.removeEventListener("pointermove", onMove);
      element.removeEventListener("pointerdown", onDown);
      element.removeEventListener("pointerleave", onLeave);
      element.removeEventListener("click", onClick, { capture: true });
    };
  }, []);

  const isAtIt = () => {
    const element = box.current;
    if (!element || mayCatchUp.current) return false;
    const isScrolled = element.getBoundingClientRect().top < 0;
    return isPointed.current || isScrolled || element.contains(document.activeElement);
  };
  const before = kept.current?.key === key ? kept.current.drawn : undefined;
  if (before === undefined) isPointed.current = false;
  const isFirst = before === undefined || before.waiting.length + before.others.length === 0;
  let drawn = latest;
  let isBehind = false;
  if (!isFirst && isAtIt()) {
    drawn = freshen(before, latest);
    if (isAppended(before, latest)) {
      drawn.others.push(...latest.others.slice(before.others.length));
    }
    isBehind = isOther(drawn, latest);
  } else if (!isFirst && !isAppended(before, latest)) {
    movedAt.current = performance.now();
  }
  mayCatchUp.current = false;
  kept.current = { key, drawn };
  return {
    drawn,
    isBehind,
    catchUp() {
      mayCatchUp.current = true;
      draw(undefined);
    },
  };
}

/** The rows of `before` with what is now known of them. */
function freshen(before: Drawn, latest: Drawn): Drawn {
  const all = new Map([...latest.waiting, ...latest.others].map((each) => [each.threadId, each]));
  const of = (thread: Thread) => {
    const now = all.get(thread.threadId);
    return now && textOf(now.reasons) === textOf(thread.reasons) ? now : thread;
  };
  return { waiting: before.waiting.map(of), others: before.others.map(of) };
}

const isOther = (drawn: Drawn, latest: Drawn) =>
  drawn.waiting.length !== latest.waiting.length ||
  drawn.others.length !== latest.others.length ||
  drawn.waiting.some((thread, i) => thread !== latest.waiting[i]) ||
  drawn.others.some((thread, i) => thread !== latest.others[i]);

/** Whether all that was drawn is where it was. */
const isAppended = (before: Drawn, latest: Drawn) =>
  before.waiting.length === latest.waiting.length &&
  before.waiting.every(({ threadId }, i) => latest.waiting[i]?.threadId === threadId) &&
  before.others.every(({ threadId }, i) => latest.others[i]?.threadId === threadId);
