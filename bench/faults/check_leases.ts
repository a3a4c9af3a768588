/** The rules of leases: one holder at a time, and nothing under a lease that is lost. */

import { isLeaseLost, type Operation, type OperationOf, ofKind } from "./call_history.js";
import type { Report } from "./check.js";

/** A claim that was granted. */
interface Lease {
  claim: OperationOf<"claim">;
  token: string;
  /** It was held for certain between these. */
  start: number;
  end: number;
}

/**
 * Reports two holders of the thread at a time, and what was done under a lease that was lost. Of
 * an operation that was refused with reason it notes that it never happened.
 */
export function checkLeases(operations: readonly Operation[], slackMs: number, report: Report) {
  const claims = ofKind(operations, "claim").filter(({ done, answer }) => {
    return done === "ok" && typeof answer?.token === "string";
  });
  if (claims.length === 0) return;
  const renews = ofKind(operations, "renew");
  const releases = ofKind(operations, "release").filter(({ done }) => done !== "never");
  const deletes = ofKind(operations, "deleteThread").filter(({ done }) => done !== "never");
  const leases = claims.map((claim): Lease => {
    const token = claim.answer?.token as string;
    const own = renews.filter(({ call, done }) => call.token === token && done !== "never");
    // A renewal may shorten what is left.
    const leaseMs = Math.min(claim.call.leaseMs, ...own.flatMap(({ call }) => call.leaseMs ?? []));
    const granted = [claim, ...own.filter(({ done }) => done === "ok")].map(({ from }) => from);
    const given = releases.filter(({ call }) => call.token === token);
    const deleted = deletes.filter(({ to }) => to > claim.from);
    return {
      claim,
      token,
      start: claim.to,
      end: Math.min(
        Math.max(...granted) + leaseMs - slackMs,
        ...[...given, ...deleted].map(({ from }) => from),
      ),
    };
  });
  checkHolders(leases, report);

  const byToken = new Map(leases.map((lease) => [lease.token, lease]));
  const lossOf = (token: string, at: number) => {
    const lease = byToken.get(token);
    if (!lease) return undefined;
    const granted = lease.claim.to;
    return (
      claims.find(({ from, to }) => granted < from && to < at) ??
      releases.find(({ call, done, to }) => done === "ok" && call.token === token && to < at) ??
      deletes.find(({ done, from, to }) => done === "ok" && granted < from && to < at)
    );
  };
  for (const operation of operations) {
    const token = tokenOf(operation);
    const loss = token && lossOf(token, operation.from);
    if (!loss) continue;
    const { call, done, answer } = operation;
    if (done === "ok") {
      const what = `${call.kind} was acknowledged under a lease that was lost before it: `;
      report("leases", [byToken.get(token)?.claim, loss, operation], what + loss.call.kind);
    } else if (answer && isLeaseLost(answer)) {
      operation.done = "never";
    }
  }
}

/** The lease that an operation needs to be held. */
function tokenOf({ call }: Operation): string | undefined {
  if (call.kind === "renew") return call.token;
  if (call.kind === "put" || call.kind === "putWrites") return call.lease || undefined;
  return undefined;
}

function checkHolders(leases: readonly Lease[], report: Report): void {
  const byStart = leases.filter(({ start, end }) => start < end);
  byStart.sort((a, b) => a.start - b.start);
  let holder: Lease | undefined;
  for (const lease of byStart) {
    if (holder && lease.start < holder.end) twoHolders(holder, lease, report);
    if (!holder || lease.end > holder.end) holder = lease;
  }
  // Granted while another held it, whether or not it was still held when the answer came.
  const byFrom = [...leases].sort((a, b) => a.claim.from - b.claim.from);
  holder = undefined;
  let next = 0;
  for (const lease of byFrom) {
    for (; next < byStart.length && byStart[next]!.start <= lease.claim.from; next++) {
      if (!holder || byStart[next]!.end > holder.end) holder = byStart[next];
    }
    if (holder && lease.claim.to <= holder.end) twoHolders(holder, lease, report);
  }
}

function twoHolders(a: Lease, b: Lease, report: Report): void {
  const left = Math.round(a.end - b.start);
  report(
    "leases",
    [a.claim, b.claim],
    `granted to ${b.claim.call.owner} while ${a.claim.call.owner} held it for ${left} ms more`,
  );
}
