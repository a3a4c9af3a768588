/** Which principal a credential is, by the rules of the auth file. */
import type { AuthFile, KeyEntry, Rule } from "./auth_file.js";
import type { Grant, Pattern, PrincipalLimits } from "./principal.js";
import { type Claims, fill, longestName } from "./templates.js";

/** What was verified of a request. */
export type Credential =
  | { readonly kind: "key"; readonly sha256: string }
  | { readonly kind: "certificate"; readonly names: readonly string[]; readonly expiresAt: number }
  | {
      readonly kind: "token";
      readonly issuer: string;
      /** Which key of the issuer has signed it. */
      readonly keyId: string;
      readonly claims: Claims;
      readonly expiresAt: number;
    };

/** What a credential stands for, before it is anybody's. */
export interface Identity {
  readonly name: string;
  readonly tenant: string;
  readonly grants: readonly Grant[];
  readonly limits: PrincipalLimits;
  readonly expiresAt: number;
  /** As {@link describe} says. */
  readonly credential: string;
  /** What a token was judged by, its issuer's text; one that another audience is asked of is judged again. */
  readonly judgedBy: string | undefined;
  /** All of the above but these two. */
  readonly text: string;
}

/** What a credential is called; undefined for a key that the file does not have. */
export function describe({ keys }: AuthFile, credential: Credential): string | undefined {
  if (credential.kind === "token") return `token of ${credential.issuer}`;
  if (credential.kind === "certificate") return `certificate ${credential.names.join(", ")}`;
  const key = keys.get(credential.sha256);
  return key && `key ${key.id}`;
}

/** Whether a credential stands for the same as before. */
export function isSame(a: Identity, b: Identity | undefined): boolean {
  return a.text === b?.text && a.judgedBy === b.judgedBy;
}

/** What the first rule that matches makes of a credential; undefined: no rule does. */
export function identify(file: AuthFile, credential: Credential): Identity | undefined {
  for (const rule of file.rules) {
    if (!matches(rule, credential, file)) continue;
    const claims = credential.kind === "token" ? credential.claims : {};
    const name = fill(rule.name, claims);
    const tenant = fill(rule.tenant, claims);
    if (name === undefined || tenant === undefined) continue;
    if (Buffer.byteLength(name) > longestName) continue;
    // A subject must not pass for the operator whose name is written in the file.
    if (name !== rule.name && file.plainNames.has(name)) continue;
    if (tenant !== "" && !file.tenants.has(tenant)) continue;
    const grants = fillGrants(rule, claims);
    if (!grants) continue;
    return toIdentity(file, credential, { name, tenant, grants, limits: rule.limits });
  }
  return undefined;
}

function matches(rule: Rule, credential: Credential, file: AuthFile): boolean {
  if (credential.kind === "key") {
    return rule.keys.has(file.keys.get(credential.sha256)?.id ?? "");
  }
  if (credential.kind === "certificate") {
    return credential.names.some((name) => rule.certificates.has(name));
  }
  const { token } = rule;
  if (token?.issuer !== credential.issuer) return false;
  return token.claims.every(([name, wanted]) => hasClaim(credential.claims, name, wanted));
}

/** A claim is its value; a list, and the words of `scope`, are each of theirs. */
function hasClaim(claims: Claims, name: string, wanted: string | number | boolean): boolean {
  const value = Object.hasOwn(claims, name) ? claims[name] : undefined;
  if (Array.isArray(value)) return value.includes(wanted);
  if (name === "scope" && typeof value === "string") {
    return value.split(" ").some((word) => word === wanted);
  }
  return value === wanted;
}

function fillGrants({ grants }: Rule, claims: Claims): readonly Grant[] | undefined {
  const filled: Grant[] = [];
  for (const { operations, threads } of grants) {
    const patterns: Pattern[] = [];
    for (const pattern of threads) {
      const whole = fillPattern(pattern, claims);
      if (!whole) return undefined;
      patterns.push(whole);
    }
    filled.push({ operations, threads: patterns });
  }
  return filled;
}

function fillPattern(pattern: Pattern, claims: Claims): Pattern | undefined {
  if (pattern.kind === "all") return pattern;
  const text = fill(pattern.text, claims);
  return text === undefined ? undefined : { kind: pattern.kind, text };
}

function toIdentity(
  file: AuthFile,
  credential: Credential,
  given: Pick<Identity, "name" | "tenant" | "grants" | "limits">,
): Identity {
  const expiresAt =
    credential.kind === "key"
      ? (file.keys.get(credential.sha256) as KeyEntry).expiresAt
      : credential.expiresAt;
  const judgedBy =
    credential.kind === "token" ? file.issuers.get(credential.issuer)?.text : undefined;
  const { name, tenant, grants, limits } = given;
  const rights = grants.map(({ operations, threads }) => [[...operations].sort(), threads]);
  const { schema } = file.tenants.get(tenant) ?? {};
  const text = JSON.stringify([name, tenant, schema, rights, limits, expiresAt]);
  const called = describe(file, credential) ?? "";
  return { ...given, expiresAt, credential: called, judgedBy, text };
}
