/** Keys that are fetched: rotation, outages, and servers that answer as they should not. */

import { writeFile } from "node:fs/promises";
import type { RequestListener } from "node:http";
import { createServer } from "node:https";
import type { AddressInfo } from "node:net";
import path from "node:path";
import { gzipSync } from "node:zlib";
import { exportJWK } from "jose";
import { beforeAll, describe, expect, test } from "vitest";
import type { CheckpointdError } from "../errors.js";
import {
  bearer,
  cleanAuthFolders,
  endAfterTest,
  type RunningAuth,
  startAuth,
} from "../testing/auth_folder.js";
import { createCertificate } from "../testing/certificate.js";
import { startScript } from "../testing/child.js";
import { createSigningKey, type SigningKey, startKeyServer } from "../testing/token_issuer.js";
import type { Principal } from "./principal.js";

cleanAuthFolders();

const issuer = "https://idp.test";
const now = Date.parse("2030-01-01T00:00:00Z") / 1000;
const claims = { iss: issuer, aud: "checkpointd", sub: "ann", exp: now + 86_400 };
const minute = 60_000;

let old: SigningKey;
let next: SigningKey;
beforeAll(async () => {
  old = await createSigningKey("ES256", "old");
  next = await createSigningKey("ES256", "next");
});

const authFile = (jwksUrl: string, more: Record<string, unknown> = {}) => ({
  jwt: [{ issuer, audience: "checkpointd", algorithms: ["ES256"], jwksUrl, ...more }],
  principals: [
    {
      name: "{sub}",
      jwt: { issuer },
      grants: [{ operations: ["read"], threads: ["user/{sub}/*"] }],
    },
  ],
});

async function start(answer: readonly SigningKey[] | RequestListener, more = {}, options = {}) {
  const server = await startKeyServer(answer);
  endAfterTest(() => server.stop());
  const auth = await startAuth(authFile(server.url, more), {}, options);
  return { server, auth };
}

const take = async (auth: RunningAuth, token: string): Promise<Principal> =>
  auth.authenticate(bearer(token), undefined);

/** Why a token is refused, as the log has it. */
async function refusal(auth: RunningAuth, token: string): Promise<unknown> {
  const principal = await take(auth, token).catch((error: CheckpointdError) => {
    expect(error.code).toBe("unauthenticated");
    return undefined;
  });
  if (principal) return `taken as ${principal.name}`;
  return auth.captured.lines({ msg: "credential refused" }).at(-1)?.reason;
}

const failures = (auth: RunningAuth) =>
  auth.captured.lines({ msg: "keys of tokens could not be fetched" });

describe("keys that are fetched", () => {
  test("are waited for by the tokens that come before them, in one fetch", async () => {
    let release = () => {};
    const { server, auth } = await start((_, response) => {
      release = () => void response.end(JSON.stringify({ keys: [old.jwk] }));
    });
    const tokens = await Promise.all(["ann", "bob"].map((sub) => old.sign({ ...claims, sub })));
    const taken = Promise.all(tokens.map((token) => take(auth, token)));
    await expect.poll(() => server.asked).toBe(1);
    release();
    expect((await taken).map(({ name }) => name)).toEqual(["ann", "bob"]);
    expect(server.asked).toBe(1);
  });

  test("are fetched anew for a kid that is not there, 30 s after the last time at the soonest", async () => {
    const { server, auth } = await start([old]);
    expect(await refusal(auth, await old.sign(claims))).toBe("taken as ann");
    server.answer = [old, next];
    const token = await next.sign(claims);
    expect(await refusal(auth, token)).toBe("kid");
    auth.clock.advance(29_999);
    expect(await refusal(auth, token)).toBe("kid");
    expect(server.asked).toBe(1);
    auth.clock.advance(1);
    expect(await refusal(auth, token)).toBe("taken as ann");
    expect(server.asked).toBe(2);
  });

  test("are not fetched more often for many kids that nobody has", async () => {
    const { server, auth } = await start([old]);
    const tokens = await Promise.all(
      Array.from({ length: 50 }, (_, i) => old.sign(claims, { kid: `none-${i}` })),
    );
    for (const asked of [1, 1, 2, 2, 3]) {
      const refused = await Promise.all(tokens.map((token) => refusal(auth, token)));
      expect(new Set(refused)).toEqual(new Set(["kid"]));
      expect(server.asked).toBe(asked);
      auth.clock.advance(15_000);
    }
  });

  test("are fetched every 5 minutes: one that was withdrawn takes its tokens with it", async () => {
    const { server, auth } = await start([old, next]);
    const withdrawn = await old.sign(claims);
    const [ended, kept] = [await take(auth, withdrawn), await take(auth, await next.sign(claims))];
    server.answer = [next];
    auth.clock.advance(5 * minute - 1);
    expect(server.asked).toBe(1);
    auth.clock.advance(1);
    await expect.poll(() => ended.ends.aborted).toBe(true);
    expect(ended.ends.reason).toMatchObject({
      code: "unauthenticated",
      detail: { reason: "CREDENTIAL_CHANGED" },
    });
    expect(kept.ends.aborted).toBe(false);
    expect(await refusal(auth, withdrawn)).toBe("kid");
    expect(server.asked).toBe(2);
  });

  test("of the same kid are told apart", async () => {
    const { server, auth } = await start([old]);
    const before = await take(auth, await old.sign(claims));
    const same = await createSigningKey("ES256", "old");
    server.answer = [same];
    auth.clock.advance(5 * minute);
    await expect.poll(() => before.ends.aborted).toBe(true);
    expect(await refusal(auth, await old.sign(claims))).toMatch(/SIGNATURE_VERIFICATION_FAILED$/);
    expect(await refusal(auth, await same.sign(claims))).toBe("taken as ann");
  });
});

