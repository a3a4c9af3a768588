/**
 * What moves a terminal's cursor, ends a line or turns the direction of what follows: C0, DEL and
 * C1, the separators of lines and paragraphs, the marks and overrides of writing direction, and
 * halves of surrogate pairs (with the flag u only a lone one is a character).
 */
const unprintable =
  // biome-ignore lint/suspicious/noControlCharactersInRegex: these are what is to go.
  /[\u0000-\u001f\u007f-\u009f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]/gu;

/**
 * The text as it may be shown: such characters as escapes, `\u001b`. They are those of JSON, so
 * JSON.stringify's text stays the same value.
 */
export function clean(text: string): string {
  return text.replace(
    unprintable,
    (character) => `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`,
  );
}
