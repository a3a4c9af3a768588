/** When principals end: at their expiry to the millisecond, also those that nobody remembers. */
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { expect, test, vi } from "vitest";
import { bearer, cleanAuthFolders, startAuth } from "../testing/auth_folder.js";
import { createManualClock } from "../testing/manual_clock.js";
import { createSigningKey } from "../testing/token_issuer.js";
import { systemClock } from "./clock.js";
import { createLivePrincipals } from "./live_principals.js";
import type { Principal } from "./principal.js";
import { changed } from "./refusal.js";
import type { Identity } from "./rules.js";

cleanAuthFolders();

const day = 86_400_000;
const credential = { kind: "certificate", names: [], expiresAt: 0 } as const;
const identity = (expiresAt: number): Identity => ({
  name: "a",
  tenant: "",
  grants: [],
  limits: {},
  expiresAt,
  credential: "key k",
  judgedBy: undefined,
  text: "",
});

test("a principal ends at its expiry, and not before, however far away that is", () => {
  for (const days of [1 / 1440, 1, 24, 25, 50, 5000]) {
    const clock = createManualClock();
    const live = createLivePrincipals(clock);
    const ends = live.begin(credential, identity(clock.now() + days * day)).ends;
    clock.advance(days * day - 1);
    expect(ends.aborted).toBe(false);
    clock.advance(1);
    expect(ends.aborted).toBe(true);
    expect(ends.reason).toMatchObject({
      code: "unauthenticated",
      message: "the credential has expired; get a new one",
      detail: { reason: "CREDENTIAL_EXPIRED" },
    });
    expect(clock.waiting).toBe(0);
  }
});

test("a principal without an expiry waits for nothing, and ends when it is told to", async () => {
  const clock = createManualClock();
  const live = createLivePrincipals(clock);
  const [one, other] = [1, 2].map(() => live.begin(credential, identity(Number.POSITIVE_INFINITY)));
  expect(clock.waiting).toBe(0);
  expect(
    await live.endWhere(({ principal }) => (principal === one ? changed("a") : undefined)),
  ).toBe(1);
  expect([one?.ends.aborted, other?.ends.aborted]).toEqual([true, false]);
  // Once is enough.
  expect(await live.endWhere(() => changed("a"))).toBe(1);
  expect(other?.ends.reason).toMatchObject({ detail: { reason: "CREDENTIAL_CHANGED" } });
});

test("nothing waits after a stop", () => {
  const clock = createManualClock();
  const live = createLivePrincipals(clock);
  const principals = [1, 2, 3].map((days) =>
    live.begin(credential, identity(clock.now() + days * day)),
  );
  expect(clock.waiting).toBe(3);
  live.stop();
  expect(clock.waiting).toBe(0);
  clock.advance(9 * day);
  expect(principals.some(({ ends }) => ends.aborted)).toBe(false);
});

test("the machine's clock keeps no process", () => {
  vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout"] });
  try {
    const run = vi.fn();
    systemClock.after(1000, run);
    systemClock.after(1000, run)();
    vi.advanceTimersByTime(1000);
    expect(run).toHaveBeenCalledTimes(1);
  } finally {
    vi.useRealTimers();
  }
  const before = process.getActiveResourcesInfo().filter((name) => name === "Timeout").length;
  const callOff = systemClock.after(1000, () => {});
  // Those that a process waits for are listed, this one is not.
  expect(process.getActiveResourcesInfo().filter((name) => name === "Timeout")).toHaveLength(
    before,
  );
  callOff();
});

test("of more tokens than are remembered those that are held end, and the others are let go", async () => {
  setFlagsFromString("--expose-gc");
  const gc = runInNewContext("gc") as () => void;
  const key = await createSigningKey("ES256", "k");
  const issuer = "https://idp.test";
  const file = (operation: string) => ({
    jwt: [{ issuer, audience: "c", algorithms: ["ES256"], jwksFile: "keys.json" }],
    principals: [
      { name: "{sub}", jwt: { issuer }, grants: [{ operations: [operation], threads: ["*"] }] },
    ],
  });
  const auth = await startAuth(
    file("read"),
    { "keys.json": { keys: [key.jwk] } },
    { remembered: 2 },
  );
  const exp = auth.clock.now() / 1000 + 3600;
  const sign = (sub: string) => key.sign({ iss: issuer, aud: "c", sub, exp });
  const token = await sign("held");
  const held: Principal = await auth.authenticate(bearer(token), undefined);
  for (let i = 0; i < 50; i++) await auth.authenticate(bearer(await sign(`u${i}`)), undefined);

  // One look at the files, one timer for each that somebody has: the held one and the last two.
  await expect
    .poll(() => {
      gc();
      return auth.clock.waiting;
    })
    .toBeLessThanOrEqual(1 + 3);
  // It was forgotten, so its token is verified again: another principal, with the same end.
  const again = await auth.authenticate(bearer(token), undefined);
  expect(again).not.toBe(held);
  expect(again.expiresAt).toBe(held.expiresAt);
  await auth.reload(file("write"));
  expect(held.ends.reason).toMatchObject({ detail: { reason: "CREDENTIAL_CHANGED" } });
  expect(again.ends.aborted).toBe(true);
});

test("any number of sessions may wait for the end of one", async () => {
  const warnings: string[] = [];
  const onWarning = ({ message }: Error) => warnings.push(message);
  process.on("warning", onWarning);
  const live = createLivePrincipals(createManualClock());
  const { ends } = live.begin(credential, identity(Number.POSITIVE_INFINITY));
  for (let i = 0; i < 50; i++) ends.addEventListener("abort", () => {});
  await new Promise((resolve) => setTimeout(resolve, 10));
  process.off("warning", onWarning);
  expect(warnings).toEqual([]);
  live.stop();
});
