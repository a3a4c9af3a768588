/**
 * Every field of every request, as the descriptors have them now and later: each has a rule here,
 * and the service keeps to it on an RPC and on a session. A field without a rule fails.
 */
import { lookup } from "node:dns";
import {
  create,
  type DescField,
  type DescMessage,
  type MessageInitShape,
} from "@bufbuild/protobuf";
import { reflect } from "@bufbuild/protobuf/reflect";
import { Code, ConnectError } from "@connectrpc/connect";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type Service, withFallback } from "../client/carrier.js";
import { ClientSession } from "../client/client_session.js";
import { Endpoint } from "../client/endpoint.js";
import { errorDetail } from "../client/retry.js";
import { createSessionCarrier } from "../client/session_carrier.js";
import { openUpgraded } from "../client/session_socket.js";
import { createUnaryCarrier } from "../client/unary_carrier.js";
import type { ErrorReason } from "../errors.js";
import { type CallName, operations, type RequestInit, streams } from "../protocol/operations.js";
import { createTransport, startEdge } from "../testing/edge.js";

/** A value that is refused, and how. */
interface Refusal {
  value: unknown;
  reason: ErrorReason;
  limit?: number;
}

/** What a field may hold: the values here are refused, and nothing else is said about it. */
type Rule = readonly Refusal[];

/** Of any length. */
const endless: Rule = [{ value: "a\0b", reason: "NUL_CHARACTER" }];
const text = (limit: number): Rule => [
  { value: "x".repeat(limit + 1), reason: "TOO_LONG", limit },
  { value: `${"é".repeat(limit / 2)}x`, reason: "TOO_LONG", limit },
  { value: "a\0b", reason: "NUL_CHARACTER" },
];
const name = (limit: number): Rule => [{ value: "", reason: "REQUIRED" }, ...text(limit)];
const names = (limit: number, most = 1_000): Rule => [
  { value: [""], reason: "REQUIRED" },
  { value: ["x".repeat(limit + 1)], reason: "TOO_LONG", limit },
  { value: ["a\0b"], reason: "NUL_CHARACTER" },
  { value: ["twice", "twice"], reason: "DUPLICATE" },
  { value: Array.from({ length: most + 1 }, (_, i) => `${i}`), reason: "TOO_MANY", limit: most },
];
const json: Rule = [
  { value: "[]", reason: "NOT_A_JSON_OBJECT" },
  { value: '"text"', reason: "NOT_A_JSON_OBJECT" },
  { value: "{", reason: "INVALID_JSON" },
  { value: '{"a": "\0"}', reason: "NUL_CHARACTER" },
];
const atLeast = (least: number): Rule => [
  { value: least - 1, reason: "OUT_OF_RANGE" },
  { value: -(2 ** 31), reason: "OUT_OF_RANGE" },
];
const upTo = (most: number): Rule => [
  ...atLeast(0),
  { value: most + 1, reason: "OUT_OF_RANGE", limit: most },
];
const known: Rule = [
  { value: 99, reason: "OUT_OF_RANGE" },
  { value: -1, reason: "OUT_OF_RANGE" },
];
const duration = (least: number, most: number): Rule => [
  { value: { seconds: BigInt(least) - 1n, nanos: 0 }, reason: "OUT_OF_RANGE", limit: least },
  { value: { seconds: BigInt(most) + 1n, nanos: 0 }, reason: "OUT_OF_RANGE", limit: most },
  { value: { seconds: BigInt(least), nanos: -1 }, reason: "OUT_OF_RANGE" },
];
const time: Rule = [
  { value: { seconds: -62_135_596_801n, nanos: 0 }, reason: "OUT_OF_RANGE" },
  { value: { seconds: 253_402_300_800n, nanos: 0 }, reason: "OUT_OF_RANGE" },
  { value: { seconds: 0n, nanos: 1_000_000_000 }, reason: "OUT_OF_RANGE" },
];
const required: Rule = [{ value: undefined, reason: "REQUIRED" }];
/** Any value of its type does, within the limit of a message. */
const free: Rule = [];
/** Has only the rules of what is in it. */
const parts: Rule = [];
const hour = 60 * 60;
const day = 24 * hour;

