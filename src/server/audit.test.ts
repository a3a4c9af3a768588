/** The audit log: what it tells, and that nobody can have it tell less, or fill a disk with it. */
import { createHash } from "node:crypto";
import { readFileSync, writeFileSync } from "node:fs";
import { createClient } from "@connectrpc/connect";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { CheckpointService } from "../../gen/checkpointd/v1/checkpoint_service_pb.js";
import { ThreadService } from "../../gen/checkpointd/v1/thread_service_pb.js";
import { CheckpointdError } from "../errors.js";
import { createLog } from "../log.js";
import { createAuthFile, everything } from "../testing/auth_file.js";
import { captureLog } from "../testing/captured_log.js";
import { createTransport } from "../testing/edge.js";
import { createDatabase, type TestDatabase } from "../testing/postgres.js";
import { startTestServer } from "../testing/test_server.js";
import { createSigningKey, type SigningKey } from "../testing/token_issuer.js";
import { createAudit, toNames } from "./audit.js";
import type { Call } from "./call.js";
import type { Server } from "./server.js";

const principals = {
  ops: { grants: everything },
  loud: { grants: [{ operations: ["delete"], threads: ["loud/*"] }] },
};
const auth = createAuthFile({}, principals);
const issuer = "https://idp.test";
let signing: SigningKey;
/** Adds an issuer to the auth file, whose subjects delete what is theirs. */
function addIssuer(change: (file: { keys: { id: string }[]; principals: object[] }) => void) {
  const file = JSON.parse(readFileSync(auth.file, "utf8"));
  const keys = path("keys.json");
  writeFileSync(keys, JSON.stringify({ keys: [signing.jwk] }));
  file.jwt = [{ issuer, audience: "checkpointd", jwksFile: keys, algorithms: ["ES256"] }];
  const grants = [{ operations: ["delete"], threads: ["user/{sub}/*"] }];
  file.principals.push({ name: "user/{sub}", jwt: { issuer }, grants });
  change(file);
  writeFileSync(auth.file, JSON.stringify(file));
}
const path = (name: string) => auth.file.replace("auth.json", name);

let database: TestDatabase;
let server: Server;
// As serve has it, with a level at which calls are not told.
const captured = captureLog((destination) => createLog("warn", destination));
const audited = (having: Record<string, unknown> = {}) =>
  captured.lines({ msg: "audit", ...having });
beforeAll(async () => {
  signing = await createSigningKey("ES256", "k");
  addIssuer(() => {});
  database = await createDatabase();
  server = await startTestServer(database.url, { authFile: auth.file, log: captured.log });
});
afterAll(async () => {
  await server?.drain();
  await database?.drop();
  auth.remove();
});

const transport = (key?: string) => createTransport("connect", server.url, key);
const checkpoints = (key?: string) => createClient(CheckpointService, transport(key));
const threads = (key?: string) => createClient(ThreadService, transport(key));
const put = (threadId: string) =>
  checkpoints(auth.keys.ops).put({
    threadId,
    checkpointId: "1",
    checkpointJson: '{"v": 4, "channel_versions": {"branch:to:a": 2}, "versions_seen": {}}',
    metadataJson: "{}",
    blobs: [
      { channel: "branch:to:a", version: "2", value: { type: "json", data: Buffer.from("null") } },
    ],
  });
const digest = () => createHash("sha256").update(readFileSync(auth.file)).digest("hex");

describe("it tells", () => {
  it("which of a principal's credentials was used", async () => {
    await checkpoints(auth.keys.ops).deleteThread({ threadId: "by-key" });
    const exp = Math.floor(Date.now() / 1000) + 600;
    const token = await signing.sign({ iss: issuer, aud: "checkpointd", sub: "ann", exp });
    await checkpoints(token).deleteThread({ threadId: "user/ann/1" });
    expect(audited({ action: "deleteThread" })).toMatchObject([
      { principal: "ops", credential: "key ops", threads: ["by-key"] },
      { principal: "user/ann", credential: `token of ${issuer}`, threads: ["user/ann/1"] },
    ]);
  });

  it("which threads a claim and a prune came to, and of a prefix that it is one", async () => {
    for (const name of ["p/1", "p/2"]) await put(name);
    const client = threads(auth.keys.ops);
    await client.claimThreads({
      owner: "w",
      limit: 5,
      grace: { seconds: 0n },
      filter: { threadIdPrefix: "p/" },
    });
    const claims = audited({ action: "claimThreads" });
    expect(claims).toMatchObject([{ prefix: "p/", grant: 0, result: "ok" }]);
    const [{ threads: claimed } = {}] = claims;
    expect(claimed).toHaveLength(2);
    expect(claimed).toEqual(expect.arrayContaining(["p/1", "p/2"]));
    for (const threadId of ["p/1", "p/2"]) await client.releaseClaim({ threadId, force: true });
    const strategy = { case: "delete", value: true } as const;
    for await (const _ of client.pruneThreads({ filter: { threadIdPrefix: "p/" }, strategy }));
    for await (const _ of client.pruneThreads({ threadIds: ["*"], strategy }));
    const [byPrefix, byName] = audited({ action: "pruneThreads" });
    expect(byPrefix).toMatchObject({ prefix: "p/", threads: ["p/1", "p/2"], result: "ok" });
    expect(byName).toMatchObject({ threads: ["*"], result: "ok" });
    expect(byName).not.toHaveProperty("prefix");
    await client.deleteRuns({ runIds: ["run-1"] });
    expect(audited({ action: "deleteRuns" })).toMatchObject([{ prefix: "", runs: ["run-1"] }]);
  });

  it("each auth file that is in force, and each that is refused", async () => {
    const loads = () => audited({ action: "loadAuthFile" });
    expect(loads()).toMatchObject([{ sha256: digest(), keys: 2, ended: 0, result: "ok" }]);
    // An id that changes changes nothing for its key.
    addIssuer((file) => {
      file.keys[0] = { ...file.keys[0], id: "ops-2" };
      file.principals[0] = { ...file.principals[0], keys: ["ops-2"] };
    });
    await expect.poll(() => loads().length).toBe(2);
    expect(loads()[1]).toMatchObject({ sha256: digest(), keys: 2, ended: 0, result: "ok" });
    await checkpoints(auth.keys.ops).deleteThread({ threadId: "by-key-2" });
    expect(audited().at(-1)).toMatchObject({ credential: "key ops-2" });
    writeFileSync(auth.file, "{}");
    await expect.poll(() => loads().length).toBe(3);
    expect(loads()[2]).toMatchObject({ result: expect.stringContaining("principals: must be") });
    auth.write(principals);
    await expect.poll(() => loads().length).toBe(4);
  });
});

