/** How much room text takes on a terminal, where not every character is one cell wide. */

const graphemes = new Intl.Segmenter(undefined, { granularity: "grapheme" });

const narrow = /^[\uff61-\uffdc]/u;
/** What East Asian fonts give two cells, and what is shown as a picture. */
const wide =
  /^(?:\p{sc=Han}|\p{sc=Hiragana}|\p{sc=Katakana}|\p{sc=Hangul}|[\u3000-\u303e\uff01-\uff60\uffe0-\uffe6]|\p{Emoji_Presentation})|\ufe0f/u;
/** What has no room of its own. */
const none = /^(?:\p{Mn}|\p{Me}|\p{Cf})/u;
/** Text of characters of one cell each, which is most. */
const plain = /^[\x20-\x7e]*$/;

const cellsOf = (grapheme: string) =>
  none.test(grapheme) ? 0 : wide.test(grapheme) && !narrow.test(grapheme) ? 2 : 1;

/** How many cells the text takes. It holds no control characters. */
export function widthOf(text: string): number {
  if (plain.test(text)) return text.length;
  let width = 0;
  for (const { segment } of graphemes.segment(text)) width += cellsOf(segment);
  return width;
}

/** The text, cut so that it takes at most so many cells, with "…" at its end then. */
export function cutTo(width: number, text: string): string {
  if (widthOf(text) <= width) return text;
  let cut = "";
  let room = width - 1;
  for (const { segment } of graphemes.segment(text)) {
    room -= cellsOf(segment);
    if (room < 0) break;
    cut += segment;
  }
  return width < 1 ? "" : `${cut}…`;
}

/** The text with spaces behind it, so that it takes at least so many cells. */
export const padTo = (width: number, text: string): string =>
  text + " ".repeat(Math.max(0, width - widthOf(text)));
