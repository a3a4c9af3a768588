/** TLS on the port: handshakes, certificates that change while it runs, and those of clients. */
import { constants, createPrivateKey, X509Certificate } from "node:crypto";
import { readFile, stat } from "node:fs/promises";
import type * as http2 from "node:http2";
import type * as net from "node:net";
import * as tls from "node:tls";
import type { Log } from "../log.js";
import type { NodeRequest } from "./http.js";

/** The paths of files in PEM. */
export interface TlsFiles {
  /** The certificate, and those between it and the authority. */
  cert: string;
  key: string;
  /** The authorities of clients' certificates. With them clients are asked for one; none has to have it. */
  clientCa?: string | undefined;
}

/** What ends TLS on connections. */
export interface Tls {
  /**
   * Makes the handshake on a connection that began with one, and calls `then` with what is spoken
   * inside. A connection whose handshake fails is closed.
   */
  secure(socket: net.Socket, then: (secured: tls.TLSSocket) => void): void;
  /** The files are not looked at any more. */
  stop(): void;
}

/** How often it is looked whether the files have changed. */
const lookMs = 2_000;

/**
 * What Mozilla calls intermediate, without the ciphers that HTTP/2 forbids. Set here, since Node can be
 * told others by NODE_OPTIONS. A renegotiation could bring another certificate than the one looked at.
 */
const pinned: tls.SecureContextOptions = {
  minVersion: "TLSv1.2",
  ciphers: [
    "TLS_AES_128_GCM_SHA256",
    "TLS_AES_256_GCM_SHA384",
    "TLS_CHACHA20_POLY1305_SHA256",
    "ECDHE-ECDSA-AES128-GCM-SHA256",
    "ECDHE-RSA-AES128-GCM-SHA256",
    "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-RSA-AES256-GCM-SHA384",
    "ECDHE-ECDSA-CHACHA20-POLY1305",
    "ECDHE-RSA-CHACHA20-POLY1305",
  ].join(":"),
  secureOptions: constants.SSL_OP_NO_RENEGOTIATION,
};

/** Certificates between a client's and its authority, as many as OpenSSL follows and then some. */
const mostDepth = 100;
/** Of clients' certificates whose others are remembered. */
const mostChains = 10_000;

/** The verified certificates of clients, by their connections and by the sessions of HTTP/2 on them. */
const peers = new WeakMap<object, tls.PeerCertificate>();

/**
 * The certificate with which the client of a request proved who it is: signed by an authority of
 * `clientCa`, for clients, and in time when its connection was made, which is closed when it ends.
 * undefined without one, and for one that is anything else. The same object for all requests of a connection.
 */
export function peerCertificate(request: NodeRequest): tls.PeerCertificate | undefined {
  const carrier = "stream" in request ? request.stream.session : request.socket;
  return carrier && peers.get(carrier);
}

/** When the client's certificate ends, as Date.now() counts; undefined where there is none. */
export function expiryOf(socket: net.Socket): number | undefined {
  const peer = peers.get(socket);
  return peer && Date.parse(peer.valid_to);
}

/** Has the requests of a session of HTTP/2 find the certificate of its connection. */
export function shareCertificate(socket: net.Socket, session: http2.ServerHttp2Session): void {
  const peer = peers.get(socket);
  if (peer) peers.set(session, peer);
}

/**
 * Reads the files, and reads them anew when they change: connections that are open keep theirs, but
 * for those of clients whose authority is no longer among them, which are closed, and files that
 * cannot be used are told in the log and change nothing. Of handshakes there are
 * `mostHandshakes` under way at the most: one more ends the oldest, so that those who begin them and
 * do not go on keep nobody out.
 *
 * @throws Error with a sentence for the operator about files that cannot be used
 */
