import {
  createHash,
  createPrivateKey,
  createPublicKey,
  generateKeyPairSync,
  type KeyObject,
  randomBytes,
  sign,
} from "node:crypto";
import { isIP } from "node:net";

/** A certificate with its key; both in PEM. */
export interface Certificate {
  cert: string;
  key: string;
}

/** What a certificate is to be, besides one of a host, of today and tomorrow, that signs itself. */
export interface CertificateOptions {
  /** Who signs it; it has to be made with `isAuthority`. */
  issuer?: Certificate & { name: string };
  isAuthority?: boolean;
  /** Its only alternative name, as SPIFFE has it, in the place of the host. */
  uri?: string;
  /** Date.now() when it ends. */
  notAfter?: number;
  /** RSA of 2,048 bits in the place of P-256. */
  isRsa?: boolean;
}

/** Makes a certificate. */
export function createCertificate(host: string, options: CertificateOptions = {}): Certificate {
  const { issuer, isAuthority = false, uri, notAfter = Date.now() + day, isRsa = false } = options;
  const { privateKey, publicKey } = isRsa
    ? generateKeyPairSync("rsa", { modulusLength: 2048 })
    : generateKeyPairSync("ec", { namedCurve: "P-256" });
  const signerKey = issuer?.key ?? (privateKey.export({ type: "pkcs8", format: "pem" }) as string);
  const isRsaSigned = isRsa && !issuer;
  const algorithm = isRsaSigned
    ? sequence(oid("2a864886f70d01010b"), der(0x05))
    : sequence(oid("2a8648ce3d040302"));
  const alternative = uri
    ? der(0x86, Buffer.from(uri))
    : isIP(host)
      ? der(0x87, Buffer.from(host.split(".").map(Number)))
      : der(0x82, Buffer.from(host));
  // As much as the strictest check wants, which is Python's from 3.13 on.
  const extensions = isAuthority
    ? [
        sequence(oid("551d13"), der(0x01, yes), octets(sequence(der(0x01, yes)))),
        sequence(oid("551d0f"), der(0x01, yes), octets(der(0x03, Buffer.from([1, 0x06])))),
        sequence(oid("551d0e"), octets(octets(keyId(privateKey)))),
      ]
    : [sequence(oid("551d11"), octets(sequence(alternative)))];
  if (issuer) {
    const id = keyId(createPrivateKey(issuer.key));
    extensions.push(sequence(oid("551d23"), octets(sequence(der(0x80, id)))));
  }
  const signed = sequence(
    der(0xa0, der(0x02, Buffer.from([2]))),
    der(0x02, Buffer.concat([Buffer.from([1]), randomBytes(8)])),
    algorithm,
    commonName(issuer?.name ?? host),
    sequence(time(Date.now() - day), time(notAfter)),
    commonName(host),
    publicKey.export({ type: "spki", format: "der" }),
    der(0xa3, sequence(...extensions)),
  );
  const signature = Buffer.concat([Buffer.from([0]), sign("sha256", signed, signerKey)]);
  const cert = sequence(signed, algorithm, der(0x03, signature)).toString("base64");
  return {
    cert: `-----BEGIN CERTIFICATE-----\n${cert.match(/.{1,64}/g)?.join("\n")}\n-----END CERTIFICATE-----\n`,
    key: privateKey.export({ type: "pkcs8", format: "pem" }) as string,
  };
}

/** Makes an authority, which is trusted by its certificate and signs others. */
export function createAuthority(name: string): Certificate & { name: string } {
  return { name, ...createCertificate(name, { isAuthority: true }) };
}

const day = 24 * 3_600_000;
const yes = Buffer.from([0xff]);

/** By which a certificate names the key that signed it. */
function keyId(key: KeyObject): Buffer {
  const bytes = createPublicKey(key).export({ type: "spki", format: "der" });
  return createHash("sha1").update(bytes).digest();
}

const sequence = (...parts: Buffer[]) => der(0x30, ...parts);
const octets = (...parts: Buffer[]) => der(0x04, ...parts);
const oid = (hex: string) => der(0x06, Buffer.from(hex, "hex"));
const commonName = (name: string) =>
  sequence(der(0x31, sequence(oid("550403"), der(0x0c, Buffer.from(name)))));

/** One value of ASN.1: what it is, how long, and what it holds. */
function der(tag: number, ...parts: Buffer[]): Buffer {
  const content = Buffer.concat(parts);
  const { length } = content;
  const size =
    length < 0x80 ? [length] : length < 0x100 ? [0x81, length] : [0x82, length >> 8, length & 0xff];
  return Buffer.concat([Buffer.from([tag, ...size]), content]);
}

/** YYMMDDHHMMSSZ */
function time(ms: number): Buffer {
  const digits = new Date(ms).toISOString().replaceAll(/\D/g, "").slice(2, 14);
  return der(0x17, Buffer.from(`${digits}Z`));
}
