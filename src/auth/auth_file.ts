/** The auth file: who may do what, in JSON. docs/security.md tells the format, with an example. */
import { checkSchemaName } from "../store/schema_name.js";
import { toRules } from "./auth_file_rules.js";
import type { Tenant } from "./authenticator.js";
import {
  at,
  parseJson,
  refuse,
  toBytes,
  toInteger,
  toList,
  toMap,
  toObject,
  toSome,
  toText,
} from "./json_fields.js";
import type { Grant, PrincipalLimits } from "./principal.js";
import { isNamePart } from "./templates.js";

/** The file, read and checked. */
export interface AuthFile {
  readonly tenants: ReadonlyMap<string, Tenant>;
  /** By the SHA-256 of the key. */
  readonly keys: ReadonlyMap<string, KeyEntry>;
  /** By their name, the `iss` of their tokens. */
  readonly issuers: ReadonlyMap<string, Issuer>;
  /** The first that matches counts. */
  readonly rules: readonly Rule[];
  /** The names of principals that hold no template. */
  readonly plainNames: ReadonlySet<string>;
}

export interface KeyEntry {
  readonly id: string;
  readonly sha256: string;
  /** Milliseconds since the epoch, or Infinity. */
  readonly expiresAt: number;
}

/** Who signs tokens, and which of them count. */
export interface Issuer {
  readonly issuer: string;
  /** One of these has to be in the token's `aud`. */
  readonly audience: readonly string[];
  /** Where its keys are: a URL, or a path that is relative to the auth file's. */
  readonly jwks: { readonly url: string } | { readonly file: string };
  readonly algorithms: readonly string[];
  /** Undefined: it is not looked at. */
  readonly typ: string | undefined;
  readonly skewSeconds: number;
  /** How long keys count that could not be fetched again. */
  readonly outageMs: number;
  /** All of it but the outage: a token that was judged by another has to be judged again. */
  readonly text: string;
}

/** An entry of `principals`. */
export interface Rule {
  /** The name and the tenant may hold templates, as the texts of the patterns in its grants. */
  readonly name: string;
  readonly tenant: string;
  /** Ids of keys. */
  readonly keys: ReadonlySet<string>;
  /** URIs, and common names as `CN=…`. */
  readonly certificates: ReadonlySet<string>;
  readonly token: TokenRule | undefined;
  readonly grants: readonly Grant[];
  readonly limits: PrincipalLimits;
}

/** Tokens of an issuer that have these claims. */
export interface TokenRule {
  readonly issuer: string;
  readonly claims: readonly (readonly [name: string, value: string | number | boolean])[];
}

/** All of them sign with a key that only the issuer has; with the others whoever checks can sign. */
const algorithms = [
  ...["RS256", "RS384", "RS512", "PS256", "PS384", "PS512"],
  ...["ES256", "ES384", "ES512", "EdDSA", "Ed25519"],
];

/**
 * Reads the text of an auth file.
 *
 * @throws FileRefusal with the path of what is wrong, such as `keys[2].sha256`, and what to do
 */
export function parseAuthFile(text: string): AuthFile {
  const file = toObject(parseJson(text), "", ["tenants", "keys", "jwt", "principals"]);
  const tenants = toTenants(file.tenants);
  const keys = toList(file.keys, "keys", toKey);
  refuseTwice(keys, "keys", ["id", "sha256"]);
  const issuers = toList(file.jwt, "jwt", toIssuer);
  refuseTwice(issuers, "jwt", ["issuer"]);
  const known = {
    tenants,
    keyIds: new Set(keys.map(({ id }) => id)),
    issuers: new Set(issuers.map(({ issuer }) => issuer)),
  };
  const rules = toRules(file.principals, known);
  return {
    tenants,
    keys: new Map(keys.map((key) => [key.sha256, key])),
    issuers: new Map(issuers.map((issuer) => [issuer.issuer, issuer])),
    rules,
    plainNames: new Set(rules.map(({ name }) => name).filter((name) => !name.includes("{"))),
  };
}

function toTenants(value: unknown): ReadonlyMap<string, Tenant> {
  const tenants = new Map<string, Tenant>();
  const bySchema = new Map<string, string>();
  for (const [name, entry] of Object.entries(value === undefined ? {} : toMap(value, "tenants"))) {
    const path = at("tenants", name);
    if (!isNamePart(name)) {
      refuse(path, 'a tenant\'s name has 1 to 256 bytes, without "/", "*" and control characters.');
    }
    const { schema, storedBytes } = toObject(entry, path, ["schema", "storedBytes"]);
    const tenant = { schema: toSchema(schema, at(path, "schema")) };
    const other = bySchema.get(tenant.schema);
    if (other !== undefined) {
      refuse(
        at(path, "schema"),
        `${at("tenants", other)} has the same: each needs one of its own.`,
      );
    }
    bySchema.set(tenant.schema, name);
    const most = toBytes(storedBytes, at(path, "storedBytes"));
    tenants.set(name, most === undefined ? tenant : { ...tenant, storedBytes: most });
  }
  return tenants;
}

