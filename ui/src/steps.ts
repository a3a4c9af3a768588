/** Long work in steps, between which the page lives on. */

/** Milliseconds that a step may take. */
const stepLength = 15;

/** Runs to its end what yields again and again. Throws when `signal` aborts. */
export async function runInSteps<Result>(
  work: Generator<void, Result>,
  signal: AbortSignal,
): Promise<Result> {
  for (let until = performance.now() + stepLength; ; ) {
    const { done, value } = work.next();
    if (done) return value;
    if (performance.now() < until) continue;
    await new Promise((resolve) => setTimeout(resolve));
    signal.throwIfAborted();
    until = performance.now() + stepLength;
  }
}
