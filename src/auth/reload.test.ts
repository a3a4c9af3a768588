/** What a changed auth file changes, and for whom it changes nothing. */
import { chmod, utimes } from "node:fs/promises";
import path from "node:path";
import { beforeAll, describe, expect, test } from "vitest";
import { CheckpointdError } from "../errors.js";
import {
  bearer,
  cleanAuthFolders,
  endAfterTest,
  type RunningAuth,
  startAuth,
} from "../testing/auth_folder.js";
import { createSigningKey, type SigningKey, startKeyServer } from "../testing/token_issuer.js";
import { createKey, hashKey } from "./api_keys.js";
import { startAuthenticator } from "./authenticator.js";
import type { Principal } from "./principal.js";

cleanAuthFolders();

const issuer = "https://idp.test";
const now = Date.parse("2030-01-01T00:00:00Z") / 1000;
const claims = { iss: issuer, aud: "checkpointd", sub: "ann", exp: now + 86_400 };
const [keyA, keyB] = [createKey(), createKey()];

let es256: SigningKey;
beforeAll(async () => {
  es256 = await createSigningKey("ES256", "k");
});

const file = () => ({
  tenants: { one: { schema: "one" }, two: { schema: "two" } } as Record<string, unknown>,
  keys: [
    { id: "a", sha256: hashKey(keyA) },
    { id: "b", sha256: hashKey(keyB), expires: "2030-06-01T00:00:00Z" },
  ],
  jwt: [
    { issuer, audience: "checkpointd", algorithms: ["ES256"], jwksFile: "keys.json" },
  ] as Record<string, unknown>[],
  principals: [
    { name: "a", tenant: "one", keys: ["a"], grants: grantsOf("read") },
    { name: "b", tenant: "two", keys: ["b"], grants: grantsOf("read", "write") },
    { name: "{sub}", jwt: { issuer }, grants: grantsOf("read") },
  ] as Record<string, unknown>[],
});

function grantsOf(...operations: string[]) {
  return [{ operations, threads: ["*"] }];
}

const start = (content: unknown = file()) =>
  startAuth(content, { "keys.json": { keys: [es256.jwk] } });

/** Those of both keys and of a token. */
async function takeAll(auth: RunningAuth) {
  const token = await es256.sign(claims);
  const take = async (credential: string) =>
    (await auth.authenticate(bearer(credential), undefined)) as Principal;
  return { a: await take(keyA), b: await take(keyB), token: await take(token), text: token };
}

const reasonOf = ({ ends }: Principal) => {
  if (!ends.aborted) return undefined;
  expect(ends.reason).toBeInstanceOf(CheckpointdError);
  expect(ends.reason.code).toBe("unauthenticated");
  return ends.reason.detail.reason;
};

type File = ReturnType<typeof file>;
const rule = (content: File, i: number) => content.principals[i] as Record<string, unknown>;

