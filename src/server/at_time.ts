/** How long a timer waits at the most before the clock is looked at again. */
const lookMs = 3_600_000;

/**
 * Calls `then` when the clock shows that time (of Date.now()), unless the returned function was called
 * before. Node's timers take no more than 24 days, and stand still while a machine does: the clock is
 * looked at every hour. Keeps no process alive.
 */
export function atTime(time: number, then: () => void): () => void {
  let timer: NodeJS.Timeout;
  const wait = () => {
    const leftMs = time - Date.now();
    if (leftMs <= 0) then();
    else timer = setTimeout(wait, Math.min(leftMs, lookMs)).unref();
  };
  timer = setTimeout(wait, Math.min(Math.max(0, time - Date.now()), lookMs)).unref();
  return () => clearTimeout(timer);
}
