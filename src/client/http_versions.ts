/** Which version of HTTP gets through to an address. */

/**
 * For how long something is not tried again that found no way `refusals` times in a row. It may have
 * been a balancer without a server behind it for a moment; or it is so on this way.
 */
export const restMs = (refusals: number) =>
  Math.min(10 * 60_000, 1_000 * 2 ** (Math.max(1, refusals) - 1));

/**
 * What speaks no HTTP/2 is asked over HTTP/1.1 for a while, then over HTTP/2 once more: a proxy may
 * have learned it. Begins with HTTP/2.
 */
export class HttpVersions {
  #refusals = 0;
  #until = Number.NEGATIVE_INFINITY;
  #spokeHttp2 = false;

  /** Whether calls go over HTTP/1.1 now. */
  get isHttp1(): boolean {
    return performance.now() < this.#until;
  }

  /** A server of HTTP/2 showed itself. */
  http2Came(): void {
    this.#spokeHttp2 = true;
    this.#refusals = 0;
    this.#until = Number.NEGATIVE_INFINITY;
  }

  /** What is there answered HTTP/2 with something else. */
  http2Refused(): void {
    this.#refusals++;
    this.#until = performance.now() + restMs(this.#refusals);
  }

  /** A connection was made and said nothing in HTTP/2: the next call tries the other version. */
  http2Missing(): void {
    if (!this.#spokeHttp2 && !this.isHttp1) this.http2Refused();
  }

  /** Nor was there an answer over HTTP/1.1. */
  http1Missing(): void {
    this.#refusals = 0;
    this.#until = Number.NEGATIVE_INFINITY;
  }
}

/** Whether an error says that what is there is no server of HTTP/2: nothing was carried out then. */
export function isNoHttp2(error: unknown): boolean {
  for (let cause = error; cause instanceof Error; cause = cause.cause) {
    const code = "code" in cause ? cause.code : undefined;
    if (code === "ERR_HTTP2_ERROR" || code === "ERR_SSL_TLSV1_ALERT_NO_APPLICATION_PROTOCOL") {
      return true;
    }
    if (/no.application.protocol|h2 is not supported/i.test(cause.message)) return true;
  }
  return false;
}
