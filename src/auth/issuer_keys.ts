/** Where the keys of an issuer come from: a file, or a URL that is fetched again and again. */
import type { JWSHeaderParameters } from "jose";
import type { Log } from "../log.js";
import type { Clock } from "./clock.js";
import { parseJson } from "./json_fields.js";
import { type FoundKey, type Keys, toKeys } from "./jwks.js";
import { invalid, tooManyTokens } from "./refusal.js";

/** The keys of an issuer as they are now. */
export interface IssuerKeys {
  /**
   * The key that a token's header asks for. Waits for a fetch that is under way.
   *
   * @throws Refusal where there is none; CheckpointdError OVERLOADED where too many wait already
   */
  find(header: JWSHeaderParameters): Promise<FoundKey>;
  /** How many wait for a fetch. */
  readonly waiting: number;
  /** Whether this key still counts. */
  has(id: string): boolean;
  stop(): void;
}

/** Keys from a file, of this text. @throws FileRefusal */
export function readKeys(text: string): IssuerKeys {
  const keys = toKeys(parseJson(text));
  return {
    find: async (header) => (await keys.find(header)) ?? refuseKid(),
    waiting: 0,
    has: keys.has,
    stop() {},
  };
}

function refuseKid(): never {
  throw invalid("kid");
}

/** What keys that are fetched need. */
export interface FetchOptions {
  readonly issuer: string;
  readonly url: string;
  /** How long keys count that could not be fetched again; asked for at each fetch. */
  readonly outageMs: () => number;
  readonly clock: Clock;
  readonly log: Log;
  /** What one fetch may take. */
  readonly timeoutMs: number;
  /** Called when other keys count than before: after a fetch, and at the end of an outage's patience. */
  readonly onChange: () => void;
}

/** How old keys get, so how long one that was withdrawn still counts, and a new one is not known. */
const refreshMs = 5 * 60_000;
/** The shortest time between two fetches, whoever asks for keys that are not there. */
const pauseMs = 30_000;
/** Tokens that wait for a fetch: whoever makes up a key's name makes one that does. */
const mostWaiting = 500;
/** Larger answers are no key sets. */
const mostBytes = 256 * 1024;

/**
 * Fetches the keys now and every 5 minutes, and when a token names a key that is not there; 30 s pass
 * between two fetches at least. While they cannot be fetched the last ones count for `outageMs`;
 * then none does, because nobody could tell that one was withdrawn.
 */
export function fetchKeys(options: FetchOptions): IssuerKeys {
  const { issuer, url, outageMs, clock, log, timeoutMs, onChange } = options;
  const stop = new AbortController();
  let keys: Keys | undefined;
  let began = Number.NEGATIVE_INFINITY;
  let fetching: Promise<void> | undefined;
  let waiting = 0;
  let callOffNext = () => {};
  let callOffEnd = () => {};

  function refresh(): Promise<void> {
    callOffNext();
    began = clock.now();
    fetching = fetchOnce().finally(() => {
      fetching = undefined;
    });
    return fetching;
  }

  async function fetchOnce(): Promise<void> {
    let nextMs = pauseMs;
    try {
      const signal = AbortSignal.any([stop.signal, AbortSignal.timeout(timeoutMs)]);
      keys = toKeys(parseJson(await fetchText(url, signal)));
      const ms = outageMs();
      // Sooner where the patience is short, so that one failure does not use it up.
      nextMs = Math.min(refreshMs, ms / 4);
      callOffEnd();
      callOffEnd = clock.after(ms, giveUp);
      onChange();
    } catch (error) {
      if (stop.signal.aborted) return;
      log.warn({ issuer, error: describe(error) }, "keys of tokens could not be fetched");
    }
    if (!stop.signal.aborted) callOffNext = clock.after(nextMs, () => void refresh());
  }

  function giveUp(): void {
    keys = undefined;
    log.error({ issuer }, "keys of tokens are too old: its tokens are refused");
    onChange();
  }

  void refresh();
  return {
    async find(header) {
      let found = await keys?.find(header);
      if (!found && !fetching && clock.now() - began >= pauseMs) void refresh();
      if (!found && fetching) {
        if (waiting >= mostWaiting) throw tooManyTokens();
        waiting++;
        await fetching.finally(() => waiting--);
        found = await keys?.find(header);
      }
      if (!keys) throw invalid("outage");
      return found ?? refuseKid();
    },
    get waiting() {
      return waiting;
    },
    has: (id) => keys?.has(id) ?? false,
    stop() {
      stop.abort();
      callOffNext();
      callOffEnd();
    },
  };
}

/** A fixed answer in place of text from elsewhere: what is told of a fetch ends in the log. */
class FetchError extends Error {
  override readonly name = "FetchError";
}

async function fetchText(url: string, signal: AbortSignal): Promise<string> {
  // A redirect would lead to where no operator has looked.
  const answer = await fetch(url, {
    signal,
    redirect: "error",
    headers: { accept: "application/json" },
  });
  if (answer.status !== 200) {
    await answer.body?.cancel();
    throw new FetchError(`HTTP ${answer.status}`);
  }
  let size = 0;
  const chunks: Uint8Array[] = [];
  for await (const chunk of answer.body ?? []) {
    size += chunk.length;
    if (size > mostBytes) throw new FetchError(`it is longer than ${mostBytes} bytes`);
    chunks.push(chunk);
  }
  return Buffer.concat(chunks).toString("utf8");
}

/** fetch says "fetch failed" of everything, and why in the cause. */
function describe(error: unknown): { message: string; code?: string } {
  const { message, cause } = error as Error;
  const { message: why, code } = (cause ?? {}) as { message?: string; code?: string };
  return { message: why || message, ...(code === undefined ? {} : { code }) };
}
