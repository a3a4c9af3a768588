import type { PeerCertificate } from "node:tls";

/**
 * What a certificate may be called in the auth file: its URIs, and where it has none its common name,
 * as `CN=…`. Who issues names of SPIFFE often lets the common name be whatever was asked for, so it
 * does not count beside them. None where that cannot be told for sure.
 */
export function namesOf({ subject, subjectaltname }: PeerCertificate): string[] {
  const names = alternativeNames(subjectaltname ?? "");
  if (!names) return [];
  const uris = names.flatMap(([type, name]) => (type === "URI" ? [name] : []));
  // SPIFFE's certificates have exactly one.
  if (uris.length > 1 && uris.some((uri) => /^spiffe:/i.test(uri))) return [];
  if (uris.length > 0) return uris;
  // Several ones are a list here.
  const name: unknown = subject?.CN;
  return typeof name === "string" && name !== "" ? [`CN=${name}`] : [];
}

/** Milliseconds since the epoch when it ends; NaN where that is not told. */
export function endOf({ valid_to }: PeerCertificate): number {
  return Date.parse(valid_to);
}

/**
 * Node prints the names as `URI:spiffe://prod/a, DNS:b` and puts one that holds a comma, a quote or a
 * control character between quotes, as JSON. Undefined where a part is not of that form: a name
 * must not be able to look like two (CVE-2021-44532).
 */
function alternativeNames(text: string): [type: string, name: string][] | undefined {
  const names: [string, string][] = [];
  const part = /([A-Za-z][A-Za-z0-9 .]*):("(?:[^"\\]|\\.)*"|[^",]*)(?:, |$)/y;
  while (part.lastIndex < text.length) {
    const [, type = "", shown = ""] = part.exec(text) ?? [];
    if (type === "") return undefined;
    try {
      names.push([type, shown.startsWith('"') ? JSON.parse(shown) : shown]);
    } catch {
      return undefined;
    }
  }
  return names;
}