describe("a reload", () => {
  test.each<[string, (content: File) => unknown]>([
    ["nothing", () => {}],
    ["the order of what does not meet", (f) => f.principals.reverse()],
    ["the order of keys", (f) => f.keys.reverse()],
    [
      "a key's new name",
      (f) => [
        Object.assign(f.keys[0] as object, { id: "z" }),
        Object.assign(rule(f, 0), { keys: ["z"] }),
      ],
    ],
    ["a tenant that nobody is of", (f) => Object.assign(f.tenants, { x: { schema: "x" } })],
    ["what a tenant may store", (f) => Object.assign(f.tenants.one as object, { storedBytes: 5 })],
    ["another key", (f) => f.keys.push({ id: "c", sha256: hashKey(createKey()) })],
    [
      "another principal",
      (f) => f.principals.push({ ...rule(f, 0), name: "c", keys: [], certificates: ["CN=c"] }),
    ],
    [
      "the patience with an outage",
      (f) => Object.assign(f.jwt[0] as object, { outageMinutes: 10 }),
    ],
    ["the order of operations", (f) => (rule(f, 1).grants = grantsOf("write", "read"))],
  ])("of %s leaves everybody who they are", async (_, change) => {
    const auth = await start();
    const before = await takeAll(auth);
    const content = file();
    change(content);
    await auth.reload(content);
    expect(auth.captured.lines({ msg: "auth file reloaded", ended: 0 })).toHaveLength(1);
    expect(auth.authenticate(bearer(keyA), undefined)).toBe(before.a);
    expect(auth.authenticate(bearer(keyB), undefined)).toBe(before.b);
    expect(auth.authenticate(bearer(before.text), undefined)).toBe(before.token);
    for (const each of [before.a, before.b, before.token]) expect(reasonOf(each)).toBeUndefined();
  });

  test.each<[string, (content: File) => unknown, Partial<Principal> | undefined]>([
    ["a key that went", (f) => [f.keys.shift(), f.principals.shift()], undefined],
    ["a principal that went", (f) => f.principals.shift(), undefined],
    [
      "a key that is not the principal's any more",
      (f) => Object.assign(rule(f, 0), { keys: [], certificates: ["CN=a"] }),
      undefined,
    ],
    [
      "another hash under its name",
      (f) => ((f.keys[0] as { sha256: string }).sha256 = "0".repeat(64)),
      undefined,
    ],
    ["another name", (f) => (rule(f, 0).name = "aa"), { name: "aa" }],
    ["another tenant", (f) => (rule(f, 0).tenant = "two"), { tenant: "two" }],
    ["another schema of its tenant", (f) => (f.tenants.one = { schema: "uno" }), { tenant: "one" }],
    ["other operations", (f) => (rule(f, 0).grants = grantsOf("read", "delete")), { name: "a" }],
    [
      "other threads",
      (f) => (rule(f, 0).grants = [{ operations: ["read"], threads: ["x"] }]),
      { name: "a" },
    ],
    ["other limits", (f) => (rule(f, 0).limits = { calls: 5 }), { limits: { calls: 5 } }],
    [
      "an expiry",
      (f) => Object.assign(f.keys[0] as object, { expires: "2031-01-01T00:00:00Z" }),
      { expiresAt: Date.UTC(2031, 0) },
    ],
  ])("of %s ends the one whose it is, and no other", async (_, change, afterwards) => {
    const auth = await start();
    const before = await takeAll(auth);
    const content = file();
    change(content);
    await auth.reload(content);
    expect(reasonOf(before.a)).toBe("CREDENTIAL_CHANGED");
    expect(before.a.ends.reason.message).toContain("authenticate again");
    expect(auth.captured.lines({ msg: "auth file reloaded", ended: 1 })).toHaveLength(1);
    expect(reasonOf(before.b)).toBeUndefined();
    expect(auth.authenticate(bearer(keyB), undefined)).toBe(before.b);
    expect(auth.authenticate(bearer(before.text), undefined)).toBe(before.token);
    const again = () => auth.authenticate(bearer(keyA), undefined);
    if (!afterwards) expect(again).toThrow("not accepted");
    else expect(again()).toMatchObject({ ...afterwards, ends: { aborted: false } });
  });

  test.each<[string, (content: File) => unknown, string | undefined]>([
    ["an issuer that went", (f) => [f.jwt.pop(), f.principals.pop()], undefined],
    [
      "another audience",
      (f) => Object.assign(f.jwt[0] as object, { audience: "other" }),
      undefined,
    ],
    ["another typ", (f) => Object.assign(f.jwt[0] as object, { typ: "JWT" }), undefined],
    [
      "claims that are wanted",
      (f) => (rule(f, 2).jwt = { issuer, claims: { role: "x" } }),
      undefined,
    ],
    [
      "more audiences",
      (f) => Object.assign(f.jwt[0] as object, { audience: ["checkpointd", "x"] }),
      "ann",
    ],
    ["other grants", (f) => (rule(f, 2).grants = grantsOf("write")), "ann"],
    [
      "a principal that comes first",
      (f) => f.principals.unshift({ ...rule(f, 2), name: "first" }),
      "first",
    ],
  ])("of %s ends tokens, and no key", async (_, change, name) => {
    const auth = await start();
    const before = await takeAll(auth);
    const content = file();
    change(content);
    await auth.reload(content);
    expect(reasonOf(before.token)).toBe("CREDENTIAL_CHANGED");
    for (const each of [before.a, before.b]) expect(reasonOf(each)).toBeUndefined();
    const again = async () => await auth.authenticate(bearer(before.text), undefined);
    if (name === undefined) await expect(again()).rejects.toThrow("not accepted");
    else expect(await again()).toMatchObject({ name, ends: { aborted: false } });
  });

  test("of a file of keys ends the tokens of those that went", async () => {
    const auth = await start();
    const before = await takeAll(auth);
    const next = await createSigningKey("ES256", "k2");
    await auth.write("keys.json", { keys: [es256.jwk, next.jwk] });
    await auth.reload({ ...file(), keys: [...file().keys] });
    expect(auth.authenticate(bearer(before.text), undefined)).toBe(before.token);
    await auth.write("keys.json", { keys: [next.jwk] });
    await expect
      .poll(() => {
        auth.clock.advance(2_000);
        return before.token.ends.aborted;
      })
      .toBe(true);
    expect(reasonOf(before.a)).toBeUndefined();
    const token = await next.sign(claims);
    expect(await auth.authenticate(bearer(token), undefined)).toMatchObject({ name: "ann" });
  });

  test.each<[string, unknown, string]>([
    ["is no JSON", '{ "keys": [', "auth.json: it is not JSON"],
    [
      "is wrong",
      { ...file(), keys: [{ id: "a", sha256: "x" }] },
      "auth.json: keys[0].sha256: must",
    ],
    [
      "names a file that is not there",
      { ...file(), jwt: [{ ...file().jwt[0], jwksFile: "none.json" }] },
      "none.json: it cannot be read (ENOENT).",
    ],
    [
      "names a file without keys",
      { ...file(), jwt: [{ ...file().jwt[0], jwksFile: "auth.json" }] },
      "auth.json: keys: there is no public key",
    ],
  ])("of a file that %s changes nothing, and is told once", async (_, content, sentence) => {
    await expect(start(content)).rejects.toThrow(sentence);

    const auth = await start();
    const before = await takeAll(auth);
    await auth.reload(content);
    auth.clock.advance(10_000);
    const [line, ...more] = auth.captured.lines({ level: 50 });
    expect(line).toMatchObject({
      msg: "auth file refused: the one before stays in force",
      error: expect.stringContaining(sentence),
    });
    expect(more).toEqual([]);
    expect(auth.authenticate(bearer(keyA), undefined)).toBe(before.a);
    expect(reasonOf(before.token)).toBeUndefined();
    expect(auth.tenants.get("one")).toEqual({ schema: "one" });
    // And the next one that is right is in force.
    const content2 = file();
    content2.tenants.one = { schema: "uno" };
    await auth.reload(content2);
    expect(auth.tenants.get("one")).toEqual({ schema: "uno" });
    expect(reasonOf(before.a)).toBe("CREDENTIAL_CHANGED");
  });

  test("comes with SIGHUP too, whether the file looks changed or not", async () => {
    const auth = await start();
    const before = await takeAll(auth);
    process.emit("SIGHUP");
    await expect.poll(() => auth.captured.lines({ msg: "auth file reloaded" })).toHaveLength(1);
    expect(auth.authenticate(bearer(keyA), undefined)).toBe(before.a);
    auth.stop();
    expect(process.listenerCount("SIGHUP")).toBe(0);
    expect(auth.clock.waiting).toBe(0);
  });

  test("is seen by the time of the file alone", async () => {
    const auth = await start();
    await utimes(path.join(auth.folder, "auth.json"), 5, 5);
    await expect
      .poll(() => {
        auth.clock.advance(2_000);
        return auth.captured.lines({ msg: "auth file reloaded" }).length;
      })
      .toBe(1);
  });
});

