/** A terminal's screen for a picture that is drawn again and again, and the terminal as it was after that. */
import { clean } from "../clean.js";
import { control, drawLines, type Line, type TerminalSize, terminalSize } from "./print.js";
import { cutTo, widthOf } from "./text_width.js";

/** The other screen, which has no history; no cursor; what is too wide is cut, not wrapped. */
const enter = "\u001b[?1049h\u001b[?25l\u001b[?7l";
const leave = "\u001b[?7h\u001b[?25h\u001b[?1049l";

/** Whether standard output is a terminal that can be drawn on. */
export const hasScreen = () => process.stdout.isTTY === true && process.env.TERM !== "dumb";

/** A terminal that is drawn on. */
export interface Screen {
  /** Draws the picture as it is now. */
  draw(): void;
  /** Gives the terminal back. Idempotent. */
  close(): void;
}

/**
 * Draws what `picture` returns, anew also when the terminal is resized or comes back from Ctrl-Z. By
 * whatever signal the process ends, but SIGKILL, the terminal is as it was before.
 */
export function openScreen(picture: (size: TerminalSize) => readonly Line[]): Screen {
  let isOpen = true;
  const draw = () => {
    if (!isOpen) return;
    const size = terminalSize();
    const lines = picture(size).slice(0, size.rows);
    drawLines(lines.map((line) => cutLine(line, size.columns)));
  };
  const close = () => {
    if (isOpen) control(leave);
    isOpen = false;
  };
  const open = () => {
    isOpen = true;
    control(enter);
    draw();
  };
  process.on("exit", close);
  // Died of the signal, as whoever started it expects.
  for (const name of ["SIGINT", "SIGTERM"] as const) {
    process.once(name, () => {
      close();
      control("", () => process.kill(process.pid, name));
    });
  }
  process.on("SIGTSTP", () => {
    close();
    control("", () => process.kill(process.pid, "SIGSTOP"));
  });
  process.on("SIGCONT", open);
  process.stdout.on("resize", draw);
  open();
  return { draw, close };
}

function cutLine(line: Line, columns: number): Line {
  let room = columns;
  return line.map((part) => {
    const text = cutTo(Math.max(0, room), clean(typeof part === "string" ? part : part.text));
    room -= widthOf(text);
    return typeof part === "string" ? text : { ...part, text };
  });
}
