/** Tokens, signed as issuers sign them and as those do who would like to be one. */
import { createHmac, createPublicKey, type JsonWebKey, KeyObject, sign } from "node:crypto";
import { exportSPKI, type JWK } from "jose";
import { beforeAll, describe, expect, test } from "vitest";
import { CheckpointdError } from "../errors.js";
import { bearer, cleanAuthFolders, type RunningAuth, startAuth } from "../testing/auth_folder.js";
import { createSigningKey, type SigningKey } from "../testing/token_issuer.js";
import type { Principal } from "./principal.js";

cleanAuthFolders();

const issuer = "https://idp.test";
const grants = [{ operations: ["read"], threads: ["user/{sub}/*"] }];
/** The time of the manual clock, in seconds. */
const now = Date.parse("2030-01-01T00:00:00Z") / 1000;
const claims = { iss: issuer, aud: "checkpointd", sub: "ann", exp: now + 600 };

let keys: Record<string, SigningKey>;
beforeAll(async () => {
  const made = ["RS256", "PS256", "ES256", "EdDSA"].map((alg) => createSigningKey(alg, alg));
  keys = Object.fromEntries((await Promise.all(made)).map((key) => [key.alg, key]));
});
const key = (alg: string) => keys[alg] as SigningKey;

const start = (
  more: Record<string, unknown> = {},
  principals: unknown = [{ name: "{sub}", jwt: { issuer }, grants }],
  jwks: readonly JWK[] = Object.values(keys).map(({ jwk }) => jwk),
) => {
  const algorithms = ["RS256", "PS256", "ES256", "EdDSA"];
  const entry = { issuer, audience: "checkpointd", algorithms, jwksFile: "keys.json", ...more };
  return startAuth({ jwt: [entry], principals }, { "keys.json": { keys: jwks } });
};

/** Resolves how it was refused; what the client is told holds nothing of the token. */
async function refused(auth: RunningAuth, token: string): Promise<string> {
  try {
    const principal = await auth.authenticate(bearer(token), undefined);
    return `taken as ${principal.name}`;
  } catch (error) {
    expect(error).toBeInstanceOf(CheckpointdError);
    const { code, message, detail } = error as CheckpointdError;
    expect(code).toBe("unauthenticated");
    expect([
      "the credential is not accepted",
      "the credential has expired; get a new one",
    ]).toContain(message);
    const why = auth.captured.lines({ msg: "credential refused" }).at(-1)?.reason;
    return `${detail?.reason} ${why}`;
  }
}

const base64url = (value: unknown) => Buffer.from(JSON.stringify(value)).toString("base64url");

test.each(["RS256", "PS256", "ES256", "EdDSA"])("a token of %s is who it says", async (alg) => {
  const auth = await start();
  const principal = await auth.authenticate(bearer(await key(alg).sign(claims)), undefined);
  expect(principal).toMatchObject({
    name: "ann",
    tenant: "",
    grants: [{ threads: [{ kind: "prefix", text: "user/ann/" }] }],
    // 30 s are the skew that clocks may have.
    expiresAt: (now + 630) * 1000,
  });
});

test("a token that was seen is the same principal at once, another one of its subject is not", async () => {
  const auth = await start();
  const token = await key("ES256").sign(claims);
  const both = [
    auth.authenticate(bearer(token), undefined),
    auth.authenticate(bearer(token), undefined),
  ];
  const [one, other] = (await Promise.all(both)) as [Principal, Principal];
  expect(other).toBe(one);
  expect(auth.authenticate(bearer(token), undefined)).toBe(one);
  const renewed = await key("ES256").sign({ ...claims, exp: now + 700 });
  expect(await auth.authenticate(bearer(renewed), undefined)).not.toBe(one);
});

