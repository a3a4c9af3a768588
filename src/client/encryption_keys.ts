/** The keys of a saver that encrypts: where they come from, and what is made of them. */
import { Buffer } from "node:buffer";
import { createHash, createSecretKey, hkdfSync, type KeyObject } from "node:crypto";
import { EncryptionError } from "./encryption_error.js";
import { checkName } from "./names.js";
import { fields } from "./sealed_bytes.js";

/** A key of 32 bytes, and the id that is kept with what it encrypts. */
export interface EncryptionKey {
  /** Not secret, at most 1024 bytes: a name, or the key itself as a KMS wrapped it. */
  id: string;
  key: Uint8Array;
}

/**
 * Where a saver gets its keys. Either answer may be a promise, as a KMS needs it; what these throw the
 * saver's call throws.
 */
export interface KeySource {
  /** What new values are encrypted with. Asked at each call, so that it is to remember its answer. */
  current(): EncryptionKey | Promise<EncryptionKey>;
  /** The key of that id, undefined if there is none. Asked once for each id, and remembered. */
  byId(id: string): Uint8Array | undefined | Promise<Uint8Array | undefined>;
}

/**
 * Keys that are at hand: new values are encrypted with that of the id `current`, and those of the
 * others are read. Throws a TypeError unless each has 32 bytes and `current` is among them.
 */
export function keyring(current: string, keys: Record<string, Uint8Array>): KeySource {
  if (typeof keys !== "object" || keys === null) {
    throw new TypeError("keyring: the keys must be an object, each key of 32 bytes under its id");
  }
  const known = new Map(Object.entries(keys).map(([id, key]) => [id, checkKey({ id, key }).key]));
  const key = known.get(current);
  if (key === undefined) {
    throw new TypeError(`keyring: there is no key "${current}" among ${[...known.keys()]}`);
  }
  return { current: () => ({ id: current, key }), byId: (id) => known.get(id) };
}

/** By what a thread's values are known as that thread's: the name that it was begun under. */
export interface ThreadOrigin {
  name: string;
  /** The thread's key id, of 16 bytes. */
  id: Buffer;
}

/** The thread of that name, where it is no copy. */
export function originOf(name: string): ThreadOrigin {
  const hash = createHash("sha256").update(fields("checkpointd thread", name));
  return { name, id: hash.digest().subarray(0, 16) };
}

/** As many keys, and keys of threads, are remembered. */
const mostKeys = 1_000;

/** The keys of one saver. */
export class Keys {
  readonly #source: KeySource;
  readonly #known = new Map<string, Uint8Array>();
  readonly #derived = new Map<string, KeyObject>();

  /** Throws a TypeError unless it is a KeySource. */
  constructor(source: KeySource) {
    if (typeof source?.current !== "function" || typeof source.byId !== "function") {
      throw new TypeError("encryption.keys must be what keyring(…) makes, or a KeySource");
    }
    this.#source = source;
  }

  /** The key to encrypt with, checked. */
  async current(): Promise<EncryptionKey> {
    return checkKey(await this.#source.current());
  }

  /** The keys of these ids. Rejects with an EncryptionError if one is not known. */
  async byIds(ids: ReadonlySet<string>): Promise<Map<string, EncryptionKey>> {
    const found = new Map<string, EncryptionKey>();
    for (const id of ids) {
      const key = this.#known.get(id) ?? (await this.#source.byId(id));
      if (key === undefined || key === null) {
        throw new EncryptionError(
          "KEY_UNKNOWN",
          `a value is encrypted with the key "${id}", which encryption.keys does not know`,
        );
      }
      found.set(id, checkKey({ id, key }));
      remember(this.#known, id, key);
    }
    return found;
  }

  /**
   * What the values of a thread are encrypted with. A key of its own for each: a value of another
   * thread cannot be read at all, and nonces, which are random, have to differ within a thread
   * only (2^32 of them are safe).
   */
  ofThread({ id, key }: EncryptionKey, thread: Buffer): KeyObject {
    const name = `${thread.toString("hex")}${id}`;
    let derived = this.#derived.get(name);
    if (derived === undefined) {
      const info = fields("checkpointd thread key", thread);
      derived = createSecretKey(Buffer.from(hkdfSync("sha256", key, "", info, 32)));
      remember(this.#derived, name, derived);
    }
    return derived;
  }
}

/** Keeps the value, and lets go of the one that was kept first where there are too many. */
export function remember<Value>(
  kept: Map<string, Value>,
  name: string,
  value: Value,
  most = mostKeys,
): void {
  if (kept.has(name)) return;
  if (kept.size >= most) kept.delete(kept.keys().next().value as string);
  kept.set(name, value);
}

function checkKey({ id, key }: EncryptionKey): EncryptionKey {
  if (typeof id !== "string" || id === "" || Buffer.byteLength(id) > 1024) {
    throw new TypeError("the id of an encryption key must be a text of 1 to 1024 bytes");
  }
  checkName("the id of an encryption key", id);
  if (!(key instanceof Uint8Array) || key.length !== 32) {
    throw new TypeError(`the encryption key "${id}" must be a Uint8Array of 32 bytes`);
  }
  return { id, key };
}
