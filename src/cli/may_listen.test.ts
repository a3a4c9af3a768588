import { expect, test } from "vitest";
import { judgeListening } from "./may_listen.js";

const nobody = "other machines reach this server, and it would ask nobody who they are";
const plain = "other machines reach this server, and it would not encrypt";
const everybody = "may read, change and delete every thread";
const onTheWay = "can be read on their way";

type Row = [host: string | undefined, given: string, refusal: string, warning: string];

/** What is given: a for authentication, t for TLS, p for a proxy with it, i for insecure, s for a socket. */
const rows: Row[] = [
  // Only this machine.
  ["127.0.0.1", "", "", ""],
  ["127.8.8.8", "", "", ""],
  ["::1", "", "", ""],
  ["localhost", "", "", ""],
  ["127.0.0.1", "i", "", ""],
  ["127.0.0.1", "a", "", ""],
  ["127.0.0.1", "s", "", ""],
  [undefined, "s", "", ""],
  [undefined, "", "nothing to listen on", ""],
  [undefined, "ai", "nothing to listen on", ""],
  // Others too.
  ["0.0.0.0", "", nobody, ""],
  ["0.0.0.0", "s", nobody, ""],
  ["::", "", nobody, ""],
  ["::ffff:10.0.0.1", "", nobody, ""],
  ["10.0.0.1", "", nobody, ""],
  ["db.internal", "", nobody, ""],
  ["localhost.example.com", "", nobody, ""],
  ["127.0.0.1.example.com", "", nobody, ""],
  ["10.0.0.1", "t", nobody, ""],
  ["10.0.0.1", "p", nobody, ""],
  ["10.0.0.1", "tp", nobody, ""],
  ["10.0.0.1", "a", plain, ""],
  ["10.0.0.1", "as", plain, ""],
  ["10.0.0.1", "at", "", ""],
  ["10.0.0.1", "ap", "", ""],
  ["10.0.0.1", "atp", "", ""],
  ["10.0.0.1", "ati", "", ""],
  ["10.0.0.1", "i", "", everybody],
  ["10.0.0.1", "ti", "", everybody],
  ["10.0.0.1", "pi", "", everybody],
  ["10.0.0.1", "ai", "", onTheWay],
];

test.each(rows)("on %s with '%s'", (host, given, refusal, warning) => {
  const judgement = judgeListening({
    host,
    hasAuthentication: given.includes("a"),
    hasTls: given.includes("t"),
    behindTlsProxy: given.includes("p"),
    insecure: given.includes("i"),
    hasSocket: given.includes("s"),
  });
  expect(judgement.refusal ?? "").toContain(refusal);
  expect(judgement.refusal === undefined).toBe(refusal === "");
  expect(judgement.warning ?? "").toContain(warning);
  expect(judgement.warning === undefined).toBe(warning === "");
});

test("a refusal names what is missing, and nothing that is there", () => {
  const refusal = (more: object) =>
    judgeListening({
      host: "0.0.0.0",
      hasAuthentication: false,
      hasTls: false,
      insecure: false,
      behindTlsProxy: false,
      hasSocket: false,
      ...more,
    }).refusal;
  expect(refusal({})).toMatch(/--token-file.*--tls-cert.*--behind-tls-proxy.*--insecure/);
  expect(refusal({ hasTls: true })).not.toContain("--tls-cert");
  expect(refusal({ hasAuthentication: true })).not.toContain("--token-file");
});
