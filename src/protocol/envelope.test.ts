import { expect, it } from "vitest";
import { createEnvelopeReader, envelope } from "./envelope.js";
import { Pieces } from "./pieces.js";

/** Numbers from 0 to 1, the same for a seed. */
function random(seed: number): () => number {
  let state = seed;
  return () => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    return state / 2 ** 32;
  };
}

const seeds = Array.from({ length: 50 }, (_, i) => i + 1);

/** Messages of 0 to some 10,000 bytes in envelopes. */
function messagesOf(next: () => number) {
  return Array.from({ length: 40 }, () => {
    const size = Math.floor(next() ** 4 * 20_000);
    return Buffer.from(Array.from({ length: size }, () => Math.floor(next() * 256)));
  });
}

it.each(seeds)("reads the messages however the stream is cut, and rests when told (%i)", (seed) => {
  const next = random(seed);
  const sent = messagesOf(next);
  const stream = Buffer.concat(sent.flatMap((message) => [envelope(0, message.length), message]));
  const received: Buffer[] = [];
  let rested = false;
  const read = createEnvelopeReader(
    2 ** 31,
    () => new Error(),
    (_, message) => {
      received.push(Buffer.from(message));
      rested = next() < 0.3;
      return !rested;
    },
  );
  const most = [3, 1_200, 70_000][seed % 3] as number;
  let handedOn = 0;
  for (let at = 0; at < stream.length; ) {
    const chunk = stream.subarray(at, at + 1 + Math.floor(next() * most));
    at += chunk.length;
    const before = received.length;
    let held = read(chunk);
    handedOn = received.reduce((bytes, message) => bytes + 5 + message.length, 0);
    expect(held).toBe(at - handedOn);
    if (rested) expect(received.length).toBeGreaterThan(before);
    while (rested) {
      rested = false;
      held = read(Buffer.alloc(0));
    }
  }
  expect(received).toEqual(sent);
});

it("takes about as much memory as it holds, in pieces of one byte too", () => {
  const pieces = new Pieces();
  const one = Buffer.from("x");
  // Each as Node has it: its own object.
  const before = process.memoryUsage();
  for (let i = 0; i < 2_000_000; i++) pieces.add(one.subarray());
  const { heapUsed, arrayBuffers } = process.memoryUsage();
  expect(pieces.size).toBe(2_000_000);
  // Held as they came they are 200 MB. What is garbage by now counts here too.
  const added = heapUsed - before.heapUsed + arrayBuffers - before.arrayBuffers;
  expect(added).toBeLessThan(100_000_000);
  expect(pieces.take().equals(Buffer.alloc(2_000_000, "x"))).toBe(true);
  expect(pieces.size).toBe(0);
});
