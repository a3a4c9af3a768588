/** The words that no Postgres can be made to say here. */
import { describe, expect, test } from "vitest";
import { toTold } from "./error_table.js";

const thrown = (code: string, message = "", cause?: unknown) =>
  Object.assign(new Error(message, { cause }), { code });

describe("the table of errors", () => {
  test.each([
    // PgBouncer's.
    ["08P01", "unsupported startup parameter: plan_cache_mode", "POOLER"],
    ["08P01", "no more connections allowed (max_client_conn)", "TOO_MANY_CONNECTIONS"],
    ["08P01", "server conn crashed?", "DATABASE_UNAVAILABLE"],
    ["08P01", "query_wait_timeout", "DATABASE_UNAVAILABLE"],
    ["26000", 'prepared statement "x" does not exist', "POOLER"],
    ["57014", "canceling statement due to user request", "STATEMENT_CANCELLED"],
    ["57014", "canceling statement due to statement timeout", "STATEMENT_TIMEOUT"],
    ["57014", "storniere Anfrage wegen Zeitüberschreitung der Anfrage", "STATEMENT_TIMEOUT"],
    ["SASL_SIGNATURE_MISMATCH", "", "ACCESS_DENIED"],
    ["CONNECTION_LOST", "", "DATABASE_UNAVAILABLE"],
    ["CONNECTION_DEAD", "", "DATABASE_UNAVAILABLE"],
    ["CONNECTION_CLOSED", "", "DATABASE_UNAVAILABLE"],
    ["NOT_ACKNOWLEDGED", "", "DATABASE_UNAVAILABLE"],
    ["CONNECT_FAILED", "", "DATABASE_UNAVAILABLE"],
    ["CONNECT_TIMEOUT", "", "DATABASE_UNAVAILABLE"],
    ["ECONNREFUSED", "", "DATABASE_UNAVAILABLE"],
    ["ECONNRESET", "", "DATABASE_UNAVAILABLE"],
    ["ENOTFOUND", "", "DATABASE_UNAVAILABLE"],
    ["ENOENT", "", "DATABASE_UNAVAILABLE"],
  ])("%s %s", (code, message, reason) => {
    const told = toTold(thrown(code, message));
    expect(told?.detail?.reason).toBe(reason);
    expect(told?.message).not.toContain(message || "\0");
  });

  test("tells a connection that ended from one that could not be made", () => {
    for (const code of ["CONNECTION_LOST", "CONNECTION_DEAD", "NOT_ACKNOWLEDGED", "08006"]) {
      expect(toTold(thrown(code))?.message).toContain("before it had answered");
    }
    for (const code of ["CONNECT_FAILED", "CONNECT_TIMEOUT", "ECONNREFUSED", "08001"]) {
      expect(toTold(thrown(code))?.message).toContain("cannot be reached");
    }
  });

  test("tells why a connection could not be made", () => {
    const refused = thrown("28P01", "password authentication failed");
    expect(toTold(thrown("CONNECT_FAILED", "", refused))?.detail?.reason).toBe("ACCESS_DENIED");
    const unknown = thrown("CONNECT_FAILED", "", new Error("odd"));
    expect(toTold(unknown)?.detail?.reason).toBe("DATABASE_UNAVAILABLE");
  });

  test("has nothing for errors that are not the database's", () => {
    for (const error of [new Error("x"), thrown("ERR_INVALID_ARG_TYPE"), thrown("XX000"), "text"]) {
      expect(toTold(error)).toBeUndefined();
    }
  });
});
