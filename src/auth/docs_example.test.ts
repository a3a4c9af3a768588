import { readFile } from "node:fs/promises";
import type { PeerCertificate } from "node:tls";
import { expect, test } from "vitest";
import { bearer, cleanAuthFolders, endAfterTest, startAuth } from "../testing/auth_folder.js";
import { createSigningKey, startKeyServer } from "../testing/token_issuer.js";
import { createKey, hashKey } from "./api_keys.js";
import { parseAuthFile } from "./auth_file.js";

cleanAuthFolders();

test("the auth file of docs/security.md is one, and takes whom it says", async () => {
  const page = await readFile(new URL("../../docs/security.md", import.meta.url), "utf8");
  const [, example = ""] = /```json\n([\s\S]*?)\n```/.exec(page) ?? [];
  const { keys, issuers, tenants } = parseAuthFile(example);
  const [[sha256 = ""] = []] = keys;
  const [[, issuer] = []] = issuers;
  if (!issuer || !("url" in issuer.jwks)) throw new Error("it has an issuer with a URL");

  const key = createKey();
  const signing = await createSigningKey("ES256", "k");
  const server = await startKeyServer([signing]);
  endAfterTest(() => server.stop());
  const auth = await startAuth(
    example.replace(sha256, hashKey(key)).replace(issuer.jwks.url, server.url),
  );
  expect(auth.tenants).toEqual(tenants);
  expect(auth.authenticate(bearer(key), undefined)).toMatchObject({
    name: "billing-agents",
    tenant: "billing",
    grants: [{ operations: new Set(["read", "write", "lease"]), threads: [{ kind: "all" }] }],
  });
  const token = await signing.sign({
    iss: issuer.issuer,
    aud: "checkpointd",
    sub: "ann",
    role: "agent",
    tenant: "billing",
    exp: auth.clock.now() / 1000 + 60,
  });
  expect(await auth.authenticate(bearer(token), undefined)).toMatchObject({
    name: "user/ann",
    tenant: "billing",
    grants: [{ threads: [{ kind: "prefix", text: "user/ann/" }] }],
    limits: { calls: 100, bytesIn: 10 * 1024 * 1024 },
  });
  const peer = {
    subject: { CN: "ops" },
    valid_to: "Jan  1 00:00:00 2031 GMT",
    fingerprint256: "AA",
  } as PeerCertificate;
  expect(auth.authenticate({}, peer)).toMatchObject({ name: "ops", tenant: "" });
});