describe("a token is refused", () => {
  test("that is signed by HMAC with the public key, in each form of it", async () => {
    const auth = await start();
    const { jwk } = key("RS256");
    const publicKey = createPublicKey({ key: jwk as JsonWebKey, format: "jwk" });
    const secrets = [
      publicKey.export({ type: "spki", format: "pem" }),
      publicKey.export({ type: "spki", format: "der" }),
      publicKey.export({ type: "pkcs1", format: "pem" }),
      JSON.stringify(jwk),
      jwk.n as string,
      await exportSPKI(publicKey),
    ];
    for (const secret of secrets) {
      for (const header of [
        { alg: "HS256", kid: "RS256", typ: "at+jwt" },
        { alg: "HS256", typ: "at+jwt", jwk },
      ]) {
        const signed = `${base64url(header)}.${base64url(claims)}`;
        const mac = createHmac("sha256", secret).update(signed).digest("base64url");
        const told = await refused(auth, `${signed}.${mac}`);
        expect(told).toBe("CREDENTIAL_INVALID ERR_JOSE_ALG_NOT_ALLOWED");
      }
    }
  });

  test("without a signature", async () => {
    const auth = await start();
    const signed = (await key("RS256").sign(claims)).split(".")[2];
    for (const alg of ["none", "None", "NONE", "", undefined]) {
      for (const signature of ["", signed, "AAAA"]) {
        const header = { alg, kid: "RS256", typ: "at+jwt" };
        const token = `${base64url(header)}.${base64url(claims)}.${signature}`;
        expect(await refused(auth, token)).toMatch(/^CREDENTIAL_INVALID /);
      }
    }
  });

  test("that brings its own key", async () => {
    const auth = await start();
    const own = await createSigningKey("ES256", "ES256");
    const jku = "http://127.0.0.1:1/jwks";
    for (const header of [{}, { jwk: own.jwk }, { jku }, { x5u: jku }]) {
      const token = await own.sign(claims, header);
      expect(await refused(auth, token)).toMatch(/SIGNATURE_VERIFICATION_FAILED$/);
    }
  });

  test("of an algorithm that its issuer does not use, or its key cannot", async () => {
    const only = await start({ algorithms: ["ES256"] });
    expect(await refused(only, await key("RS256").sign(claims))).toMatch(/ALG_NOT_ALLOWED$/);
    const auth = await start();
    // RS256's key says that it is for RS256.
    expect(await refused(auth, await key("PS256").sign(claims, { kid: "RS256" }))).toMatch(/ key$/);
    expect(await refused(auth, await key("ES256").sign(claims, { kid: "EdDSA" }))).toMatch(/ key$/);
  });

  test.each<[string, Record<string, unknown>, Record<string, unknown>, string]>([
    ["of another kid", {}, { kid: "other" }, "CREDENTIAL_INVALID kid"],
    ["with a kid of another type", {}, { kid: 7 }, "CREDENTIAL_INVALID "],
    ["without kid, where several keys could be it", {}, { kid: undefined }, "two keys"],
    ["of another typ", {}, { typ: "JWT" }, "CREDENTIAL_INVALID claim typ"],
    ["without typ", {}, { typ: undefined }, "CREDENTIAL_INVALID claim typ"],
    ["for others", { aud: "other" }, {}, "CREDENTIAL_INVALID claim aud"],
    ["for others, several", { aud: ["other", "checkpointd2"] }, {}, "CREDENTIAL_INVALID claim aud"],
    ["for nobody", { aud: undefined }, {}, "CREDENTIAL_INVALID claim aud"],
    ["of another issuer", { iss: "https://idp.test/" }, {}, "CREDENTIAL_INVALID issuer"],
    ["of an issuer that is a list", { iss: [issuer] }, {}, "CREDENTIAL_INVALID issuer"],
    ["of no issuer", { iss: undefined }, {}, "CREDENTIAL_INVALID issuer"],
    ["that has ended", { exp: now - 30 }, {}, "CREDENTIAL_EXPIRED expired"],
    ["that never ends", { exp: undefined }, {}, "CREDENTIAL_INVALID claim exp"],
    ["that ends at a text", { exp: `${now + 600}` }, {}, "CREDENTIAL_INVALID "],
    ["that has not begun", { nbf: now + 31 }, {}, "CREDENTIAL_INVALID claim nbf"],
    ["with what has to be understood", {}, { crit: ["x"], x: 1 }, "CREDENTIAL_INVALID "],
  ])("%s", async (_, claim, header, expected) => {
    const auth = await start();
    const es256 = key("ES256");
    if (expected === "two keys") {
      const twin = await createSigningKey("ES256", "twin");
      const both = await start({}, undefined, [es256.jwk, twin.jwk]);
      const token = await es256.sign(claims, { kid: undefined });
      expect(await refused(both, token)).toBe("CREDENTIAL_INVALID key");
      // One that can be it is enough.
      expect(await refused(auth, token)).toBe("taken as ann");
      return;
    }
    const token =
      "crit" in header
        ? `${base64url({ alg: "ES256", kid: "ES256", typ: "at+jwt", ...header })}.${base64url(claims)}.AAAA`
        : await es256.sign({ ...claims, ...claim }, header);
    expect(await refused(auth, token)).toContain(expected);
  });

  test("that never ends in JSON's way", async () => {
    const auth = await start();
    const { alg, kid } = key("EdDSA");
    const payload = JSON.stringify(claims).replace(`${claims.exp}`, "1e999");
    const signed = `${base64url({ alg, kid, typ: "at+jwt" })}.${Buffer.from(payload).toString("base64url")}`;
    const signature = sign(null, Buffer.from(signed), KeyObject.from(key("EdDSA").privateKey));
    const token = `${signed}.${signature.toString("base64url")}`;
    expect(await refused(auth, token)).toBe("CREDENTIAL_INVALID claim exp");
  });

  test("at the edges of the skew, and not before them", async () => {
    const auth = await start({ skewSeconds: 10 });
    const es256 = key("ES256");
    expect(await refused(auth, await es256.sign({ ...claims, exp: now - 9 }))).toBe("taken as ann");
    expect(await refused(auth, await es256.sign({ ...claims, exp: now - 10 }))).toMatch(/EXPIRED/);
    expect(await refused(auth, await es256.sign({ ...claims, nbf: now + 10 }))).toBe(
      "taken as ann",
    );
    expect(await refused(auth, await es256.sign({ ...claims, nbf: now + 11 }))).toMatch(/nbf/);
    const strict = await start({ skewSeconds: 0 });
    expect(await refused(strict, await es256.sign({ ...claims, exp: now + 1 }))).toBe(
      "taken as ann",
    );
    expect(await refused(strict, await es256.sign({ ...claims, exp: now }))).toMatch(/EXPIRED/);
  });

  test("that is none, or of more than 8 KiB, at once", async () => {
    const auth = await start();
    const long = await key("ES256").sign({ ...claims, more: "x".repeat(6200) });
    expect(long.length).toBeGreaterThan(8192);
    expect(() => auth.authenticate(bearer(long), undefined)).toThrow("not accepted");
    expect(auth.captured.lines().at(-1)).toMatchObject({ reason: "too long" });
    const fits = await key("ES256").sign({ ...claims, more: "x".repeat(5900) });
    expect(await refused(auth, fits)).toBe("taken as ann");
    for (const token of ["x", "a.b.c", "...", "a.b.c.d.e", `${base64url({})}.${base64url([])}.`]) {
      expect(() => auth.authenticate(bearer(token), undefined), token).toThrow("not accepted");
    }
    for (const authorization of [
      "",
      "Bearer",
      "Bearer ",
      "Basic YTpi",
      "Bearer a, Bearer b",
      "a",
    ]) {
      expect(() => auth.authenticate({ authorization }, undefined)).toThrow("not accepted");
    }
    const several = ["Bearer a", "Bearer b"] as unknown as string;
    expect(() => auth.authenticate({ authorization: several }, undefined)).toThrow("not accepted");
    expect(() => auth.authenticate({}, undefined)).toThrow("send authorization: Bearer");
  });
});

