/** Clients' certificates, as a connection with TLS shows them. */
import { X509Certificate } from "node:crypto";
import { once } from "node:events";
import type { AddressInfo } from "node:net";
import tls, { type PeerCertificate } from "node:tls";
import { expect, test } from "vitest";
import { cleanAuthFolders, endAfterTest, startAuth } from "../testing/auth_folder.js";
import {
  type CertificateOptions,
  createAuthority,
  createCertificate,
} from "../testing/certificate.js";
import { namesOf } from "./certificates.js";
import type { Principal } from "./principal.js";

cleanAuthFolders();

const authority = createAuthority("authority");
const server = createCertificate("localhost", { issuer: authority });

/** What the server of a connection sees of the client's certificate. */
async function peerOf(name: string, options: CertificateOptions = {}): Promise<PeerCertificate> {
  const client = createCertificate(name, { issuer: authority, ...options });
  const listener = tls.createServer({ ...server, ca: authority.cert, requestCert: true });
  listener.listen(0, "127.0.0.1");
  endAfterTest(() => listener.close());
  await once(listener, "listening");
  const { port } = listener.address() as AddressInfo;
  const socket = tls.connect({
    port,
    host: "127.0.0.1",
    servername: "localhost",
    ca: authority.cert,
    ...client,
  });
  endAfterTest(() => socket.destroy());
  const [secured] = (await once(listener, "secureConnection")) as [tls.TLSSocket];
  expect(secured.authorized).toBe(true);
  return secured.getPeerCertificate();
}

const grants = [{ operations: ["read"], threads: ["*"] }];
const file = {
  principals: [
    { name: "by name", certificates: ["CN=agent"], grants },
    { name: "by uri", certificates: ["spiffe://prod/agent"], grants },
    { name: "other", certificates: ["CN=spiffe://prod/x", "urn:uuid:7"], grants },
  ],
};

/** Until the year 2049, which is what the certificates' form of a time reaches to. */
const notAfter = Date.parse("2031-02-03T04:05:06Z");

test("a certificate is who its URI says, and who its common name says where it has none", async () => {
  const auth = await startAuth(file);
  const take = async (name: string, uri?: string) =>
    auth.authenticate({}, await peerOf(name, { notAfter, ...(uri ? { uri } : {}) }));
  expect(await take("agent")).toMatchObject({ name: "by name", tenant: "", expiresAt: notAfter });
  expect(await take("whoever", "spiffe://prod/agent")).toMatchObject({ name: "by uri" });
  // Its common name is the first principal's, and does not count.
  expect(await take("agent", "spiffe://prod/agent")).toMatchObject({ name: "by uri" });
  expect(await take("agent", "urn:uuid:7")).toMatchObject({ name: "other" });
  await expect(take("agent", "spiffe://prod/agent2")).rejects.toThrow("not accepted");
  await expect(take("agent2")).rejects.toThrow("not accepted");
  // A common name is no URI, and the reverse.
  await expect(take("spiffe://prod/agent")).rejects.toThrow("not accepted");
  expect(await take("spiffe://prod/x")).toMatchObject({ name: "other" });
  await expect(take("x", "spiffe://prod/x")).rejects.toThrow("not accepted");
});

test("a certificate is one principal, which ends with it", async () => {
  const auth = await startAuth(file);
  const peer = await peerOf("agent", { notAfter });
  const principal = auth.authenticate({}, peer) as Principal;
  expect(auth.authenticate({}, { ...peer })).toBe(principal);
  const renewed = await peerOf("agent", { notAfter });
  expect(auth.authenticate({}, renewed)).not.toBe(principal);
  auth.clock.advance(notAfter - auth.clock.now() - 1);
  expect(principal.ends.aborted).toBe(false);
  auth.clock.advance(1);
  expect(principal.ends.reason).toMatchObject({ detail: { reason: "CREDENTIAL_EXPIRED" } });
  expect(() => auth.authenticate({}, peer)).toThrow("has expired");
});

test("a reload ends the certificates whose principal went, and no others", async () => {
  const auth = await startAuth(file);
  const [one, other] = [
    auth.authenticate({}, await peerOf("agent", { notAfter })) as Principal,
    auth.authenticate({}, await peerOf("x", { notAfter, uri: "urn:uuid:7" })) as Principal,
  ];
  await auth.reload({ principals: file.principals.slice(1) });
  expect(one.ends.reason).toMatchObject({ detail: { reason: "CREDENTIAL_CHANGED" } });
  expect(other.ends.aborted).toBe(false);
});

test("a bearer counts, and the certificate beside it does not", async () => {
  const auth = await startAuth(file);
  const peer = await peerOf("agent", { notAfter });
  expect(() => auth.authenticate({ authorization: "Bearer nobody" }, peer)).toThrow("not accepted");
  expect(auth.authenticate({}, peer)).toMatchObject({ name: "by name" });
});

test("Node prints names as they are read here", async () => {
  const hostile = 'spiffe://a", DNS:b, URI:"spiffe://prod/agent';
  for (const uri of [
    "spiffe://prod/agent",
    "spiffe://a, URI:spiffe://prod/agent",
    hostile,
    "x:'é",
  ]) {
    const { cert } = createCertificate("c", { uri });
    const { subjectAltName } = new X509Certificate(cert);
    const shown = namesOf({ subjectaltname: subjectAltName } as PeerCertificate);
    // What is not ASCII may be printed in other ways; it is never another name.
    if (!/é/.test(uri)) expect(shown).toEqual([uri]);
    else expect(shown).not.toContain("spiffe://prod/agent");
  }
});

test.each<[string, string, string[]]>([
  ["several kinds", "DNS:a, URI:spiffe://b, IP Address:1.2.3.4, email:c@d", ["spiffe://b"]],
  ["several URIs", "URI:urn:a, URI:urn:b", ["urn:a", "urn:b"]],
  ["two of SPIFFE", "URI:spiffe://a, URI:spiffe://b", []],
  ["one of SPIFFE beside another", "URI:SPIFFE://a, URI:urn:b", []],
  ["no URI", "DNS:a", ["CN=cn"]],
  ["none", "", ["CN=cn"]],
  ["a name between quotes", 'URI:"spiffe://a, URI:b"', ["spiffe://a, URI:b"]],
  ["quotes that do not close", 'URI:"spiffe://a', []],
  ["quotes in a name", 'URI:spiffe://a"b', []],
  ["no kind", "spiffe", []],
  ["a broken escape", 'URI:"\\x"', []],
  ["a comma without a blank", "URI:a,URI:b", []],
])("of %s the names are taken, or none", (_, subjectaltname, names) => {
  const peer = { subject: { CN: "cn" }, subjectaltname } as PeerCertificate;
  expect(namesOf(peer)).toEqual(names);
});

test("two common names are none", () => {
  const subject = { CN: ["a", "b"] } as unknown as PeerCertificate["subject"];
  expect(namesOf({ subject } as PeerCertificate)).toEqual([]);
  expect(namesOf({} as PeerCertificate)).toEqual([]);
});
