/** ThreadService as any client sees it: every RPC over gRPC, Connect and gRPC-Web, and what is refused. */
import { create, type MessageInitShape } from "@bufbuild/protobuf";
import { durationFromMs, timestampDate, timestampFromMs } from "@bufbuild/protobuf/wkt";
import { type Client, Code, createClient } from "@connectrpc/connect";
import { afterAll, beforeAll, describe, expect, it, test } from "vitest";
import { CheckpointService } from "../../gen/checkpointd/v1/checkpoint_service_pb.js";
import {
  type ClaimThreadsRequestSchema,
  type PruneThreadsRequestSchema,
  type ThreadCounts,
  ThreadCountsSchema,
  type ThreadFilterSchema,
  ThreadService,
  ThreadStatus,
} from "../../gen/checkpointd/v1/thread_service_pb.js";
import { errorDetail } from "../client/retry.js";
import type { ErrorReason } from "../errors.js";
import {
  createTransport,
  expectTold,
  failureOf,
  type Protocol,
  protocols,
  secret,
  startEdge,
} from "../testing/edge.js";

type Threads = Client<typeof ThreadService>;
let edge: Awaited<ReturnType<typeof startEdge>>;
let clients: Record<Protocol, Threads>;
beforeAll(async () => {
  edge = await startEdge();
  clients = Object.fromEntries(
    protocols.map((protocol) => [
      protocol,
      createClient(ThreadService, createTransport(protocol, edge.server.url)),
    ]),
  ) as Record<Protocol, Threads>;
});
afterAll(async () => {
  expect(edge.captured.text()).not.toContain(secret);
  await edge.stop();
});

async function all<T>(messages: AsyncIterable<T>): Promise<T[]> {
  const found: T[] = [];
  for await (const each of messages) found.push(each);
  return found;
}

const value = (text: string) => ({ type: "json", data: Buffer.from(text) });
const counts = (checkpoints: number, blobs: number, writes: number) =>
  expect.objectContaining({
    checkpoints: BigInt(checkpoints),
    blobs: BigInt(blobs),
    writes: BigInt(writes),
  }) as ThreadCounts;

/** Three checkpoints in a chain, each with a value, the last with a write; in two namespaces. */
async function fill(threadId: string, runIds = ["r1", "r2", "r3"]): Promise<void> {
  for (const checkpointNs of ["", "child:1"]) {
    for (const [i, runId] of runIds.entries()) {
      await edge.clients.connect.put({
        threadId,
        checkpointNs,
        checkpointId: `c${i}`,
        parentCheckpointId: i === 0 ? "" : `c${i - 1}`,
        checkpointJson: JSON.stringify({ v: 4, channel_versions: { a: i, shared: 1 } }),
        metadataJson: JSON.stringify({ step: i, source: "loop", run_id: runId }),
        blobs: [
          { channel: "a", version: String(i), value: value(String(i)) },
          { channel: "shared", version: "1", value: value("0") },
        ],
      });
    }
    await edge.clients.connect.putWrites({
      threadId,
      checkpointNs,
      checkpointId: `c${runIds.length - 1}`,
      taskId: "task",
      writes: [{ idx: 0, channel: "a", value: value("w") }],
    });
  }
}

const ids = async (threadId: string, checkpointNs: string) =>
  (await all(edge.clients.connect.list({ threadId, checkpointNs }))).map(
    ({ tuple }) => tuple?.key?.checkpointId,
  );