test("what is not looked at may be missing: typ null, as Kubernetes' tokens have none", async () => {
  const auth = await start({ typ: null });
  expect(await refused(auth, await key("ES256").sign(claims, { typ: undefined }))).toBe(
    "taken as ann",
  );
  const jwt = await start({ typ: "JWT" });
  expect(await refused(jwt, await key("ES256").sign(claims, { typ: "jwt" }))).toBe("taken as ann");
  expect(await refused(jwt, await key("ES256").sign(claims))).toContain("claim typ");
});

describe("templates", () => {
  const principals = [
    {
      name: "ops",
      jwt: { issuer, claims: { role: "ops" } },
      grants: [{ operations: ["admin"], threads: ["*"] }],
    },
    {
      name: "{sub}",
      tenant: "{tenant}",
      jwt: { issuer },
      grants: [{ operations: ["read"], threads: ["user/{sub}/*", "note/{https://x/id}"] }],
    },
  ];
  const startTenants = async () => {
    const entry = { issuer, audience: "checkpointd", algorithms: ["ES256"], jwksFile: "keys.json" };
    const tenants = { acme: { schema: "acme" }, constructor: { schema: "c" } };
    const file = { tenants, jwt: [entry], principals };
    return startAuth(file, { "keys.json": { keys: [key("ES256").jwk] } });
  };
  const whole = { ...claims, tenant: "acme", "https://x/id": "n1" };

  test("are filled in, in the name, the tenant and the threads", async () => {
    const auth = await startTenants();
    const token = await key("ES256").sign({ ...whole, sub: "{tenant}:ann.b@c é" });
    expect(await auth.authenticate(bearer(token), undefined)).toMatchObject({
      name: "{tenant}:ann.b@c é",
      tenant: "acme",
      grants: [
        {
          threads: [
            { kind: "prefix", text: "user/{tenant}:ann.b@c é/" },
            { kind: "exact", text: "note/n1" },
          ],
        },
      ],
    });
  });

  test.each<[string, unknown]>([
    ["a star", "ann*"],
    ["a star alone", "*"],
    ["a slash and a star", "a/*"],
    ["a way up", "../"],
    ["a slash", "ann/private"],
    ["nothing", ""],
    ["a NUL", "ann\0"],
    ["a line end", "ann\nops"],
    ["an escape", "\u001b[2Jann"],
    ["a turn of the writing direction", "\u202eann"],
    ["half a character", "\ud800"],
    ["too much", "a".repeat(257)],
    ["too much in bytes", "é".repeat(129)],
    ["a number", 7],
    ["a list", ["ann"]],
    ["an object", { toString: "ann" }],
    ["null", null],
    ["no claim", undefined],
    ["the name of another principal", "ops"],
  ])("do not match a sub that is %s", async (_, sub) => {
    const auth = await startTenants();
    const token = await key("ES256").sign({ ...whole, sub });
    expect(await refused(auth, token)).toBe("CREDENTIAL_INVALID no principal");
  });

  test.each<[string, unknown]>([
    ["is not in the file", "other"],
    ["is empty", ""],
    ["is of every object", "__proto__"],
    ["is missing", undefined],
  ])("do not match a tenant that %s", async (_, tenant) => {
    const auth = await startTenants();
    const token = await key("ES256").sign({ ...whole, tenant });
    expect(await refused(auth, token)).toBe("CREDENTIAL_INVALID no principal");
  });

  test("are filled by own claims only", async () => {
    const named = [
      {
        name: "{constructor}",
        jwt: { issuer },
        grants: [{ operations: ["read"], threads: ["*"] }],
      },
    ];
    const auth = await start({}, named);
    expect(await refused(auth, await key("ES256").sign(claims))).toMatch(/no principal$/);
    const wants = [
      {
        name: "a",
        jwt: { issuer, claims: { toString: true } },
        grants: [{ operations: ["read"], threads: ["*"] }],
      },
    ];
    const other = await start({}, wants);
    expect(await refused(other, await key("ES256").sign(claims))).toMatch(/no principal$/);
  });
});