describe("an issuer that cannot be reached", () => {
  const broken: RequestListener = (_, response) => void response.writeHead(503).end("SECRET");

  test("is done without for outageMinutes, and then nobody is taken, until it is back", async () => {
    const { server, auth } = await start([old], { outageMinutes: 60 });
    const seen = await old.sign(claims);
    const principal = await take(auth, seen);
    server.answer = broken;
    auth.clock.advance(5 * minute);
    await expect.poll(() => failures(auth)).toHaveLength(1);
    expect(failures(auth)[0]).toMatchObject({ issuer, error: { message: "HTTP 503" } });
    // Tries again every 30 s.
    auth.clock.advance(30_000);
    await expect.poll(() => failures(auth)).toHaveLength(2);
    auth.clock.advance(54 * minute + 29_999);
    await expect.poll(() => failures(auth)).toHaveLength(3);
    // The last moment: those who were taken are, and so are new ones.
    expect(auth.authenticate(bearer(seen), undefined)).toBe(principal);
    expect(await refusal(auth, await old.sign({ ...claims, sub: "bob" }))).toBe("taken as bob");
    expect(principal.ends.aborted).toBe(false);

    auth.clock.advance(1);
    expect(principal.ends.aborted).toBe(true);
    expect(principal.ends.reason).toMatchObject({ detail: { reason: "CREDENTIAL_CHANGED" } });
    expect(auth.captured.lines({ level: 50 })).toMatchObject([
      { issuer, msg: "keys of tokens are too old: its tokens are refused" },
    ]);
    expect(await refusal(auth, seen)).toBe("outage");
    expect(await refusal(auth, await old.sign({ ...claims, sub: "eve" }))).toBe("outage");

    server.answer = [old];
    auth.clock.advance(30_000);
    expect(await refusal(auth, seen)).toBe("taken as ann");
    expect(auth.captured.text()).not.toContain("SECRET");
  });

  test("from the start refuses its tokens, and not the server's start", async () => {
    const { server, auth } = await start(broken);
    const token = await old.sign(claims);
    expect(await refusal(auth, token)).toBe("outage");
    server.answer = [old];
    expect(await refusal(auth, token)).toBe("outage");
    auth.clock.advance(30_000);
    expect(await refusal(auth, token)).toBe("taken as ann");
  });

  test("every other time is none, however short the patience is", async () => {
    const { server, auth } = await start([old], { outageMinutes: 5 });
    const principal = await take(auth, await old.sign(claims));
    for (let i = 1; i < 6; i++) {
      server.answer = broken;
      auth.clock.advance(75_000);
      await expect.poll(() => failures(auth)).toHaveLength(i);
      server.answer = [old];
      auth.clock.advance(30_000);
      // A kid that nobody has waits for the answer.
      expect(await refusal(auth, await old.sign(claims, { kid: "none" }))).toBe("kid");
    }
    expect(server.asked).toBe(11);
    expect(principal.ends.aborted).toBe(false);
  });
});