test("a token that is verified while its issuer's keys move is verified by the new ones", async () => {
  const [first, second] = [await startKeyServer(() => {}), await startKeyServer([es256])];
  endAfterTest(() => first.stop());
  endAfterTest(() => second.stop());
  const at = (jwksUrl: string) => {
    const { jwksFile, ...entry } = file().jwt[0] as Record<string, unknown>;
    expect(jwksFile).toBe("keys.json");
    return { ...file(), jwt: [{ ...entry, jwksUrl }] };
  };
  const auth = await startAuth(at(first.url));
  const waits = auth.authenticate(bearer(await es256.sign(claims)), undefined);
  await expect.poll(() => first.asked).toBe(1);
  await auth.reload(at(second.url));
  expect(await waits).toMatchObject({ name: "ann", ends: { aborted: false } });
  expect(first.asked).toBe(1);
});

test("keys: several are active, and which one is known by its hash only", async () => {
  const content = file();
  content.principals[0] = { name: "a", keys: ["a", "b"], grants: grantsOf("read") };
  content.principals.splice(1, 1);
  const auth = await start(content);
  expect(auth.authenticate(bearer(keyA), undefined)).toMatchObject({ name: "a" });
  expect(auth.authenticate(bearer(keyB), undefined)).toMatchObject({ name: "a" });
  expect(auth.authenticate({ authorization: `bearer  ${keyA}` }, undefined)).toMatchObject({
    name: "a",
  });
  const wrong = [
    createKey(),
    `${keyA.slice(0, -1)}_`,
    keyA.slice(0, -1),
    `${keyA}x`,
    "ckpd_",
    hashKey(keyA),
  ];
  for (const key of wrong) {
    expect(() => auth.authenticate(bearer(key), undefined), key).toThrow("not accepted");
  }
  const why = auth.captured.lines({ msg: "credential refused" }).map(({ reason }) => reason);
  expect(why).toEqual(["unknown key", "checksum", "checksum", "checksum", "checksum", "issuer"]);
  for (const key of [keyA, keyB, ...wrong]) {
    if (key !== "ckpd_") expect(auth.captured.text()).not.toContain(key);
  }
});

