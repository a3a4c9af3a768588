/** JSON as it was stored: with every digit of its integers. */

/** Parses JSON; an integer that no double holds becomes a string of its digits. Throws as JSON.parse. */
export function parseJson(json: string): unknown {
  return JSON.parse(/\d{16}/.test(json) ? quoteIntegers(json) : json);
}

/** Goes from text to text by itself: a pattern for texts overflows with a long one. */
function quoteIntegers(json: string): string {
  const parts: string[] = [];
  for (let at = 0; at < json.length; ) {
    const begin = json.indexOf('"', at);
    const between = json.slice(at, begin < 0 ? json.length : begin);
    parts.push(between.replace(/-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?/g, quoteInteger));
    if (begin < 0) break;
    at = endOfText(json, begin);
    parts.push(json.slice(begin, at));
  }
  return parts.join("");
}

const quoteInteger = (number: string) =>
  /^-?\d+$/.test(number) && !Number.isSafeInteger(Number(number)) ? `"${number}"` : number;

/** Where a text ends that begins there. */
function endOfText(json: string, begin: number): number {
  for (let at = begin; ; ) {
    at = json.indexOf('"', at + 1);
    if (at < 0) return json.length;
    let escapes = 0;
    while (json[at - 1 - escapes] === "\\") escapes++;
    if (escapes % 2 === 0) return at + 1;
  }
}