describe("a server of keys that answers wrongly is not believed", () => {
  const text =
    (body: string | Buffer, headers = {}): RequestListener =>
    (_, response) =>
      void response.writeHead(200, headers).end(body);
  const bomb = gzipSync(Buffer.alloc(20 * 1024 * 1024, "SECRET "));
  const secret = { kty: "oct", k: Buffer.from("SECRET").toString("base64url"), kid: "old" };

  test.each<[string, RequestListener, string]>([
    [
      "with another status",
      (_, response) => void response.writeHead(404).end("SECRET"),
      "HTTP 404",
    ],
    ["with what is no JSON", text("SECRET"), "it is not JSON"],
    ["with no keys", text('{"SECRET": []}'), "it is no key set"],
    ["with null", text("null"), "it is no key set"],
    ["with an empty set", text('{"keys": []}'), "there is no public key"],
    ["with secrets only", text(JSON.stringify({ keys: [secret] })), "there is no public key"],
    ["with too many keys", text(JSON.stringify({ keys: Array(101).fill({}) })), "100 keys at most"],
    ["with too much", text(`{"SECRET":"${"x".repeat(300_000)}"}`), "longer than 262144 bytes"],
    [
      "with too much in a few bytes",
      text(bomb, { "content-encoding": "gzip" }),
      "longer than 262144",
    ],
    ["never", () => {}, "timeout"],
    ["without an end", (_, response) => void response.writeHead(200).write("{"), "timeout"],
    ["by hanging up", (request) => void request.socket.destroy(), ""],
  ])("%s", async (_, listener, sentence) => {
    const { auth } = await start(listener, {}, { fetchTimeoutMs: 500 });
    expect(await refusal(auth, await old.sign(claims))).toBe("outage");
    expect(failures(auth)).toHaveLength(1);
    const { error } = failures(auth)[0] as { error: { message: string } };
    expect(error.message).toContain(sentence);
    expect(auth.captured.text()).not.toContain("SECRET");
  });

  test("with the way to another server", async () => {
    const elsewhere = await startKeyServer([old]);
    endAfterTest(() => elsewhere.stop());
    for (const status of [301, 302, 303, 307, 308]) {
      const { auth } = await start(
        (_, response) => void response.writeHead(status, { location: elsewhere.url }).end(),
      );
      expect(await refusal(auth, await old.sign(claims))).toBe("outage");
      expect(JSON.stringify(failures(auth))).toContain("redirect");
    }
    expect(elsewhere.asked).toBe(0);
  });

  test("with private keys among the public", async () => {
    const leaked = { ...(await exportJWK(old.privateKey)), kid: "old" };
    const { auth } = await start(text(JSON.stringify({ keys: [leaked, next.jwk, 7, null, {}] })));
    expect(await refusal(auth, await old.sign(claims))).toBe("kid");
    expect(await refusal(auth, await next.sign(claims))).toBe("taken as ann");
  });
});

test("over TLS a server is believed whose certificate is, and no other", async () => {
  const { cert, key } = createCertificate("localhost");
  const server = createServer({ cert, key }, (_, response) => {
    response.end(JSON.stringify({ keys: [old.jwk] }));
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  endAfterTest(() => server.close());
  const url = `https://localhost:${(server.address() as AddressInfo).port}/jwks`;
  const auth = await startAuth(authFile(url));
  expect(await refusal(auth, await old.sign(claims))).toBe("outage");
  expect(failures(auth)[0]).toMatchObject({ error: { code: "DEPTH_ZERO_SELF_SIGNED_CERT" } });

  await writeFile(path.join(auth.folder, "ca.pem"), cert);
  process.env.NODE_EXTRA_CA_CERTS = path.join(auth.folder, "ca.pem");
  endAfterTest(() => {
    delete process.env.NODE_EXTRA_CA_CERTS;
  });
  const token = await old.sign(claims);
  const args = [path.join(auth.folder, "auth.json"), token];
  const { line } = await startScript("authenticate_once.ts", args);
  expect(line).toBe("ann");
});

test("tokens that name keys which there are not keep out none that name one", async () => {
  const { server, auth } = await start([old]);
  await take(auth, await old.sign(claims));
  server.answer = () => {};
  auth.clock.advance(minute);
  const encode = (part: object) => Buffer.from(JSON.stringify(part)).toString("base64url");
  const made = Array.from({ length: 1_500 }, (_, i) =>
    take(
      auth,
      `${encode({ alg: "ES256", typ: "at+jwt", kid: "none" })}.${encode({ ...claims, i })}.AA`,
    ),
  );
  const told = Promise.allSettled(made);
  await expect.poll(() => server.asked).toBe(2);
  expect(await refusal(auth, await old.sign({ ...claims, sub: "bob" }))).toBe("taken as bob");
  server.answer = [old];
  auth.stop();
  const reasons = (await told).map((it) => (it.status === "rejected" ? it.reason.code : "taken"));
  expect(new Set(reasons)).toEqual(new Set(["unauthenticated", "resource_exhausted"]));
});
