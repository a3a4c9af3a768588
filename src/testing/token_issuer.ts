import { createServer, type RequestListener, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import {
  type CryptoKey,
  exportJWK,
  generateKeyPair,
  type JWK,
  type JWTHeaderParameters,
  SignJWT,
} from "jose";

/** A key of an issuer, and the tokens that it signs. */
export interface SigningKey {
  readonly kid: string;
  readonly alg: string;
  readonly jwk: JWK;
  readonly privateKey: CryptoKey;
  /** Signs claims as they are; `header` replaces what is usual there, undefined takes it away. */
  sign(claims: Record<string, unknown>, header?: Record<string, unknown>): Promise<string>;
}

/** Makes a key for an algorithm. */
export async function createSigningKey(alg: string, kid: string): Promise<SigningKey> {
  const { privateKey, publicKey } = await generateKeyPair(alg, { extractable: true });
  return {
    kid,
    alg,
    jwk: { ...(await exportJWK(publicKey)), kid, alg, use: "sig" },
    privateKey,
    sign(claims, header = {}) {
      const whole = { alg, kid, typ: "at+jwt", ...header } as JWTHeaderParameters;
      return new SignJWT(claims).setProtectedHeader(whole).sign(privateKey);
    },
  };
}

/** A server of keys on this machine, which counts how often it was asked. */
export interface KeyServer {
  readonly url: string;
  readonly asked: number;
  /** What it answers from now on: keys, or whatever a test wants. */
  answer: readonly SigningKey[] | RequestListener;
  stop(): Promise<void>;
}

/** Starts one. */
export async function startKeyServer(answer: KeyServer["answer"]): Promise<KeyServer> {
  let asked = 0;
  const server: Server = createServer((request, response) => {
    asked++;
    const { answer } = running;
    if (typeof answer === "function") answer(request, response);
    else response.end(JSON.stringify({ keys: answer.map(({ jwk }) => jwk) }));
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const running = {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}/jwks`,
    answer,
    get asked() {
      return asked;
    },
    async stop() {
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
    },
  };
  return running;
}