for (const protocol of protocols) {
  describe(protocol, () => {
    const thread = (name: string) => `${secret} ${protocol} ${name}`;

    it("lists and gets threads; absence is an empty answer", async () => {
      await fill(thread("a"));
      await fill(thread("b"));
      const client = clients[protocol];
      const filter = { threadIdPrefix: thread("") };
      const [first, second] = await all(client.listThreads({ filter, order: 2 }));
      expect(first?.thread).toMatchObject({
        threadId: thread("a"),
        checkpointId: "c2",
        step: 2,
        source: "loop",
        status: ThreadStatus.PENDING,
        pendingNodes: [],
      });
      expect(Date.now() - timestampDate(first!.thread!.updateTime!).getTime()).toBeLessThan(60_000);
      const newest = await all(client.listThreads({ filter }));
      expect(newest.map(({ thread }) => thread?.threadId)).toEqual([thread("b"), thread("a")]);
      const { threadId, updateTime } = newest[0]!.thread!;
      const after = { threadId, updateTime: updateTime! };
      const rest = await all(client.listThreads({ filter, after, limit: 5, withCounts: true }));
      expect(rest.map(({ thread }) => thread?.threadId)).toEqual([thread("a")]);
      expect(rest[0]?.thread?.counts).toEqual(counts(6, 8, 2));
      expect(
        await all(client.listThreads({ filter, order: 2, after: { threadId: thread("b") } })),
      ).toEqual([]);
      expect(await all(client.listThreads({ filter, limit: 0 }))).toEqual([]);
      expect((await client.getThread({ threadId: thread("b") })).thread).toEqual(second?.thread);
      expect((await client.getThread({ threadId: thread("nobody") })).thread).toBeUndefined();
    });

    it("tells why a thread does not go on, where it is asked", async () => {
      const threadId = thread("reasons");
      await fill(threadId);
      const write = (idx: number, channel: string, data = channel) => ({
        idx,
        channel,
        value: value(data),
      });
      const put = { threadId, checkpointId: "c2" };
      await edge.clients.connect.putWrites({
        ...put,
        taskId: "b",
        writes: [write(-3, "__interrupt__", "x".repeat(65_537)), write(-4, "__resume__")],
      });
      await edge.clients.connect.putWrites({
        ...put,
        taskId: "a",
        taskPath: "path",
        writes: [write(-1, "__error__", 'why \0 " \\')],
      });
      // Of another checkpoint and another namespace.
      for (const other of [{ checkpointId: "c1" }, { checkpointNs: "child:1" }]) {
        const elsewhere = { ...put, ...other, taskId: "c", writes: [write(-1, "__error__")] };
        await edge.clients.connect.putWrites(elsewhere);
      }
      const client = clients[protocol];
      const filter = { threadIdPrefix: threadId };
      const [listed] = await all(client.listThreads({ filter, withReasons: true }));
      const { thread: got } = await client.getThread({ threadId, withReasons: true });
      for (const { reasons } of [listed!.thread!, got!]) {
        expect(
          reasons.map(({ taskId, taskPath, idx, channel, value }) => [
            taskId,
            taskPath,
            idx,
            channel,
            value?.type,
            new TextDecoder().decode(value?.data),
          ]),
        ).toEqual([
          ["b", "", -3, "__interrupt__", value("").type, ""],
          ["a", "path", -1, "__error__", value("").type, 'why \0 " \\'],
        ]);
      }
      const [unasked] = await all(client.listThreads({ filter }));
      expect(unasked?.thread?.reasons).toEqual([]);
      expect((await client.getThread({ threadId })).thread?.reasons).toEqual([]);
    });

    it("looks at so many threads at the most", async () => {
      for (const name of ["few 1", "few 2", "few 3"]) await fill(thread(name), ["r"]);
      const client = clients[protocol];
      const filter = { threadIdPrefix: thread("few"), statuses: [ThreadStatus.PENDING] };
      const found = async (examineLimit?: number) =>
        (
          await all(
            client.listThreads({
              filter,
              order: 2,
              ...(examineLimit === undefined ? {} : { examineLimit }),
            }),
          )
        ).length;
      expect(await Promise.all([found(0), found(2), found(3), found()])).toEqual([0, 2, 3, 3]);
      const none = { ...filter, statuses: [ThreadStatus.FAILED] };
      expect(await all(client.listThreads({ filter: none, examineLimit: 1 }))).toEqual([]);
    });

    it("claims, renews and releases; a lost lease fences put and putWrites", async () => {
      const threadId = thread("claimed");
      await fill(threadId);
      const client = clients[protocol];
      const claim = { owner: "me", filter: { threadIdPrefix: threadId }, grace: durationFromMs(0) };
      const [claimed] = (await client.claimThreads(claim)).threads;
      const leaseToken = claimed?.leaseToken ?? "";
      expect(claimed).toMatchObject({ thread: { threadId, claim: { owner: "me" } } });
      expect((await client.claimThreads(claim)).threads).toEqual([]);
      expect((await client.claimThreads({ owner: "you", threadId })).threads).toEqual([]);
      const leaseDuration = durationFromMs(3_600_000);
      const { expireTime } = await client.renewClaim({ threadId, leaseToken, leaseDuration });
      expect(timestampDate(expireTime!).getTime() - Date.now()).toBeGreaterThan(3_000_000);

      const service = createClient(CheckpointService, createTransport(protocol, edge.server.url));
      const put = { threadId, checkpointId: "c3", checkpointJson: "{}" };
      const writes = [{ idx: 0, channel: "a", value: value("x") }];
      const putWrites = { threadId, checkpointId: "c3", taskId: "t", writes };
      await service.put({ ...put, leaseToken });
      await service.putWrites({ ...putWrites, leaseToken });
      await client.releaseClaim({ threadId, leaseToken: "not mine" });
      await client.renewClaim({ threadId, leaseToken });
      await client.releaseClaim({ threadId, leaseToken });
      await client.releaseClaim({ threadId, leaseToken });
      const before = await edge.rowCounts();
      for (const token of [leaseToken, "never was"]) {
        for (const call of [
          () => service.put({ ...put, checkpointId: "c4", leaseToken: token }),
          () => service.putWrites({ ...putWrites, taskId: "t2", leaseToken: token }),
          () =>
            service.putWrites({
              ...putWrites,
              writes: [{ ...writes[0]!, idx: -1 }],
              leaseToken: token,
            }),
          () => client.renewClaim({ threadId, leaseToken: token }),
        ]) {
          expectTold(await failureOf(call()), {
            code: Code.FailedPrecondition,
            reason: "LEASE_LOST",
            field: "lease_token",
          });
        }
      }
      expect(await edge.rowCounts()).toBe(before);
      const [again] = (await client.claimThreads(claim)).threads;
      await edge.clients.connect.deleteThread({ threadId });
      const late = service.put({ ...put, leaseToken: again?.leaseToken ?? "" });
      expect((await failureOf(late)).code).toBe(Code.FailedPrecondition);
      expect((await client.getThread({ threadId })).thread).toBeUndefined();
    });

    it("ends a lease by force, which fences its holder and is logged", async () => {
      // Not of the names that the log never holds: this line has it.
      const threadId = `forced-${protocol}`;
      await fill(threadId);
      const client = clients[protocol];
      const claim = { owner: `gone ${protocol}`, threadId };
      const leaseToken = (await client.claimThreads(claim)).threads[0]?.leaseToken ?? "";
      await client.releaseClaim({ threadId, leaseToken: "not mine" });
      expect((await client.claimThreads(claim)).threads).toEqual([]);
      await client.releaseClaim({ threadId, force: true });
      const said = "a lease was ended by force";
      expect(edge.captured.lines({ msg: said, threadId })).toMatchObject([{ owner: claim.owner }]);
      const service = createClient(CheckpointService, createTransport(protocol, edge.server.url));
      const late = service.put({ threadId, checkpointId: "c9", checkpointJson: "{}", leaseToken });
      expectTold(await failureOf(late), {
        code: Code.FailedPrecondition,
        reason: "LEASE_LOST",
        field: "lease_token",
      });
      expect((await client.claimThreads(claim)).threads).toHaveLength(1);
      await client.releaseClaim({ threadId, force: true });
      await client.releaseClaim({ threadId, force: true });
      const both = client.releaseClaim({ threadId, leaseToken, force: true });
      expectTold(await failureOf(both), {
        code: Code.InvalidArgument,
        reason: "OUT_OF_RANGE",
        field: "force",
      });
    });

    it("streams a channel's history", async () => {
      const threadId = thread("history");
      await fill(threadId);
      const history = await all(
        clients[protocol].getChannelHistory({ threadId, channels: ["a", "nothing"] }),
      );
      expect(history).toMatchObject([
        { checkpointId: "c1", writes: [], seeds: [{ channel: "a", version: "1" }] },
      ]);
      const none = { threadId: thread("nobody"), channels: ["a"] };
      expect(await all(clients[protocol].getChannelHistory(none))).toEqual([]);
      expect(await all(clients[protocol].getChannelHistory({ threadId }))).toEqual([]);
    });

    it("copies a thread whole or not at all", async () => {
      const [sourceThreadId, targetThreadId] = [thread("source"), thread("target")];
      await fill(sourceThreadId);
      const client = clients[protocol];
      const copies = await Promise.allSettled(
        [1, 2].map(() => client.copyThread({ sourceThreadId, targetThreadId })),
      );
      expect(copies.map(({ status }) => status).sort()).toEqual(["fulfilled", "rejected"]);
      const read = async (threadId: string) =>
        (await all(edge.clients.connect.list({ threadId }))).map(({ tuple }) => ({
          ...tuple,
          key: { ...tuple?.key, threadId: "" },
        }));
      expect(await read(targetThreadId)).toEqual(await read(sourceThreadId));
      const again = client.copyThread({ sourceThreadId, targetThreadId: sourceThreadId });
      expectTold(await failureOf(again), {
        code: Code.FailedPrecondition,
        reason: "TARGET_NOT_EMPTY",
        field: "target_thread_id",
      });
      const [writes, blobs] = [thread("only writes"), thread("only blobs")];
      await edge.sql.query(
        `insert into checkpoint_writes (thread_id, checkpoint_id, task_id, idx, channel, blob)
         values ($1, 'c', 't', 0, 'a', '')`,
        [writes],
      );
      await edge.sql.query(
        `insert into checkpoint_blobs (thread_id, channel, version, type) values ($1, 'a', '1', 'empty')`,
        [blobs],
      );
      for (const targetThreadId of [writes, blobs]) {
        const call = client.copyThread({ sourceThreadId, targetThreadId });
        expect((await failureOf(call)).code).toBe(Code.FailedPrecondition);
      }
      const nothing = { sourceThreadId: thread("nobody"), targetThreadId: thread("nobody 2") };
      expect((await client.copyThread(nothing)).copied).toEqual(create(ThreadCountsSchema));
    });

    it("deletes runs in all threads and namespaces, and keeps what others share", async () => {
      const client = clients[protocol];
      const runs = ["1", "2", "3"].map((n) => `${protocol} ${n}`);
      await fill(thread("runs 1"), runs);
      await fill(thread("runs 2"), runs);
      expect((await client.deleteRuns({ runIds: ["unknown"] })).removed).toEqual(counts(0, 0, 0));
      expect((await client.deleteRuns({})).removed).toEqual(counts(0, 0, 0));
      const { removed } = await client.deleteRuns({ runIds: [runs[0]!, runs[2]!] });
      expect(removed).toEqual(counts(8, 8, 4));
      for (const ns of ["", "child:1"]) {
        expect(await ids(thread("runs 2"), ns)).toEqual(["c1"]);
        const { tuple } = await edge.clients.connect.getTuple({
          threadId: thread("runs 1"),
          checkpointNs: ns,
        });
        expect(tuple?.blobs.map(({ channel }) => channel).sort()).toEqual(["a", "shared"]);
      }
      // A later run that rebuilds a delta channel from an earlier one.
      const threadId = thread("delta");
      for (const [i, run] of ["x", "y"].entries()) {
        await edge.clients.connect.put({
          threadId,
          checkpointId: `d${i}`,
          parentCheckpointId: i === 0 ? "" : "d0",
          checkpointJson: JSON.stringify({ v: 4, channel_versions: { items: i } }),
          metadataJson: JSON.stringify({
            run_id: `${protocol} ${run}`,
            counters_since_delta_snapshot: { items: [1, i + 1] },
          }),
          blobs: [{ channel: "items", version: String(i) }],
        });
      }
      const before = await edge.rowCounts();
      expectTold(await failureOf(client.deleteRuns({ runIds: [`${protocol} x`] })), {
        code: Code.FailedPrecondition,
        reason: "STILL_NEEDED",
        field: "run_ids",
      });
      expect(await edge.rowCounts()).toBe(before);
      await client.deleteRuns({ runIds: [`${protocol} x`, `${protocol} y`] });
      expect(await ids(threadId, "")).toEqual([]);
    });

    it("prunes each namespace to its latest, other threads untouched", async () => {
      const client = clients[protocol];
      const [one, two, other] = ["one", "two", "other"].map((name) => thread(`prune ${name}`));
      for (const threadId of [one!, two!, other!]) await fill(threadId);
      const keepLast = { case: "keepLast", value: 1 } as const;
      const threadIds = [one!, two!, thread("nobody")];
      const dry = await all(client.pruneThreads({ threadIds, strategy: keepLast, dryRun: true }));
      const real = await all(client.pruneThreads({ threadIds, strategy: keepLast }));
      expect(real).toEqual(dry);
      expect(real.filter(({ threadId }) => threadId !== "")).toMatchObject([
        { threadId: one, removed: counts(4, 4, 0) },
        { threadId: two, removed: counts(4, 4, 0) },
      ]);
      expect(real.at(-1)?.threadsExamined).toBe(3n);
      for (const ns of ["", "child:1"]) {
        expect(await ids(one!, ns)).toEqual(["c2"]);
        expect(await ids(other!, ns)).toEqual(["c2", "c1", "c0"]);
        const { tuple } = await edge.clients.connect.getTuple({ threadId: one!, checkpointNs: ns });
        expect(tuple?.pendingWrites).toHaveLength(1);
      }
      const strategy = { case: "delete", value: true } as const;
      const filter = { threadIdPrefix: thread("prune ") };
      const deleted = await all(client.pruneThreads({ filter, strategy }));
      expect(deleted.filter(({ threadId }) => threadId !== "")).toHaveLength(3);
      expect(await ids(other!, "child:1")).toEqual([]);
    });
  });
}

