import { createHash, randomBytes } from "node:crypto";

/**
 * A source of random base64 text, made here and now, so that taking from it costs next to
 * nothing: each call returns another piece of the given length. It does not compress, as
 * filler text would.
 */
export function createText(longest: number): (length: number) => string {
  const size = Math.max(4 * 1024 * 1024, longest * 2);
  const text = randomBytes(Math.ceil((size * 3) / 4)).toString("base64");
  return (length) => {
    const start = Math.floor(Math.random() * (text.length - length));
    return text.slice(start, start + length);
  };
}

/** 1,024 characters of hex that depend on `key` alone: `sqlText` computes the same in Postgres. */
export function textOf(key: string): string {
  let text = "";
  for (let part = 0; part < 32; part += 1) {
    text += createHash("md5").update(`${key}:${part}`).digest("hex");
  }
  return text;
}

/** A SQL expression for `textOf` of the text that the SQL expression `key` yields. */
export function sqlText(key: string): string {
  return `(select string_agg(md5((${key}) || ':' || part), '' order by part) from generate_series(0, 31) as part)`;
}
