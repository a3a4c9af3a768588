import { expect, test } from "vitest";
import { parseAuthFile } from "./auth_file.js";
import { FileRefusal } from "./json_fields.js";
import { mayBeSame } from "./templates.js";

const sha256 = "ab".repeat(32);
const grants = [{ operations: ["read"], threads: ["*"] }];

/** A file that is right, which each row spoils in one place. */
const whole = () => ({
  tenants: { billing: { schema: "billing", storedBytes: "10GiB" } },
  keys: [{ id: "k1", sha256, expires: "2027-01-01T00:00:00Z" }] as unknown[],
  jwt: [
    {
      issuer: "https://idp.example.com",
      audience: "checkpointd",
      jwksUrl: "https://idp.example.com/jwks",
      algorithms: ["ES256"],
    },
  ] as Record<string, unknown>[],
  principals: [
    { name: "agents", tenant: "billing", keys: ["k1"], grants },
    {
      name: "{sub}",
      tenant: "{tenant}",
      jwt: { issuer: "https://idp.example.com", claims: { role: "agent" } },
      grants: [{ operations: ["read", "write"], threads: ["user/{sub}/*"] }],
    },
    { name: "ops", certificates: ["spiffe://prod/ops", "CN=ops"], grants },
  ] as Record<string, unknown>[],
});

type Whole = ReturnType<typeof whole>;

const parsed = (change: (file: Whole) => unknown) => {
  const file = whole();
  change(file);
  return parseAuthFile(JSON.stringify(file));
};

test("a file becomes tenants, keys, issuers and rules, with what it leaves out", () => {
  const file = parseAuthFile(JSON.stringify(whole()));
  expect(file.tenants).toEqual(
    new Map([["billing", { schema: "billing", storedBytes: 10 * 1024 ** 3 }]]),
  );
  expect(file.keys.get(sha256)).toEqual({ id: "k1", sha256, expiresAt: Date.UTC(2027, 0) });
  expect(file.issuers.get("https://idp.example.com")).toMatchObject({
    audience: ["checkpointd"],
    typ: "at+jwt",
    skewSeconds: 30,
    outageMs: 3_600_000,
  });
  expect(file.rules.map(({ name, tenant }) => [name, tenant])).toEqual([
    ["agents", "billing"],
    ["{sub}", "{tenant}"],
    ["ops", ""],
  ]);
  expect(file.rules[1]?.grants[0]).toEqual({
    operations: new Set(["read", "write"]),
    threads: [{ kind: "prefix", text: "user/{sub}/" }],
  });
  expect(file.plainNames).toEqual(new Set(["agents", "ops"]));
});

const first = (file: Whole) => file.principals[0] as Record<string, unknown>;
const second = (file: Whole) => file.principals[1] as Record<string, unknown>;
const issuer = (file: Whole) => file.jwt[0] as Record<string, unknown>;
const threads = (file: Whole, ...patterns: unknown[]) => {
  second(file).grants = [{ operations: ["read"], threads: patterns }];
};

