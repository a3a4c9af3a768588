/** What proves to the service who calls: headers that stay, and a token that may be asked for anew. */
import { validateHeaderName, validateHeaderValue } from "node:http";
import { Code, ConnectError } from "@connectrpc/connect";
import { kindOf } from "./options.js";
import { NotTheService } from "./retry.js";

/** A token, or a function that gives one; see ServiceOptions. */
export type TokenSource = string | (() => string | Promise<string>);

/**
 * For so long the function is asked for the next token before the one that there is is used on, since
 * it may have a minute or an hour left.
 */
const nextMs = 5_000;

/** The function that gives the token gave none. Another try would ask it too often. */
export class NoToken extends NotTheService {
  readonly #own = true;

  static override [Symbol.hasInstance](value: unknown): boolean {
    return typeof value === "object" && value !== null && #own in value;
  }
}

/** The headers of every call of a saver. */
export class Credential {
  /** Is called when the token is no longer good, for what was opened with it. */
  onRenew: () => void = () => {};
  readonly #headers: Headers | undefined;
  readonly #give: Exclude<TokenSource, string> | undefined;
  #kept: Promise<Headers> | undefined;
  #next: Promise<Headers> | undefined;
  #turn = 0;

  /** Throws a TypeError naming what cannot be sent, without its value. */
  constructor(headers?: Record<string, string> | Headers, token?: TokenSource) {
    this.#headers = toHeaders(headers);
    if (token === undefined) return;
    if (this.#headers?.has("authorization")) {
      throw new TypeError(
        "give either token or the header authorization: both are the same header",
      );
    }
    if (typeof token === "function") {
      this.#give = token;
    } else if (typeof token !== "string") {
      throw new TypeError(`token must be text or a function that gives it, not ${kindOf(token)}`);
    } else {
      if (!isToken(token)) throw new TypeError(`token must be ${tokenText}`);
      this.#headers = this.#with(token);
    }
  }

  /**
   * The headers, for a call or session that begins. A function for the token is asked by the first,
   * and its answer is kept. Rejects with {@link NoToken} if it throws.
   */
  headers(): Headers | undefined | Promise<Headers> {
    if (!this.#give) return this.#headers;
    this.#kept ??= this.#ask(this.#give);
    return this.#kept;
  }

  /**
   * The headers for what follows something that the service wanted to end in peace, which it may do
   * because the token ends: it is asked for anew, and the old one is used on if that fails.
   */
  nextHeaders(): Headers | undefined | Promise<Headers> {
    const give = this.#give;
    const headers = this.#kept;
    if (!give || !headers) return this.headers();
    this.#next ??= this.#askNext(give, headers).finally(() => {
      this.#next = undefined;
    });
    return this.#next;
  }

  /** Which token is used now: to be noted by each try. */
  get turn(): number {
    return this.#turn;
  }

  /**
   * Whether a call may be tried once more because its error says that the token of `turn` is not
   * good any more, and there is or will be another.
   */
  renew(turn: number, error: unknown): boolean {
    const isRefused =
      error instanceof ConnectError &&
      error.code === Code.Unauthenticated &&
      !(error instanceof NoToken);
    if (!this.#give || !isRefused) return false;
    if (turn === this.#turn) {
      this.#turn++;
      this.#kept = undefined;
      this.onRenew();
    }
    return true;
  }

  async #askNext(give: Exclude<TokenSource, string>, old: Promise<Headers>): Promise<Headers> {
    let timer: NodeJS.Timeout | undefined;
    const late = new Promise<undefined>((resolve) => {
      timer = setTimeout(() => resolve(undefined), nextMs).unref();
    });
    const next = await Promise.race([this.#ask(give), late]).catch(() => undefined);
    clearTimeout(timer);
    if (!next) return old;
    this.#turn++;
    this.#kept = Promise.resolve(next);
    return next;
  }

  #ask(give: Exclude<TokenSource, string>): Promise<Headers> {
    const asked = (async () => {
      let token: string;
      try {
        token = await give();
      } catch (error) {
        const why = error instanceof Error ? error.message : String(error);
        throw noToken(`the token function failed: ${why}`, error);
      }
      if (!isToken(token)) throw noToken(`the token function must give ${tokenText}`);
      return this.#with(token);
    })();
    asked.catch(() => {
      if (this.#kept === asked) this.#kept = undefined;
    });
    return asked;
  }

  #with(token: string): Headers {
    const headers = new Headers(this.#headers);
    headers.set("authorization", `Bearer ${token}`);
    return headers;
  }
}

const tokenText = "text of the letters that a header can have, without spaces and line breaks";
const isToken = (token: unknown) => typeof token === "string" && /^[\x21-\x7e]+$/.test(token);

function noToken(message: string, cause?: unknown): NoToken {
  return new NoToken(message, Code.Unauthenticated, undefined, undefined, cause);
}

/** Those that HTTP/2 has no place for. */
const ofConnection =
  /^(connection|host|keep-alive|proxy-connection|te|transfer-encoding|upgrade)$/i;

/**
 * The headers, each of which can be sent. Throws a TypeError naming the one that cannot, without its
 * value, which is a secret more often than not and which Node's own errors repeat.
 */
function toHeaders(given: Record<string, string> | Headers | undefined): Headers | undefined {
  if (given === undefined || given === null) return undefined;
  if (typeof given !== "object") {
    throw new TypeError('headers must be an object, such as { authorization: "…" }');
  }
  const headers = new Headers();
  const entries = Symbol.iterator in given ? given : Object.entries(given);
  for (const [name, value] of entries) {
    validateHeaderName(name);
    if (ofConnection.test(name)) {
      throw new TypeError(`headers: "${name}" belongs to the connection and cannot be set`);
    }
    try {
      if (typeof value !== "string") throw new TypeError();
      headers.append(name, value);
      validateHeaderValue(name, headers.get(name) as string);
    } catch {
      throw new TypeError(
        `headers: the value of "${name}" must be text without line breaks and control characters`,
      );
    }
  }
  return headers;
}
