/** What both ends know of values that a saver encrypted; the service only that they are. */

/** The key of a checkpoint's JSON that holds its seal, as base64. */
export const sealKey = "checkpointd_seal";

/** The type of an encrypted value. What the serializer called it is encrypted too. */
export const sealedType = "aes256gcm";

/**
 * The type of an encrypted value of a channel that makes nodes run, at which none has to: an empty
 * list of sends, a join that still waits. Without it nobody but the agent could tell how a thread
 * stands.
 */
export const idleType = "aes256gcm+idle";

/** Whether a value of this type is encrypted. */
export const isSealed = (type: string): boolean => type === sealedType || type === idleType;

/** Version of what follows, and how it is arranged, before the key's id and its length. */
export const sealedVersion = 1;
/** The nonce, the ciphertext and its tag follow. */
export const isWhole = 0;
/** A nonce and the tag over all chunks follow, then the chunks. */
export const isInChunks = 1;

/** What stands before what is encrypted. */
export interface SealedHeader {
  arrangement: number;
  keyId: string;
  /** Where it ends. */
  end: number;
}

/** Reads the header of an encrypted value or seal; undefined if it has none that is known here. */
export function readSealedHeader(data: Uint8Array): SealedHeader | undefined {
  const [version, arrangement = -1, high = 0, low = 0] = data;
  const end = 4 + high * 256 + low;
  if (version !== sealedVersion || arrangement > isInChunks || data.length < end) return undefined;
  try {
    const keyId = new TextDecoder("utf-8", { fatal: true }).decode(data.subarray(4, end));
    return { arrangement, keyId, end };
  } catch {
    return undefined;
  }
}