function toSchema(value: unknown, path: string): string {
  const schema = toText(value, path);
  try {
    checkSchemaName(schema);
    return schema;
  } catch (error) {
    return refuse(path, `${(error as Error).message}.`);
  }
}

function toKey(value: unknown, path: string): KeyEntry {
  const { id, sha256, expires } = toObject(value, path, ["id", "sha256", "expires"]);
  if (typeof sha256 !== "string" || !/^[0-9a-f]{64}$/i.test(sha256)) {
    refuse(
      at(path, "sha256"),
      "must be the 64 hexadecimal digits of the key's SHA-256, as checkpointd keys new prints them.",
    );
  }
  return {
    id: toText(id, at(path, "id")),
    sha256: sha256.toLowerCase(),
    expiresAt: toTime(expires, at(path, "expires")),
  };
}

/** Milliseconds since the epoch of a time of RFC 3339; Infinity where none is given. */
function toTime(value: unknown, path: string): number {
  if (value === undefined) return Number.POSITIVE_INFINITY;
  const time = typeof value === "string" ? parseTime(value) : undefined;
  return time ?? refuse(path, "must be a time with its zone, such as 2027-01-31T00:00:00Z.");
}

/** Milliseconds since the epoch; undefined for what is no whole date with a time and a zone. */
export function parseTime(text: string): number | undefined {
  if (!/^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)$/.test(text)) return undefined;
  const ms = Date.parse(text);
  return Number.isNaN(ms) ? undefined : ms;
}

function toIssuer(value: unknown, path: string): Issuer {
  const fields = toObject(value, path, [
    ...["issuer", "audience", "jwksUrl", "jwksFile"],
    ...["algorithms", "typ", "skewSeconds", "outageMinutes"],
  ]);
  const { audience, typ = "at+jwt", skewSeconds, outageMinutes } = fields;
  const pathOf = (name: string) => at(path, name);
  const judging = {
    issuer: toText(fields.issuer, pathOf("issuer")),
    audience: Array.isArray(audience)
      ? toSome(audience, pathOf("audience"), toText)
      : [toText(audience, pathOf("audience"))],
    jwks: toJwks(fields, path),
    algorithms: toSome(fields.algorithms, pathOf("algorithms"), toAlgorithm),
    typ: typ === null ? undefined : toText(typ, pathOf("typ")),
    skewSeconds: toInteger(skewSeconds, pathOf("skewSeconds"), 0, 300, 30),
  };
  const minutes = toInteger(outageMinutes, pathOf("outageMinutes"), 1, 10_080, 60);
  return { ...judging, outageMs: minutes * 60_000, text: JSON.stringify(judging) };
}

function toAlgorithm(value: unknown, path: string): string {
  if (algorithms.includes(value as string)) return value as string;
  return refuse(
    path,
    `must be one of ${algorithms.join(", ")}: with others whoever can check a token can make one.`,
  );
}

function toJwks({ jwksUrl, jwksFile }: Record<string, unknown>, path: string): Issuer["jwks"] {
  if ((jwksUrl === undefined) === (jwksFile === undefined)) {
    refuse(path, "must have a jwksUrl or a jwksFile, and not both.");
  }
  if (jwksFile !== undefined) return { file: toText(jwksFile, at(path, "jwksFile")) };
  const text = toText(jwksUrl, at(path, "jwksUrl"));
  const url = URL.canParse(text) ? new URL(text) : undefined;
  if (url?.username || url?.password) refuse(at(path, "jwksUrl"), "must hold no password.");
  if (url?.protocol === "https:" || (url?.protocol === "http:" && isLoopback(url))) {
    return { url: text };
  }
  return refuse(
    at(path, "jwksUrl"),
    "must be a URL that begins with https:// (http:// on this machine only): " +
      "who could change the keys on their way could make tokens.",
  );
}

const isLoopback = ({ hostname }: URL) => /^(localhost|127\.[\d.]+|\[::1\])$/.test(hostname);

/** No two entries of a list may have the same of these. */
function refuseTwice<T>(list: readonly T[], path: string, names: readonly (keyof T & string)[]) {
  for (const name of names) {
    const first = new Map<unknown, number>();
    for (const [i, entry] of list.entries()) {
      const other = first.get(entry[name]);
      if (other !== undefined) {
        refuse(at(`${path}[${i}]`, name), `${path}[${other}] has the same.`);
      }
      first.set(entry[name], i);
    }
  }
}
