/** Why stored data was not read by a saver that encrypts, or by one that does not. */
export type EncryptionReason =
  /** The keys have none of this id. */
  | "KEY_UNKNOWN"
  /** It was altered or is of another place, or the key of that id is another one. */
  | "NOT_AUTHENTIC"
  /** It is not encrypted, and `acceptPlaintext` is off. */
  | "PLAINTEXT"
  /** It was stored as another thread, and `acceptCopies` does not allow it. */
  | "COPIED"
  /** What it says belongs to it was not told. */
  | "WITHHELD"
  /** It is encrypted, and the saver has no `encryption`. */
  | "ENCRYPTED";

/** Stored data was not read. Nothing of it has been handed on. */
export class EncryptionError extends Error {
  override readonly name = "EncryptionError";
  constructor(
    readonly reason: EncryptionReason,
    message: string,
  ) {
    super(message);
  }
}