export async function startTls(files: TlsFiles, mostHandshakes: number, log: Log): Promise<Tls> {
  let seen = await stampOf(files);
  const first = await loadWith(files, log);
  let authorities = first.ca;
  /** Those whose client has proven who it is, with its certificate and those that stand for it. */
  const proven = new Map<tls.TLSSocket, readonly X509Certificate[]>();
  /** What came with a client's certificate: a session of TLS that is resumed has the first alone. */
  const chains = new Map<string, readonly X509Certificate[]>();

  function chainOf(secured: tls.TLSSocket): readonly X509Certificate[] {
    const chain: X509Certificate[] = [];
    let each = secured.getPeerX509Certificate();
    while (each && chain.length < mostDepth) {
      chain.push(each);
      const issuer: X509Certificate | undefined = each.issuerCertificate;
      // Node goes by the names, and authorities end the chain with themselves.
      const isNext = issuer?.fingerprint256 !== each.fingerprint256;
      each = isNext && issuer && each.verify(issuer.publicKey) ? issuer : undefined;
    }
    const { fingerprint256 = "" } = chain[0] ?? {};
    if (secured.isSessionReused()) return chains.get(fingerprint256) ?? chain;
    if (chains.size >= mostChains) chains.delete(chains.keys().next().value as string);
    chains.set(fingerprint256, chain);
    return chain;
  }
  // Of all that a server of Node's is, only its handshakes are wanted: it gets its sockets from ours.
  const server = tls.createServer({
    ...first,
    ALPNProtocols: ["h2", "http/1.1"],
    requestCert: files.clientCa !== undefined,
    // Who has none may be known by something else.
    rejectUnauthorized: false,
  });
  /** The handshakes under way, the oldest first. */
  const underWay = new Map<net.Socket, (secured: tls.TLSSocket) => void>();
  server.on("secureConnection", (secured) => {
    const socket = carrierOf(secured);
    const then = underWay.get(socket);
    underWay.delete(socket);
    if (secured.destroyed) return;
    secured.on("error", (error) => log.debug({ err: error }, "a connection failed"));
    if (keepCertificate(secured, log)) {
      proven.set(secured, chainOf(secured));
      secured.on("close", () => proven.delete(secured));
    }
    then?.(secured);
  });
  server.on("tlsClientError", (error) => log.debug({ err: error }, "a handshake of TLS failed"));

  const look = async () => {
    const stamp = await stampOf(files);
    if (stamp === seen) return;
    seen = stamp;
    try {
      const options = await loadWith(files, log);
      server.setSecureContext(options);
      log.info("the files of TLS have changed: new connections get the new certificate");
      if (String(options.ca) === String(authorities)) return;
      authorities = options.ca;
      for (const [secured, chain] of proven) {
        if (isOfOneOf(chain, authorities as string[])) continue;
        log.info("closed a connection whose client's authority was taken out of the file");
        secured.destroy();
      }
    } catch (error) {
      const { message } = error as Error;
      log.error(`the files of TLS have changed and cannot be used, so the old stay: ${message}`);
    }
  };
  let timer: NodeJS.Timeout | undefined;
  let stopped = false;
  const lookAgain = () => {
    timer = setTimeout(async () => {
      await look();
      if (!stopped) lookAgain();
    }, lookMs).unref();
  };
  lookAgain();
  return {
    secure(socket, then) {
      if (underWay.size >= mostHandshakes) {
        const [oldest] = underWay.keys();
        log.debug({ limit: mostHandshakes }, "too many handshakes of TLS: ended the oldest");
        oldest?.destroy();
        underWay.delete(oldest as net.Socket);
      }
      underWay.set(socket, then);
      socket.on("close", () => underWay.delete(socket));
      server.emit("connection", socket);
    },
    stop() {
      stopped = true;
      clearTimeout(timer);
    },
  };
}

/** @throws Error with a sentence for the operator about files that cannot be used */
export async function checkTlsFiles(files: TlsFiles): Promise<void> {
  await load(files);
}

/** Node tells nobody what a server's TLSSocket was made of, and has had it there since 2015. */
function carrierOf(secured: tls.TLSSocket): net.Socket {
  return (secured as unknown as { _parent: net.Socket })._parent;
}

