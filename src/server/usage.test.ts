/** Limits of principals, counted by their names whatever credentials they come with. */
import { expect, it } from "vitest";
import type { Principal, PrincipalLimits } from "../auth/principal.js";
import { createCalls } from "./call.js";
import { Usage } from "./usage.js";

const principal = (name: string, limits: PrincipalLimits): Principal => ({
  name,
  tenant: "",
  grants: [],
  credential: "key k",
  expiresAt: Number.POSITIVE_INFINITY,
  limits,
  ends: new AbortController().signal,
});

function start() {
  const usage = new Usage();
  const calls = createCalls([(call) => usage.end(call)]);
  return {
    usage,
    /** Whether the call was let in, which is over when it returns. */
    call(caller: Principal): boolean {
      const call = calls.begin("id", "rpc", "connect");
      call.principal = caller;
      try {
        usage.begin(call);
        return true;
      } catch {
        return false;
      } finally {
        call.end();
      }
    },
  };
}

it("who has tokens of two principals of one name has no new allowance with each", () => {
  const { call } = start();
  let taken = 0;
  // A new token each time, now of the one and now of the other.
  for (let i = 0; i < 200; i++) if (call(principal("ann", { calls: i % 2 ? 10 : 20 }))) taken++;
  expect(taken).toBeGreaterThanOrEqual(30);
  expect(taken).toBeLessThan(60);
});

it("subjects who are gone are forgotten, and no others", () => {
  const { usage, call } = start();
  const owes = principal("owes", { calls: 1 });
  expect(call(owes)).toBe(true);
  const holds = principal("holds", { streams: 1 });
  const leave = usage.open(holds, "streams");
  const idle = principal("idle", { streams: 1 });
  usage.open(idle, "streams")();
  for (let i = 0; i < 30_000; i++) usage.open(principal(`${i}`, { streams: 1 }), "streams")();
  expect(usage.known).toBeLessThan(15_000);
  expect(() => usage.open(principal("holds", { streams: 1 }), "streams")).toThrow("its 1 streams");
  leave();
  // What was forgotten counts anew, once for all who have the name.
  usage.open(idle, "streams");
  expect(() => usage.open(principal("idle", { streams: 1 }), "streams")).toThrow("its 1 streams");
});