test.each<[string, (file: Whole) => unknown, string]>([
  [
    "a field",
    (f) => Object.assign(f, { key: [] }),
    "key: there is no such field. Did you mean keys?",
  ],
  ["no principals", (f) => Object.assign(f, { principals: [] }), "principals: must be there"],
  ["a list", (f) => Object.assign(f, { keys: {} }), "keys: must be a list"],
  ["tenants", (f) => Object.assign(f, { tenants: [] }), "tenants: must be an object"],
  [
    "a tenant's name",
    (f) => Object.assign(f.tenants, { "a/b": { schema: "x" } }),
    'tenants."a/b": a tenant\'s name',
  ],
  [
    "a schema",
    (f) => Object.assign(f.tenants.billing, { schema: 'x"y' }),
    "tenants.billing.schema: the schema's name must not hold quotes",
  ],
  [
    "Postgres' schema",
    (f) => Object.assign(f.tenants.billing, { schema: "pg_x" }),
    "tenants.billing.schema: the schema pg_x belongs to Postgres",
  ],
  [
    "two of a schema",
    (f) => Object.assign(f.tenants, { other: { schema: "billing" } }),
    "tenants.other.schema: tenants.billing has the same",
  ],
  [
    "a size",
    (f) => Object.assign(f.tenants.billing, { storedBytes: "10GB" }),
    "tenants.billing.storedBytes: must be a number of bytes from 1B",
  ],
  [
    "a key in the place of its hash",
    (f) => f.keys.push({ id: "k2", sha256: "ckpd_secret" }),
    "keys[1].sha256: must be the 64 hexadecimal digits",
  ],
  [
    "an expiry that is misspelled",
    (f) => f.keys.push({ id: "k2", sha256: "0".repeat(64), expire: "2027-01-01" }),
    "keys[1].expire: there is no such field. Did you mean expires?",
  ],
  [
    "a time without a zone",
    (f) => f.keys.push({ id: "k2", sha256: "0".repeat(64), expires: "2027-01-01T00:00:00" }),
    "keys[1].expires: must be a time with its zone",
  ],
  [
    "a day that is not there",
    (f) => f.keys.push({ id: "k2", sha256: "0".repeat(64), expires: "2027-13-01T00:00:00Z" }),
    "keys[1].expires: must be a time with its zone",
  ],
  [
    "an id twice",
    (f) => f.keys.push({ id: "k1", sha256: "0".repeat(64) }),
    "keys[1].id: keys[0] has the same",
  ],
  [
    "a hash twice, in capitals",
    (f) => f.keys.push({ id: "k2", sha256: sha256.toUpperCase() }),
    "keys[1].sha256: keys[0] has the same",
  ],
  ...["HS256", "HS512", "none", "RS1", "ES256K"].map(
    (alg): [string, (file: Whole) => unknown, string] => [
      `algorithm ${alg}`,
      (f) => Object.assign(issuer(f), { algorithms: ["ES256", alg] }),
      "jwt[0].algorithms[1]: must be one of RS256,",
    ],
  ),
  [
    "no algorithms",
    (f) => Object.assign(issuer(f), { algorithms: undefined }),
    "jwt[0].algorithms: must be there",
  ],
  [
    "no audience",
    (f) => Object.assign(issuer(f), { audience: undefined }),
    "jwt[0].audience: must be a text",
  ],
  [
    "cleartext",
    (f) => Object.assign(issuer(f), { jwksUrl: "http://idp.example.com/jwks" }),
    "jwt[0].jwksUrl: must be a URL that begins with https://",
  ],
  [
    "a host that only begins as this machine's",
    (f) => Object.assign(issuer(f), { jwksUrl: "http://127.0.0.1.example.com/jwks" }),
    "jwt[0].jwksUrl: must be a URL that begins with https://",
  ],
  [
    "a file's URL",
    (f) => Object.assign(issuer(f), { jwksUrl: "file:///etc/passwd" }),
    "jwt[0].jwksUrl: must be a URL that begins with https://",
  ],
  [
    "a URL with a password",
    (f) => Object.assign(issuer(f), { jwksUrl: "https://a:b@idp.example.com/" }),
    "jwt[0].jwksUrl: must hold no password",
  ],
  [
    "keys from two places",
    (f) => Object.assign(issuer(f), { jwksFile: "x" }),
    "jwt[0]: must have a jwksUrl or a jwksFile",
  ],
  [
    "a skew of an hour",
    (f) => Object.assign(issuer(f), { skewSeconds: 3600 }),
    "jwt[0].skewSeconds: must be a whole number from 0 to 300",
  ],
  ["an issuer twice", (f) => f.jwt.push({ ...issuer(f) }), "jwt[1].issuer: jwt[0] has the same"],
  ["nobody", (f) => (first(f).keys = []), "principals[0]: must have keys, certificates or a jwt"],
  ["an unknown key", (f) => (first(f).keys = ["k2"]), "principals[0].keys[0]: keys has none"],
  [
    "an unknown tenant",
    (f) => (first(f).tenant = "bill"),
    "principals[0].tenant: tenants has none",
  ],
  ["no name", (f) => (first(f).name = ""), "principals[0].name: must be a text"],
  ["a name too long", (f) => (first(f).name = "é".repeat(200)), "principals[0].name: must have at"],
  ["a name with a bell", (f) => (first(f).name = "a\u0007"), "principals[0].name: must not hold"],
  [
    "templates for a key",
    (f) => (first(f).name = "{sub}"),
    "principals[0]: only a token has claims",
  ],
  [
    "templates for a key in threads",
    (f) => (first(f).grants = [{ operations: ["read"], threads: ["{sub}/*"] }]),
    "principals[0]: only a token has claims",
  ],
  [
    "a key twice",
    (f) => ((f.principals[2] as Record<string, unknown>).keys = ["k1"]),
    "principals[2].keys[0]: it is principals[0]'s, which counts",
  ],
  [
    "a certificate",
    (f) => ((f.principals[2] as Record<string, unknown>).certificates = ["ops"]),
    "principals[2].certificates[0]: must be a URI such as",
  ],
  [
    "an unknown issuer",
    (f) => (second(f).jwt = { issuer: "https://other" }),
    "principals[1].jwt.issuer: jwt has no such issuer",
  ],
  [
    "a claim that is an object",
    (f) => (second(f).jwt = { issuer: "https://idp.example.com", claims: { role: {} } }),
    "principals[1].jwt.claims.role: must be a text",
  ],
  ["no grants", (f) => delete second(f).grants, "principals[1].grants: must be there"],
  [
    "an operation",
    (f) => (second(f).grants = [{ operations: ["reed"], threads: ["*"] }]),
    "principals[1].grants[0].operations[0]: must be one of read, write, delete",
  ],
  [
    "a star in the middle",
    (f) => threads(f, "a/*/b"),
    "principals[1].grants[0].threads[0]: a * may",
  ],
  ["an empty pattern", (f) => threads(f, "*", ""), "principals[1].grants[0].threads[1]: must be a"],
  ["a template at the star", (f) => threads(f, "user/{sub}*"), 'put a "/" between a template and'],
  ["two templates in one part", (f) => threads(f, "{tenant}-{sub}/*"), 'put a "/" between two'],
  ["braces", (f) => threads(f, "user/{}/x"), "a template is the name of a claim in braces"],
  ["a brace", (f) => threads(f, "user/{sub/x"), "a template is the name of a claim in braces"],
  [
    "a limit",
    (f) => (second(f).limits = { call: 1 }),
    "principals[1].limits.call: there is no such field. Did you mean calls?",
  ],
  ["a limit of 0", (f) => (second(f).limits = { calls: 0 }), "principals[1].limits.calls: must be"],
  ...[
    ["{email}", "{org}"],
    ["a{sub}", "{tenant}"],
    ["{sub}", "billing"],
  ].map(([name, tenant]): [string, (file: Whole) => unknown, string] => [
    `names of two issuers that can be the same: ${name} of ${tenant}`,
    (f) => {
      f.jwt.push({ ...issuer(f), issuer: "https://other" });
      f.principals.push({ ...second(f), name, tenant, jwt: { issuer: "https://other" } });
    },
    "principals[3].name: principals[1] gives the same name to subjects of another issuer",
  ]),
  [
    "the same names of two issuers",
    (f) => {
      f.jwt.push({ ...issuer(f), issuer: "https://other" });
      f.principals.push({ ...second(f), jwt: { issuer: "https://other" } });
    },
    "principals[3].name: principals[1] gives the same name to subjects of another issuer",
  ],
])("%s is refused with the path and a sentence", (_, change, sentence) => {
  expect(() => parsed(change)).toThrow(FileRefusal);
  expect(() => parsed(change)).toThrow(sentence);
});