/** Whether one of these authorities has signed a client's certificate, or one of those that stand for it. */
function isOfOneOf(chain: readonly X509Certificate[], authorities: readonly string[]): boolean {
  const trusted = authorities.map((each) => new X509Certificate(each));
  return chain.some((of) =>
    trusted.some((each) => of.checkIssued(each) && of.verify(each.publicKey)),
  );
}

/** Returns whether there is one. */
function keepCertificate(secured: tls.TLSSocket, log: Log): boolean {
  const peer = secured.getPeerCertificate();
  // Of a session of TLS 1.3 that is resumed, Node says that it is authorized also where nobody ever
  // gave a certificate.
  if (!peer || Object.keys(peer).length === 0) return false;
  // One that is resumed is not looked at again: its certificate can have ended since.
  const isInTime = Date.parse(peer.valid_to) > Date.now();
  if (secured.authorized && isInTime) {
    peers.set(secured, peer);
    return true;
  }
  const reason = secured.authorizationError ?? "CERT_HAS_EXPIRED";
  log.info({ reason: String(reason) }, "a client's certificate was not accepted");
  return false;
}

/** What tells whether a file was changed or replaced. */
async function stampOf({ cert, key, clientCa }: TlsFiles): Promise<string> {
  const stamps = [cert, key, ...(clientCa === undefined ? [] : [clientCa])].map((file) =>
    stat(file, { bigint: true }).then(
      ({ ino, size, mtimeNs, ctimeNs }) => [ino, size, mtimeNs, ctimeNs].join(),
      (error: NodeJS.ErrnoException) => error.code,
    ),
  );
  return (await Promise.all(stamps)).join(" ");
}

/** With a line in the log about what can be used and is dangerous. */
async function loadWith(files: TlsFiles, log: Log): Promise<tls.SecureContextOptions> {
  const { options, leaf } = await load(files);
  if (Date.parse(leaf.validTo) < Date.now()) {
    log.warn(`the certificate in ${files.cert} has ended: ${leaf.validTo}`);
  }
  if (process.platform !== "win32" && ((await stat(files.key)).mode & 0o004) !== 0) {
    log.warn(
      `all users of this machine can read ${files.key}: take the right from them (chmod o-r)`,
    );
  }
  return options;
}

async function load({ cert, key, clientCa }: TlsFiles) {
  const options: tls.SecureContextOptions = {
    ...pinned,
    cert: await read(cert),
    key: await read(key),
    ...(clientCa === undefined ? {} : { ca: authoritiesIn(clientCa, await read(clientCa)) }),
  };
  const leaf = attempt(
    () => new X509Certificate(options.cert as string),
    `${cert} holds no certificate in PEM`,
  );
  const privateKey = attempt(
    () => createPrivateKey(options.key as string),
    `${key} holds no private key in PEM, or one with a passphrase`,
  );
  if (!leaf.checkPrivateKey(privateKey)) {
    throw new Error(`the key in ${key} does not belong to the certificate in ${cert}`);
  }
  attempt(() => tls.createSecureContext(options), `${cert} and ${key} cannot be used`);
  return { options, leaf };
}

/** OpenSSL takes a file without any for one that trusts nobody. */
function authoritiesIn(file: string, text: string): string[] {
  const found = text.match(/-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----/g) ?? [];
  if (found.length === 0) throw new Error(`${file} holds no certificate in PEM`);
  for (const each of found) {
    attempt(() => new X509Certificate(each), `${file} holds a certificate that cannot be read`);
  }
  return found;
}

async function read(file: string): Promise<string> {
  try {
    return await readFile(file, "utf8");
  } catch (error) {
    throw new Error(`${file} cannot be read (${(error as NodeJS.ErrnoException).code})`);
  }
}

function attempt<T>(use: () => T, otherwise: string): T {
  try {
    return use();
  } catch (error) {
    throw new Error(`${otherwise} (${(error as Error).message})`);
  }
}
