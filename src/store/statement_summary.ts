/** What a statement does to which tables, as people read it in a trace. */

/** What is told of a statement. */
export interface Summary {
  /** Such as `INSERT checkpoint_blobs checkpoints`: what it does, and to which tables, in their order. */
  readonly text: string;
  /** The schema of the tables; empty where it touches none. */
  readonly schema: string;
}

/** In our statements every table has its quoted schema before it, and nothing else has. */
const table = /(insert into|delete from|update|from|join) "((?:[^"]|"")+)"\.(\w+)/g;
const verbs: Record<string, string> = {
  "insert into": "INSERT",
  "delete from": "DELETE",
  update: "UPDATE",
};

/** Texts that are remembered. There are some hundred: those of lists depend on their filters. */
const mostKept = 1_000;
const kept = new Map<string, Summary>();

/** The summary of a statement of the store. */
export function summaryOf(text: string): Summary {
  const known = kept.get(text);
  if (known) return known;
  const summary = summarize(text);
  if (kept.size >= mostKept) kept.clear();
  kept.set(text, summary);
  return summary;
}

function summarize(text: string): Summary {
  const parts: string[] = [];
  const seen = new Set<string>();
  let schema = "";
  let last = "";
  for (const [, words = "", quoted = "", name = ""] of text.matchAll(table)) {
    schema = quoted.replaceAll('""', '"');
    const verb = verbs[words] ?? "SELECT";
    if (seen.has(`${verb} ${name}`)) continue;
    seen.add(`${verb} ${name}`);
    if (verb !== last) parts.push(verb);
    last = verb;
    parts.push(name);
  }
  if (parts.length === 0) parts.push(/\w+/.exec(text)?.[0].toUpperCase() ?? "SELECT");
  return { text: parts.join(" ").slice(0, 255), schema };
}