const rules: Record<string, Rule> = {
  "GetTupleRequest.thread_id": name(65_536),
  "GetTupleRequest.checkpoint_ns": text(65_536),
  "GetTupleRequest.checkpoint_id": text(65_536),
  "PutRequest.thread_id": name(65_536),
  "PutRequest.checkpoint_ns": text(65_536),
  "PutRequest.checkpoint_id": name(65_536),
  "PutRequest.parent_checkpoint_id": endless,
  "PutRequest.checkpoint_json": [{ value: "", reason: "REQUIRED" }, ...json],
  "PutRequest.metadata_json": json,
  "PutRequest.lease_token": text(64),
  "PutRequest.blobs": [
    { value: Array(100_001).fill({ channel: "c" }), reason: "TOO_MANY", limit: 100_000 },
    { value: Array(2).fill({ channel: "c", version: "1" }), reason: "DUPLICATE" },
  ],
  "ChannelBlob.channel": name(65_536),
  "ChannelBlob.version": name(65_536),
  "ChannelBlob.value": parts,
  "Value.type": [...name(256), { value: "empty", reason: "RESERVED" }],
  "Value.data": free,
  "PutWritesRequest.thread_id": name(65_536),
  "PutWritesRequest.checkpoint_ns": text(65_536),
  "PutWritesRequest.checkpoint_id": name(65_536),
  "PutWritesRequest.task_id": name(65_536),
  "PutWritesRequest.task_path": endless,
  "PutWritesRequest.lease_token": text(64),
  "PutWritesRequest.writes": [
    { value: Array(100_001).fill({ channel: "c" }), reason: "TOO_MANY", limit: 100_000 },
  ],
  "Write.idx": free,
  "Write.channel": [{ value: "", reason: "REQUIRED" }, ...endless],
  "Write.value": required,
  "ListRequest.thread_id": name(65_536),
  "ListRequest.checkpoint_ns": text(65_536),
  "ListRequest.checkpoint_id": name(65_536),
  "ListRequest.metadata_filter_json": json,
  "ListRequest.before_checkpoint_id": name(65_536),
  "ListRequest.limit": atLeast(0),
  "ListRequest.after": parts,
  "ListRequest.view": known,
  "ListRequest.omit_unchanged": free,
  "ListRequest.max_value_bytes": atLeast(0),
  "ListRequest.only_values": [
    { value: Array(100_001).fill({ channel: "c" }), reason: "TOO_MANY", limit: 100_000 },
  ],
  "ValueName.channel": [{ value: "", reason: "REQUIRED" }, ...endless],
  "ValueName.task_id": text(65_536),
  "ValueName.idx": free,
  "CheckpointKey.thread_id": name(65_536),
  "CheckpointKey.checkpoint_ns": text(65_536),
  "CheckpointKey.checkpoint_id": name(65_536),
  "DeleteThreadRequest.thread_id": name(65_536),
  "ListPageRequest.list": required,
  "ListPageRequest.max_tuples": free,
  "ListPageRequest.after_checkpoint_json": free,
  "PutExtendingRequest.put": required,
  "PutExtendingRequest.prefixes": [
    { value: Array(100_001).fill({ version: "1" }), reason: "TOO_MANY", limit: 100_000 },
  ],
  "StoredPrefix.blob_index": [{ value: 7, reason: "OUT_OF_RANGE" }],
  "StoredPrefix.version": name(65_536),
  "StoredPrefix.transaction_id": [
    ...name(10),
    { value: "08", reason: "OUT_OF_RANGE" },
    { value: "4294967296", reason: "OUT_OF_RANGE" },
  ],
  "StoredPrefix.length": [{ value: 0, reason: "OUT_OF_RANGE", limit: 1 }],
  "StoredPrefix.offset": [{ value: 1024 ** 3 + 1, reason: "OUT_OF_RANGE", limit: 1024 ** 3 }],
  "StoredPrefix.head_length": [{ value: 4, reason: "OUT_OF_RANGE", limit: 3 }],
  "GetThreadRequest.thread_id": name(65_536),
  "GetThreadRequest.with_counts": free,
  "GetThreadRequest.with_reasons": free,
  "ListThreadsRequest.filter": parts,
  "ListThreadsRequest.order": known,
  "ListThreadsRequest.limit": atLeast(0),
  "ListThreadsRequest.with_counts": free,
  "ListThreadsRequest.with_reasons": free,
  "ListThreadsRequest.examine_limit": atLeast(0),
  "ListThreadsRequest.after": parts,
  "ThreadPosition.thread_id": name(65_536),
  "ThreadPosition.update_time": [...time, ...required],
  "ThreadFilter.statuses": [
    { value: [0], reason: "OUT_OF_RANGE" },
    { value: [99], reason: "OUT_OF_RANGE" },
    { value: [1, 2, 3, 4, 1], reason: "TOO_MANY", limit: 4 },
  ],
  "ThreadFilter.thread_id_prefix": text(65_536),
  "ThreadFilter.metadata_filter_json": json,
  "ThreadFilter.updated_after": time,
  "ThreadFilter.updated_before": time,
  "ThreadFilter.graph": endless,
  "ClaimThreadsRequest.owner": name(256),
  "ClaimThreadsRequest.lease_duration": duration(1, hour),
  "ClaimThreadsRequest.limit": upTo(1_000),
  "ClaimThreadsRequest.grace": duration(0, 365 * day),
  "ClaimThreadsRequest.filter": parts,
  "ClaimThreadsRequest.thread_id": text(65_536),
  "ClaimThreadsRequest.except_thread_ids": names(65_536),
  "RenewClaimRequest.thread_id": name(65_536),
  "RenewClaimRequest.lease_token": name(64),
  "RenewClaimRequest.lease_duration": duration(1, hour),
  "ReleaseClaimRequest.thread_id": name(65_536),
  "ReleaseClaimRequest.lease_token": name(64),
  // The valid request has a token.
  "ReleaseClaimRequest.force": [{ value: true, reason: "OUT_OF_RANGE" }],
  "GetChannelHistoryRequest.thread_id": name(65_536),
  "GetChannelHistoryRequest.checkpoint_ns": text(65_536),
  "GetChannelHistoryRequest.checkpoint_id": text(65_536),
  "GetChannelHistoryRequest.channels": names(65_536, 100_000),
  "GetChannelHistoryRequest.with_seals": free,
  "CopyThreadRequest.source_thread_id": name(65_536),
  "CopyThreadRequest.target_thread_id": name(65_536),
  "DeleteRunsRequest.run_ids": names(65_536),
  "PruneThreadsRequest.filter": parts,
  "PruneThreadsRequest.thread_ids": names(65_536),
  "PruneThreadsRequest.keep_last": [
    { value: 0, reason: "OUT_OF_RANGE", limit: 1_000_000 },
    { value: 1_000_001, reason: "OUT_OF_RANGE", limit: 1_000_000 },
  ],
  "PruneThreadsRequest.delete": [{ value: false, reason: "OUT_OF_RANGE" }],
  "PruneThreadsRequest.older_than": duration(0, 36_525 * day),
  "PruneThreadsRequest.dry_run": free,
  "PruneThreadsRequest.after_thread_id": text(65_536),
};

