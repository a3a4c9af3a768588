/** What changed from a step to the next. */
import type { Decoded, OmittedValue } from "checkpointd/client";
import type { State } from "./tuples.js";

/** A channel that differs, and what was in it and is. */
export interface ChangedChannel {
  channel: string;
  before: Decoded | undefined;
  after: Decoded | undefined;
  /** What was too large to be read with the others, of either. */
  large: { before?: OmittedValue; after?: OmittedValue } | undefined;
}

/**
 * The channels that differ by their versions. One that holds nothing, before and after, is a trigger that
 * was pulled, and none of them.
 */
export function changedChannels(before: State | undefined, after: State): ChangedChannel[] {
  const names = new Set([...Object.keys(before?.versions ?? {}), ...Object.keys(after.versions)]);
  const omitted = (state: State | undefined, name: string) =>
    state?.tuple.omitted.find(({ channel, taskId }) => taskId === "" && channel === name);
  const largeOf = (channel: string) => {
    const [old, now] = [omitted(before, channel), omitted(after, channel)];
    return (old || now) && { ...(old ? { before: old } : {}), ...(now ? { after: now } : {}) };
  };
  return [...names]
    .filter((name) => before?.versions[name] !== after.versions[name])
    .map((channel) => ({
      channel,
      before: before?.values.get(channel),
      after: after.values.get(channel),
      large: largeOf(channel),
    }))
    .filter(({ before, after, large }) => before || after || large)
    .sort((a, b) => (a.channel < b.channel ? -1 : 1));
}

/** Of two texts what both begin and end with, in whole words, and what is between. */
export function cutText(before: string, after: string) {
  let start = 0;
  const shorter = Math.min(before.length, after.length);
  while (start < shorter && before[start] === after[start]) start++;
  let end = 0;
  while (end < shorter - start && before.at(-1 - end) === after.at(-1 - end)) end++;
  // A number of which one digit changed is another number.
  const isInWord = (text: string, at: number) =>
    at > 0 && at < text.length && /^[\p{L}\p{N}_.]{2}$/u.test(text.slice(at - 1, at + 1));
  while (isInWord(before, start) || isInWord(after, start)) start--;
  while (
    end > 0 &&
    (isInWord(before, before.length - end) || isInWord(after, after.length - end))
  ) {
    end--;
  }
  return {
    start: before.slice(0, start),
    removed: before.slice(start, before.length - end),
    added: after.slice(start, after.length - end),
    end: before.slice(before.length - end),
  };
}