describe("it is not filled", () => {
  it("by a denied name as long as a request", async () => {
    const threadId = "n".repeat(1_000_000);
    await expect(checkpoints(auth.keys.loud).deleteThread({ threadId })).rejects.toThrow();
    const strategy = { case: "delete", value: true } as const;
    const threadIds = Array.from({ length: 100 }, (_, i) => `${i}`.padEnd(10_000, "x"));
    const pruning = threads(auth.keys.loud).pruneThreads({ threadIds, strategy });
    await expect(pruning[Symbol.asyncIterator]().next()).rejects.toThrow();
    const denied = audited({ result: "NOT_GRANTED" });
    expect(denied).toMatchObject([{ action: "deleteThread" }, { ofThreads: 100 }]);
    expect(JSON.stringify(denied[0]).length).toBeLessThan(1_000);
    expect(JSON.stringify(denied).length).toBeLessThan(10_000);
  });

  it("by denials, which hide neither what is done nor the denials of others", async () => {
    const told = captureLog((destination) => createLog("warn", destination));
    const audit = createAudit(told.log);
    const caller = (name: string) =>
      ({ principal: { name, tenant: "", credential: "key k" }, requestId: "r" }) as unknown as Call;
    const denied = new CheckpointdError("permission_denied", "no", { reason: "NOT_GRANTED" });
    const deny = (name: string) =>
      audit.call(caller(name), { action: "getTuple", threads: toNames(["x"]), error: denied });
    // All in one second: no timer has its turn between.
    for (let i = 0; i < 400; i++) deny("loud");
    audit.call(caller("loud"), { action: "deleteThread", threads: toNames(["gone"]) });
    deny("quiet");
    for (let i = 0; i < 100; i++) for (let n = 0; n < 30; n++) deny(`many-${i}`);
    audit.call(caller("quiet"), { action: "deleteThread", threads: toNames(["gone"]) });
    const lines = (having: object) => told.lines({ msg: "audit", ...having });
    expect(lines({ action: "deleteThread" })).toHaveLength(2);
    expect(lines({ principal: "loud", action: "getTuple" })).toHaveLength(50);
    expect(lines({ principal: "quiet", action: "getTuple" })).toHaveLength(1);
    expect(lines({ action: "getTuple" }).length).toBeLessThan(1_001);
    // It says so without another line that would have it say so.
    await expect.poll(() => lines({ result: "denied" }).length).toBe(2);
    expect(lines({ principal: "loud", result: "denied" })).toMatchObject([{ suppressed: 350 }]);
    const left = lines({ result: "denied" }).reduce((sum, it) => sum + Number(it.suppressed), 0);
    expect(left + lines({ action: "getTuple" }).length).toBe(400 + 1 + 3_000);
  });
});

it("that cannot be written stands in the log, and ends no call", async () => {
  const captured = captureLog((destination) => createLog("error", destination));
  const options = { authFile: auth.file, auditLog: "/dev/full", log: captured.log };
  const own = await startTestServer(database.url, options);
  const client = createClient(
    CheckpointService,
    createTransport("connect", own.url, auth.keys.loud),
  );
  for (let i = 0; i < 60; i++)
    await expect(client.getTuple({ threadId: "x" })).rejects.toThrow("may not read");
  await client.deleteThread({ threadId: "loud/x" });
  expect(captured.lines({ msg: "audit", action: "deleteThread" })).toHaveLength(1);
  await expect
    .poll(() => captured.lines({ msg: "audit", result: "denied" }).length)
    .toBeGreaterThan(0);
  expect(captured.text()).toContain("ENOSPC");
  await own.drain();
});
