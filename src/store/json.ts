import { invalidArgument } from "../errors.js";
import type { Run } from "./db.js";

/**
 * What Postgres says of JSON text it cannot store: syntax, \u0000, a number or nesting beyond bounds,
 * and, of many elements, XX000 (invalid memory alloc request size).
 */
const jsonErrors = /^(22P02|22P05|22003|22023|22021|54000|54001|XX000)$/;

/**
 * Waits for a statement that casts the given fields to jsonb. If Postgres refuses one, finds
 * out which and says so. JSON is never parsed here on the way in (Postgres does it anyway);
 * only a refused request pays for a second look, by us and at last by Postgres.
 */
export async function explainJson<T>(
  run: Run,
  fields: Readonly<Record<string, string>>,
  result: Promise<T>,
): Promise<T> {
  try {
    return await result;
  } catch (error) {
    if (!jsonErrors.test((error as { code?: string }).code ?? "")) throw error;
    for (const [field, text] of Object.entries(fields)) {
      const problem = findProblem(text);
      if (problem) throw invalidArgument(field, problem.reason, problem.message);
    }
    for (const [field, text] of Object.entries(fields)) {
      if (text === "") continue;
      await run("select $1::text::jsonb is null", [text]).catch((refusal) => {
        if (!jsonErrors.test(refusal.code)) throw refusal;
        throw invalidArgument(
          field,
          "INVALID_JSON",
          "Postgres cannot store this JSON (a number out of range, nested too deeply, or of too many elements)",
        );
      });
    }
    throw error;
  }
}

function findProblem(text: string) {
  if (text === "") return undefined;
  try {
    JSON.parse(text);
  } catch {
    return { reason: "INVALID_JSON", message: "not valid JSON" } as const;
  }
  // Escapes are read left to right so that an escaped backslash before "u0000" is no hit.
  for (const [found] of text.matchAll(/\\u[dD][89abAB]..\\u[dD][c-fC-F]..|\\u.{4}|\\./g)) {
    if (found === "\\u0000") {
      return {
        reason: "NUL_CHARACTER",
        message: "holds \\u0000, which jsonb cannot store",
      } as const;
    }
    if (/^\\u[dD][89a-fA-F]..$/.test(found)) {
      return {
        reason: "LONE_SURROGATE",
        message: "holds a lone surrogate, which jsonb cannot store",
      } as const;
    }
  }
  return undefined;
}