test("the first principal whose claims the token has counts", async () => {
  const rule = (name: string, wanted: Record<string, unknown>) => ({
    name,
    jwt: { issuer, claims: wanted },
    grants: [{ operations: ["read"], threads: ["*"] }],
  });
  const auth = await start({}, [
    rule("both", { role: "agent", level: 3 }),
    rule("agent", { role: "agent" }),
    rule("verified", { email_verified: true }),
    rule("scoped", { scope: "threads.read" }),
    rule("rest", {}),
  ]);
  const nameOf = async (more: Record<string, unknown>) =>
    refused(auth, await key("ES256").sign({ ...claims, ...more }));
  expect(await nameOf({ role: "agent", level: 3 })).toBe("taken as both");
  expect(await nameOf({ role: "agent", level: "3" })).toBe("taken as agent");
  expect(await nameOf({ role: ["x", "agent"] })).toBe("taken as agent");
  expect(await nameOf({ role: "x agent" })).toBe("taken as rest");
  expect(await nameOf({ email_verified: true })).toBe("taken as verified");
  expect(await nameOf({ email_verified: "true" })).toBe("taken as rest");
  expect(await nameOf({ scope: "openid threads.read" })).toBe("taken as scoped");
  expect(await nameOf({ scope: "threads.readers" })).toBe("taken as rest");
});

test("no line of the log and no error holds a token or a claim", async () => {
  const auth = await start();
  const secret = "SECRETCLAIM";
  const changes: Record<string, unknown>[] = [
    { aud: secret },
    { iss: secret },
    { sub: `${secret}/` },
    { exp: secret },
    { nbf: now + 999, jti: secret },
    { exp: now - 999, jti: secret },
  ];
  for (const change of changes) {
    const token = await key("ES256").sign({ ...claims, ...change });
    for (const sent of [token, `${token.slice(0, -6)}AAAAAA`]) {
      await refused(auth, sent);
      expect(auth.captured.text()).not.toContain(sent.slice(0, 40));
    }
  }
  expect(auth.captured.lines()).toHaveLength(12);
  expect(auth.captured.text()).not.toContain(secret);
});
