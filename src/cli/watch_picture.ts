/** What `threads watch` draws. */
import { clean } from "../clean.js";
import type { Thread } from "../client/threads.js";
import { type Line, type Painted, paint, type TerminalSize, toAgo, toLeft } from "./print.js";
import { reasonTexts } from "./reason_text.js";
import { cutTo, padTo, widthOf } from "./text_width.js";
import { statusColours } from "./threads_look.js";

/** What was read at last; nothing yet. */
export interface Watched {
  threads: readonly Thread[] | undefined;
  /** Why the last look failed. */
  trouble: string | undefined;
}

/** From so many columns on, leases and nodes have columns of their own. */
const wideFrom = 110;
/** So many of a thread's questions and errors are shown. */
const mostReasons = 2;
const indent = " ".repeat(13);
/** What stands before a thread's name. */
const before = 24;

/** A line for each thread, and below it what it waits for, as much as there is room for. */
export function watchPicture(
  { threads, trouble }: Watched,
  { columns, rows }: TerminalSize,
): Line[] {
  const head: Line = [
    paint("dim", `${new Date().toLocaleTimeString()}, until Ctrl-C`),
    ...(trouble ? ["  ", paint("red", trouble)] : []),
  ];
  if (!threads) return trouble ? [head] : [head, [paint("dim", "Reading threads…")]];
  if (threads.length === 0) return [head, ["No threads."]];
  const isWide = columns >= wideFrom;
  const most = isWide ? Math.floor((columns - before) / 2) : columns - before;
  const width = Math.min(most, Math.max(6, ...threads.map((it) => widthOf(clean(it.threadId)))));
  const blocks = threads.map((thread) => toBlock(thread, isWide, width, columns));
  const heading = `${padTo(11, "STATUS")}  AGE  STEP  ${padTo(width, "THREAD")}`;
  const lines: Line[] = [
    head,
    [paint("bold", isWide ? `${heading}  ${padTo(28, "HELD BY")}  PENDING` : heading)],
  ];
  let shown = 0;
  for (const block of blocks) {
    const isLast = shown === blocks.length - 1;
    // The last line is for how many more there are.
    if (lines.length + block.length > rows - (isLast ? 0 : 1)) break;
    lines.push(...block);
    shown++;
  }
  const rest = blocks.length - shown;
  if (rest > 0) lines.push([paint("dim", `… ${rest} more`)]);
  return lines;
}

function toBlock(thread: Thread, isWide: boolean, width: number, columns: number): Line[] {
  const { threadId, status, step, updatedAt, claim, pendingNodes } = thread;
  const held = claim ? `${cutTo(18, clean(claim.owner))}, ${toLeft(claim.expiresAt)}` : "";
  const nodes = cutTo(columns - indent.length - 30, clean(pendingNodes.join(" ")));
  const first: (string | Painted)[] = [
    paint(statusColours[status] ?? "bold", padTo(11, status)),
    `  ${toAgo(updatedAt).padStart(3)}  ${String(step ?? "").padStart(4)}  `,
    padTo(width, cutTo(width, clean(threadId))),
  ];
  if (isWide) first.push("  ", padTo(28, held), "  ", nodes);
  const block: Line[] = [first];
  if (!isWide && (held !== "" || nodes !== "")) {
    const facts = [held && `held by ${held}`, nodes && `→ ${nodes}`].filter((it) => it !== "");
    block.push([indent, paint("dim", facts.join("  "))]);
  }
  for (const { kind, text } of reasonTexts(thread, columns).slice(0, mostReasons)) {
    block.push([indent, paint(kind === "error" ? "red" : "yellow", `${kind}: ${text}`)]);
  }
  return block;
}