const value = { type: "bytes", data: new Uint8Array(3) };
const put = {
  threadId: "t",
  checkpointId: "1",
  checkpointJson: "{}",
  blobs: [{ channel: "c", version: "1", value }],
};
const list = { after: { threadId: "t", checkpointId: "1" }, onlyValues: [{ channel: "c" }] };
const filter = { updatedAfter: { seconds: 0n }, updatedBefore: { seconds: 1n } };

/** A request of each call that is answered, with every message in it that a request can hold. */
const valid: { [Name in CallName]: RequestInit<Name> } = {
  getTuple: { threadId: "t" },
  put,
  putExtending: {
    put,
    prefixes: [{ blobIndex: 0, version: "1", transactionId: "7", length: 1 }],
  },
  putWrites: {
    threadId: "t",
    checkpointId: "1",
    taskId: "t",
    writes: [{ idx: 0, channel: "c", value }],
  },
  deleteThread: { threadId: "t" },
  list,
  listPage: { list },
  getThread: { threadId: "t" },
  listThreads: { filter, after: { threadId: "t", updateTime: { seconds: 0n } } },
  claimThreads: { owner: "o", filter },
  renewClaim: { threadId: "t", leaseToken: "l" },
  releaseClaim: { threadId: "t", leaseToken: "l" },
  getChannelHistory: { threadId: "t" },
  copyThread: { sourceThreadId: "t", targetThreadId: "u" },
  deleteRuns: {},
  pruneThreads: { filter, strategy: { case: "keepLast", value: 1 } },
};

/** A field of a request: the way to it, of fields and places in lists. */
type Path = (DescField | number)[];

/** Every field of a message, and of the messages in it that are no library's. */
function fieldsOf(schema: DescMessage, before: Path = []): Path[] {
  return schema.fields.flatMap((field) => {
    const path = [...before, field];
    const isOurs = field.message && !field.message.typeName.startsWith("google.protobuf.");
    if (!isOurs) return [path];
    const inner = field.fieldKind === "list" ? [...path, 0] : path;
    return [path, ...fieldsOf(field.message as DescMessage, inner)];
  });
}

const keyOf = (field: DescField) =>
  `${field.parent.typeName.replace("checkpointd.v1.", "")}.${field.name}`;

