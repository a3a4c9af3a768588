/** The section `principals` of the auth file. */
import { didYouMean } from "../protocol/nearest.js";
import type { Rule, TokenRule } from "./auth_file.js";
import {
  at,
  refuse,
  toBytes,
  toInteger,
  toList,
  toMap,
  toObject,
  toSome,
  toText,
} from "./json_fields.js";
import {
  type Grant,
  type Operation,
  operations,
  type Pattern,
  type PrincipalLimits,
} from "./principal.js";
import { checkTemplates, hasTemplate, longestName, mayBeSame } from "./templates.js";

/** What the entries may name. */
interface Known {
  tenants: ReadonlyMap<string, unknown>;
  keyIds: ReadonlySet<string>;
  issuers: ReadonlySet<string>;
}

/** The rules of the file. @throws FileRefusal */
export function toRules(value: unknown, known: Known): Rule[] {
  const rules = toSome(value, "principals", (entry, path) => toRule(entry, path, known));
  refuseNeverReached(rules);
  refuseMixedIssuers(rules);
  return rules;
}

function toRule(value: unknown, path: string, known: Known): Rule {
  const fields = toObject(value, path, [
    ...["name", "tenant", "keys", "certificates", "jwt", "grants", "limits"],
  ]);
  const keys = toList(fields.keys, at(path, "keys"), (id, where) =>
    toKnown(id, where, known.keyIds, "keys has none of this id."),
  );
  const certificates = toList(fields.certificates, at(path, "certificates"), toCertificate);
  const token =
    fields.jwt === undefined ? undefined : toTokenRule(fields.jwt, at(path, "jwt"), known);
  if (keys.length + certificates.length === 0 && !token) {
    refuse(path, "must have keys, certificates or a jwt: without them nobody is this principal.");
  }
  const name = toText(fields.name, at(path, "name"));
  checkTemplates(name, at(path, "name"));
  if (Buffer.byteLength(name) > longestName) {
    refuse(at(path, "name"), `must have at most ${longestName} bytes.`);
  }
  const tenant = toTenant(fields.tenant, at(path, "tenant"), known);
  const grants = toSome(fields.grants, at(path, "grants"), toGrant);
  const texts = grants.flatMap(({ threads }) =>
    threads.map((pattern) => (pattern.kind === "all" ? "" : pattern.text)),
  );
  if ([name, tenant, ...texts].some(hasTemplate) && (!token || keys.length + certificates.length)) {
    refuse(path, "only a token has claims: make one principal with its jwt alone for {templates}.");
  }
  const limits = toLimits(fields.limits, at(path, "limits"));
  return {
    name,
    tenant,
    keys: new Set(keys),
    certificates: new Set(certificates),
    token,
    grants,
    limits,
  };
}

function toKnown(value: unknown, path: string, known: ReadonlySet<string>, otherwise: string) {
  const text = toText(value, path);
  if (known.has(text)) return text;
  return refuse(path, `${otherwise}${didYouMean(text, [...known])}`);
}

function toTenant(value: unknown, path: string, { tenants }: Known): string {
  if (value === undefined) return "";
  const tenant = toText(value, path);
  checkTemplates(tenant, path);
  if (hasTemplate(tenant)) return tenant;
  return toKnown(tenant, path, new Set(tenants.keys()), "tenants has none of this name.");
}

function toCertificate(value: unknown, path: string): string {
  const text = toText(value, path);
  if (/^CN=./.test(text) || /^[a-z][\w+.-]*:./i.test(text)) return text;
  return refuse(path, "must be a URI such as spiffe://prod/agent, or a common name as CN=agent.");
}

function toTokenRule(value: unknown, path: string, { issuers }: Known): TokenRule {
  const { issuer, claims } = toObject(value, path, ["issuer", "claims"]);
  const wanted = claims === undefined ? {} : toMap(claims, at(path, "claims"));
  return {
    issuer: toKnown(issuer, at(path, "issuer"), issuers, "jwt has no such issuer."),
    claims: Object.entries(wanted).map(([name, claim]) => {
      if (typeof claim === "string" || typeof claim === "number" || typeof claim === "boolean") {
        return [name, claim];
      }
      return refuse(
        at(at(path, "claims"), name),
        "must be a text, a number, true or false: what the claim is, or a list of it holds.",
      );
    }),
  };
}

function toGrant(value: unknown, path: string): Grant {
  const fields = toObject(value, path, ["operations", "threads"]);
  const allowed = toSome(fields.operations, at(path, "operations"), toOperation);
  return {
    operations: new Set(allowed),
    threads: toSome(fields.threads, at(path, "threads"), toPattern),
  };
}

function toOperation(value: unknown, path: string): Operation {
  const operation = operations.find((known) => known === value);
  return operation ?? refuse(path, `must be one of ${operations.join(", ")}.`);
}

function toPattern(value: unknown, path: string): Pattern {
  const text = toText(value, path);
  if (text === "*") return { kind: "all" };
  if (text.slice(0, -1).includes("*")) refuse(path, "a * may stand at the end only.");
  checkTemplates(text, path);
  if (!text.endsWith("*")) return { kind: "exact", text };
  if (hasTemplate(text.slice(text.lastIndexOf("/") + 1))) {
    refuse(path, 'put a "/" between a template and the *: {sub}* of "ann" would be "anna\'s" too.');
  }
  return { kind: "prefix", text: text.slice(0, -1) };
}

const countNames = ["calls", "callsAtOnce", "streams", "sessions", "leases", "databaseMs"] as const;
const byteNames = ["bytesIn", "bytesOut", "unreadBytes"] as const;

function toLimits(value: unknown, path: string): PrincipalLimits {
  if (value === undefined) return {};
  const fields = toObject(value, path, [...countNames, ...byteNames]);
  const limits: Partial<Record<keyof PrincipalLimits, number>> = {};
  for (const name of countNames) {
    const limit = toInteger(fields[name], at(path, name), 1, 1_000_000_000, undefined);
    if (limit !== undefined) limits[name] = limit;
  }
  for (const name of byteNames) {
    const limit = toBytes(fields[name], at(path, name));
    if (limit !== undefined) limits[name] = limit;
  }
  return limits;
}

/** The first principal counts, so a key that a second one names as well would do nothing there. */
function refuseNeverReached(rules: readonly Rule[]): void {
  const first = new Map<string, number>();
  for (const [i, rule] of rules.entries()) {
    for (const kind of ["keys", "certificates"] as const) {
      for (const [j, name] of [...rule[kind]].entries()) {
        const other = first.get(`${kind} ${name}`);
        if (other !== undefined) {
          refuse(`principals[${i}].${kind}[${j}]`, `it is principals[${other}]'s, which counts.`);
        }
        first.set(`${kind} ${name}`, i);
      }
    }
  }
}

/** What one issuer calls "ann" is not who another one calls so, by whichever claim. */
function refuseMixedIssuers(rules: readonly Rule[]): void {
  for (const [i, { name, tenant, token }] of rules.entries()) {
    if (!token || !hasTemplate(name)) continue;
    const other = rules.findIndex(
      (rule) =>
        hasTemplate(rule.name) &&
        rule.token !== undefined &&
        rule.token.issuer !== token.issuer &&
        mayBeSame(rule.name, name) &&
        mayBeSame(rule.tenant, tenant),
    );
    if (other < 0 || other > i) continue;
    refuse(
      `principals[${i}].name`,
      `principals[${other}] gives the same name to subjects of another issuer: ` +
        "put a word and a / before the template.",
    );
  }
}