test("what is no JSON is refused with the place and without what stands there", () => {
  const refused = (text: string) => {
    try {
      parseAuthFile(text);
    } catch (error) {
      return (error as Error).message;
    }
    return "not refused";
  };
  expect(refused('{\n  "keys": ckpd_secret }')).toMatch(/^it is not JSON(: line 2, column 11)?\.$/);
  expect(refused("")).toMatch(/^it is not JSON/);
  expect(refused("ckpd_secret")).not.toContain("secret");
  expect(refused("[]")).toBe("it must be an object: { … }.");
});

test("no refusal repeats a value, which may be a key in the wrong place", () => {
  const key = "ckpd_MEANTTOBESECRET";
  const places: ((file: Whole) => unknown)[] = [
    (f) => f.keys.push({ id: "k2", sha256: key }),
    (f) => f.keys.push({ id: "k2", sha256: sha256.slice(2), expires: key }),
    (f) => (first(f).keys = [key]),
    (f) => (first(f).tenant = key),
    (f) => (second(f).limits = { bytesIn: key }),
    (f) => Object.assign(issuer(f), { algorithms: [key] }),
    (f) => Object.assign(issuer(f), { jwksUrl: key }),
  ];
  for (const change of places) {
    expect(() => parsed(change)).toThrow(FileRefusal);
    expect(() => parsed(change)).not.toThrow(key);
  }
});

test("names of two issuers that cannot be the same are taken", () => {
  for (const [name, tenant] of [
    ["other/{sub}", "{tenant}"],
    ["{sub}", undefined],
    ["{sub}/{sub}", "{tenant}"],
  ]) {
    const file = parsed((f) => {
      f.jwt.push({ ...issuer(f), issuer: "https://other" });
      f.principals.push({ ...second(f), name, tenant, jwt: { issuer: "https://other" } });
    });
    expect(file.rules).toHaveLength(4);
  }
  expect(mayBeSame("a-{x}", "b-{y}")).toBe(false);
  expect(mayBeSame("{x}-a", "{y}-b")).toBe(false);
  expect(mayBeSame("{x}-a", "{y}-b-a")).toBe(true);
  expect(mayBeSame("a", "a{x}")).toBe(false);
});