test("a key that has ended is told to have, and who had it", async () => {
  const auth = await start();
  const { b } = await takeAll(auth);
  auth.clock.advance(Date.UTC(2030, 5) - auth.clock.now() - 1);
  expect(auth.authenticate(bearer(keyB), undefined)).toBe(b);
  auth.clock.advance(1);
  expect(reasonOf(b)).toBe("CREDENTIAL_EXPIRED");
  expect(() => auth.authenticate(bearer(keyB), undefined)).toThrow("has expired");
  expect(auth.captured.lines({ msg: "credential refused" })).toMatchObject([
    { reason: "expired", principal: "b" },
  ]);
  // And is so after a reload and a new start as well.
  await auth.reload(file());
  expect(() => auth.authenticate(bearer(keyB), undefined)).toThrow("has expired");
});

test("a file that every user of the machine can write to is refused, the keys' too", async () => {
  const auth = await start();
  const { a } = await takeAll(auth);
  for (const name of ["auth.json", "keys.json"]) {
    const where = path.join(auth.folder, name);
    await chmod(where, 0o666);
    await expect(
      startAuthenticator({ file: path.join(auth.folder, "auth.json"), log: auth.captured.log }),
    ).rejects.toThrow(
      `${where}: all users of this machine can write to it: take the right from them (chmod o-w).`,
    );
    await chmod(where, 0o664);
  }
  // What somebody changes through it while it runs does not come into force.
  await chmod(path.join(auth.folder, "auth.json"), 0o666);
  await utimes(path.join(auth.folder, "auth.json"), 1, 1);
  await expect
    .poll(() => {
      auth.clock.advance(2_000);
      return auth.captured.text();
    })
    .toContain("auth file refused");
  expect(a.ends.aborted).toBe(false);
});