/** As errors name a field; those of a put with prefixes as a put does, and of a page as a list. */
function toText(path: Path): string {
  let text = "";
  for (const part of path) {
    if (typeof part === "number") text += `[${part}]`;
    else text += `${text === "" ? "" : "."}${part.name}`;
  }
  return text.replace(/^(put|list)\./, "");
}

/** The call's valid request, with another value in that field. */
function withValue(call: CallName, path: Path, value: unknown) {
  const schema: DescMessage = { ...operations, ...streams }[call].input;
  const request = create(schema, valid[call] as MessageInitShape<DescMessage>);
  // What it refers to is not stored, which would be said first.
  if ("prefixes" in request && toText(path.slice(0, 1)) === "put") request.prefixes = [];
  let message = reflect(schema, request);
  for (const [i, part] of path.slice(0, -1).entries()) {
    if (typeof part === "number") continue;
    const inner = message.get(part);
    message = (typeof path[i + 1] === "number" ? [...(inner as never)][0] : inner) as never;
  }
  const field = path.at(-1) as DescField;
  if (value === undefined) {
    message.clear(field);
  } else {
    const init = create(field.parent, { [field.localName]: value } as never);
    const oneof = { [field.oneof?.localName ?? ""]: { case: field.localName, value } };
    const part = field.oneof ? create(field.parent, oneof as never) : init;
    message.set(field, reflect(field.parent, part).get(field) as never);
  }
  return request;
}

let edge: Awaited<ReturnType<typeof startEdge>>;
let carriers: [string, Service][] = [];
beforeAll(async () => {
  edge = await startEdge();
  const unary = createUnaryCarrier(createTransport("connect", edge.server.url), undefined);
  const address = { endpoint: new Endpoint(edge.server.url, lookup as never), headers: undefined };
  const sessions = createSessionCarrier(
    () => new ClientSession((signal) => openUpgraded(address, signal), 2 ** 30),
  );
  carriers = [
    ["RPCs", unary],
    ["a session", { ...unary, ...withFallback(sessions.carrier, unary) }],
  ];
  return () => sessions.abort(new ConnectError("the test is over"));
});
afterAll(() => edge.stop());

async function ask(service: Service, call: CallName, request: unknown): Promise<unknown> {
  const context = { deadline: performance.now() + 20_000 };
  const answer = (service[call] as (request: unknown, context: object) => unknown)(
    request,
    context,
  );
  if (!(call in streams)) return answer;
  const messages = [];
  for await (const message of answer as AsyncIterable<unknown>) messages.push(message);
  return messages;
}

const calls = { ...operations, ...streams } as Record<CallName, { input: DescMessage }>;
const fields = Object.entries(calls).flatMap(([call, { input }]) =>
  fieldsOf(input).map((path) => ({ call: call as CallName, path, text: toText(path) })),
);

describe.each(fields)("$call: $text", ({ call, path, text }) => {
  const field = path.at(-1) as DescField;
  it("has a rule, which the service keeps", async () => {
    const rule = rules[keyOf(field)];
    expect(rule, `no rule for ${keyOf(field)}: write one above`).toBeDefined();
    const before = await edge.rowCounts();
    for (const { value, reason, limit } of rule ?? []) {
      // What only sessions have is no RPC.
      const on = call in operations && !("kind" in calls[call]) ? carriers.slice(1) : carriers;
      for (const [carrier, service] of on) {
        const shown = `${JSON.stringify(value, (_, v) => `${v}`)?.slice(0, 40)} on ${carrier}`;
        const error = await ask(service, call, withValue(call, path, value)).then(
          () => undefined,
          (error) => error,
        );
        expect(error, shown).toBeInstanceOf(ConnectError);
        expect([shown, error.code]).toEqual([shown, Code.InvalidArgument]);
        const detail = errorDetail(error);
        expect([shown, detail?.reason]).toEqual([shown, reason]);
        expect(detail?.field.startsWith(text), `${detail?.field} of ${text}`).toBe(true);
        if (limit !== undefined) expect([shown, Number(detail?.limit)]).toEqual([shown, limit]);
      }
    }
    expect(await edge.rowCounts()).toBe(before);
  });
});

it("has no rule for a field that is gone", () => {
  const now = new Set(fields.map(({ path }) => keyOf(path.at(-1) as DescField)));
  expect(Object.keys(rules).filter((key) => !now.has(key))).toEqual([]);
});

it.each(Object.keys(calls) as CallName[])("refuses something of %s", (call) => {
  const own = fields.filter((field) => field.call === call);
  expect(own.some(({ path }) => (rules[keyOf(path.at(-1) as DescField)] ?? []).length > 0)).toBe(
    true,
  );
});