describe("bad input", () => {
  const long = (bytes: number) => "x".repeat(bytes + 1);
  const threadId = "t";
  const filters: [string, ErrorReason, MessageInitShape<typeof ThreadFilterSchema>][] = [
    ["filter.statuses[0]", "OUT_OF_RANGE", { statuses: [0] }],
    ["filter.statuses[1]", "OUT_OF_RANGE", { statuses: [1, 9 as never] }],
    ["filter.statuses", "TOO_MANY", { statuses: [1, 2, 3, 4, 1] }],
    ["filter.thread_id_prefix", "TOO_LONG", { threadIdPrefix: long(65_536) }],
    ["filter.thread_id_prefix", "NUL_CHARACTER", { threadIdPrefix: "\0" }],
    ["filter.metadata_filter_json", "NOT_A_JSON_OBJECT", { metadataFilterJson: "[1]" }],
    ["filter.metadata_filter_json", "INVALID_JSON", { metadataFilterJson: "{x" }],
    ["filter.metadata_filter_json", "NUL_CHARACTER", { metadataFilterJson: '{"a":"\\u0000"}' }],
  ];
  const claim = (
    field: string,
    reason: ErrorReason,
    change: MessageInitShape<typeof ClaimThreadsRequestSchema>,
  ) => [field, reason, (c: Threads) => c.claimThreads({ owner: "me", ...change })] as const;
  const prune = (
    field: string,
    reason: ErrorReason,
    change: MessageInitShape<typeof PruneThreadsRequestSchema>,
  ) =>
    [
      field,
      reason,
      (c: Threads) => all(c.pruneThreads({ strategy: { case: "keepLast", value: 1 }, ...change })),
    ] as const;
  const cases: (readonly [string, ErrorReason, (client: Threads) => Promise<unknown>])[] = [
    ...filters.flatMap(
      ([field, reason, filter]) =>
        [
          [field, reason, (c: Threads) => all(c.listThreads({ filter }))],
          [field, reason, (c: Threads) => all(c.listThreads({ filter, order: 2 }))],
          claim(field, reason, { filter }),
          prune(field, reason, { filter }),
        ] as const,
    ),
    ["order", "OUT_OF_RANGE", (c) => all(c.listThreads({ order: 3 as never }))],
    ["limit", "OUT_OF_RANGE", (c) => all(c.listThreads({ limit: -1 }))],
    ["after.thread_id", "REQUIRED", (c) => all(c.listThreads({ after: {} }))],
    ["after.update_time", "REQUIRED", (c) => all(c.listThreads({ after: { threadId } }))],
    ["thread_id", "REQUIRED", (c) => c.getThread({})],
    ["thread_id", "TOO_LONG", (c) => c.getThread({ threadId: long(65_536) })],
    ["thread_id", "NUL_CHARACTER", (c) => c.getThread({ threadId: "\0" })],
    claim("owner", "REQUIRED", { owner: "" }),
    claim("owner", "TOO_LONG", { owner: long(256) }),
    claim("thread_id", "TOO_LONG", { threadId: long(65_536) }),
    claim("limit", "OUT_OF_RANGE", { limit: 1_001 }),
    claim("limit", "OUT_OF_RANGE", { limit: -1 }),
    claim("lease_duration", "OUT_OF_RANGE", { leaseDuration: durationFromMs(999) }),
    claim("lease_duration", "OUT_OF_RANGE", { leaseDuration: durationFromMs(3_600_001) }),
    claim("grace", "OUT_OF_RANGE", { grace: durationFromMs(-1) }),
    ["thread_id", "REQUIRED", (c) => c.renewClaim({ leaseToken: "x" })],
    ["lease_token", "REQUIRED", (c) => c.renewClaim({ threadId })],
    ["lease_token", "TOO_LONG", (c) => c.renewClaim({ threadId, leaseToken: long(64) })],
    [
      "lease_duration",
      "OUT_OF_RANGE",
      (c) => c.renewClaim({ threadId, leaseToken: "x", leaseDuration: durationFromMs(0) }),
    ],
    ["lease_token", "REQUIRED", (c) => c.releaseClaim({ threadId })],
    ["thread_id", "REQUIRED", (c) => all(c.getChannelHistory({}))],
    [
      "checkpoint_ns",
      "TOO_LONG",
      (c) => all(c.getChannelHistory({ threadId, checkpointNs: long(65_536) })),
    ],
    [
      "checkpoint_id",
      "TOO_LONG",
      (c) => all(c.getChannelHistory({ threadId, checkpointId: long(65_536) })),
    ],
    ["channels[1]", "REQUIRED", (c) => all(c.getChannelHistory({ threadId, channels: ["a", ""] }))],
    [
      "channels[1]",
      "DUPLICATE",
      (c) => all(c.getChannelHistory({ threadId, channels: ["a", "a"] })),
    ],
    [
      "channels",
      "TOO_MANY",
      (c) =>
        all(
          c.getChannelHistory({
            threadId,
            channels: Array.from({ length: 100_001 }, (_, i) => `${i}`),
          }),
        ),
    ],
    ["source_thread_id", "REQUIRED", (c) => c.copyThread({ targetThreadId: "x" })],
    ["target_thread_id", "REQUIRED", (c) => c.copyThread({ sourceThreadId: "x" })],
    [
      "target_thread_id",
      "NUL_CHARACTER",
      (c) => c.copyThread({ sourceThreadId: "x", targetThreadId: "\0" }),
    ],
    ["run_ids[0]", "REQUIRED", (c) => c.deleteRuns({ runIds: [""] })],
    ["run_ids[0]", "TOO_LONG", (c) => c.deleteRuns({ runIds: [long(65_536)] })],
    ["run_ids[1]", "DUPLICATE", (c) => c.deleteRuns({ runIds: ["a", "a"] })],
    ["strategy", "REQUIRED", (c) => all(c.pruneThreads({}))],
    prune("keep_last", "OUT_OF_RANGE", { strategy: { case: "keepLast", value: 0 } }),
    prune("keep_last", "OUT_OF_RANGE", { strategy: { case: "keepLast", value: 1_000_001 } }),
    prune("delete", "OUT_OF_RANGE", { strategy: { case: "delete", value: false } }),
    prune("older_than", "OUT_OF_RANGE", { olderThan: durationFromMs(-1) }),
    prune("thread_ids[0]", "REQUIRED", { threadIds: [""] }),
    prune("thread_ids", "OUT_OF_RANGE", { threadIds: ["a"], filter: {} }),
    // JSON cannot even say a time outside of the years 1 to 9999.
  ];

  test.each(cases.map(([field, reason, call], i) => [i, field, reason, call] as const))(
    "%i: %s: %s",
    async (_, field, reason, call) => {
      for (const protocol of protocols) {
        const before = await edge.rowCounts();
        const error = await failureOf(call(clients[protocol]));
        expect(error.code, protocol).toBe(Code.InvalidArgument);
        expect(error.rawMessage).toMatch(new RegExp(`^${field.replace(/[[\].]/g, "\\$&")}: `));
        expect(errorDetail(error)?.reason, protocol).toBe(reason);
        expect(await edge.rowCounts()).toBe(before);
      }
    },
  );

  it("refuses times beyond the years 1 to 9999, where the protocol can say them", async () => {
    for (const protocol of ["connect", "grpc", "grpc-web"] as const) {
      for (const field of ["updatedAfter", "updatedBefore"] as const) {
        const filter = { [field]: timestampFromMs(8.64e15) };
        const error = await failureOf(all(clients[protocol].listThreads({ filter })));
        expect(errorDetail(error)?.reason).toBe("OUT_OF_RANGE");
      }
    }
  });
});
