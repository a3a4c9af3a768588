import { decodeJwt, errors, type JWTPayload, jwtVerify } from "jose";
import { CheckpointdError } from "../errors.js";
import type { Issuer } from "./auth_file.js";
import type { IssuerKeys } from "./issuer_keys.js";
import { expired, invalid } from "./refusal.js";

/** What a token says that was found to be an issuer's. */
export interface VerifiedToken {
  readonly claims: JWTPayload;
  /** Which of the issuer's keys signed it. */
  readonly keyId: string;
  /** Milliseconds since the epoch: its `exp`, and the skew that clocks may have. */
  readonly expiresAt: number;
}

/** Whose token this would be, by what nobody has verified; undefined: it is none. */
export function claimedIssuer(token: string): string | undefined {
  try {
    return decodeJwt(token).iss;
  } catch {
    return undefined;
  }
}

/** Verifies a token's signature, and that it is for us and in force. @throws Refusal */
export async function verifyToken(
  token: string,
  issuer: Issuer,
  keys: IssuerKeys,
  now: number,
): Promise<VerifiedToken> {
  let keyId = "";
  try {
    const { payload } = await jwtVerify(
      token,
      async (header) => {
        const { id, key } = await keys.find(header);
        keyId = id;
        return key;
      },
      {
        issuer: issuer.issuer,
        audience: [...issuer.audience],
        // jose looks at these before it asks for a key: with HS256 a public key would be a secret.
        algorithms: [...issuer.algorithms],
        ...(issuer.typ === undefined ? {} : { typ: issuer.typ }),
        clockTolerance: issuer.skewSeconds,
        requiredClaims: ["exp"],
        currentDate: new Date(now),
      },
    );
    const expiresAt = ((payload.exp as number) + issuer.skewSeconds) * 1000;
    // JSON's 1e999 is Infinity, which jose takes for a number.
    if (!Number.isFinite(expiresAt)) throw invalid("claim exp");
    return { claims: payload, keyId, expiresAt };
  } catch (error) {
    if (error instanceof CheckpointdError) throw error;
    if (error instanceof errors.JWTExpired) throw expired();
    // jose names the claim, never its value.
    if (error instanceof errors.JWTClaimValidationFailed) throw invalid(`claim ${error.claim}`);
    if (error instanceof errors.JOSEError) throw invalid(error.code);
    // Such as a TypeError for an issuer's RSA key of less than 2048 bits.
    throw invalid(`error ${(error as Error).name}`);
  }
}
