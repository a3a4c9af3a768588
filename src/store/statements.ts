/**
 * The statements of a script, without what ends them. Citus hands what changes a distributed table to
 * its nodes as the whole text in which it came, and they take one statement at a time.
 */
export function toStatements(script: string): string[] {
  const statements: string[] = [];
  let from = 0;
  for (const { 0: token, index } of script.matchAll(
    /\$(\w*)\$[\s\S]*?\$\1\$|'(?:[^']|'')*'|"[^"]*"|--[^\n]*|;/g,
  )) {
    if (token !== ";") continue;
    statements.push(script.slice(from, index));
    from = index + 1;
  }
  statements.push(script.slice(from));
  return statements.filter((each) => each.replace(/--[^\n]*/g, "").trim() !== "");
}
