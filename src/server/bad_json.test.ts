/** JSON text that Postgres cannot store, in each field that holds one. */
import { Code } from "@connectrpc/connect";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { ErrorDetailSchema } from "../../gen/checkpointd/v1/checkpoint_pb.js";
import type { ErrorReason } from "../errors.js";
import {
  type Call,
  expectHarmless,
  failureOf,
  make,
  postJson,
  secret,
  startEdge,
  toRaw,
  ways,
} from "../testing/edge.js";

let edge: Awaited<ReturnType<typeof startEdge>>;
beforeAll(async () => {
  edge = await startEdge();
});
afterAll(async () => {
  expect(edge.captured.lines({ code: "InvalidArgument" }).length).toBeGreaterThan(50);
  expect(edge.captured.lines({ code: "Internal" })).toEqual([]);
  expect(edge.captured.text()).not.toContain(secret);
  await edge.stop();
});

const whole = { threadId: `${secret}-json`, checkpointId: "1", checkpointJson: "{}" };

const fields: Record<string, (json: string) => Call> = {
  checkpoint_json: (json) => ({ rpc: "put", request: { ...whole, checkpointJson: json } }),
  metadata_json: (json) => ({ rpc: "put", request: { ...whole, metadataJson: json } }),
  metadata_filter_json: (json) => ({ rpc: "list", request: { metadataFilterJson: json } }),
};

const deep = (open: string, close: string) =>
  `{"${secret}":${open.repeat(100_000)}${close.repeat(100_000)}}`;

const refused: [string, string, ErrorReason][] = [
  ["an array", `["${secret}"]`, "NOT_A_JSON_OBJECT"],
  ["a string", `"${secret}"`, "NOT_A_JSON_OBJECT"],
  ["a number", "1", "NOT_A_JSON_OBJECT"],
  ["null", "null", "NOT_A_JSON_OBJECT"],
  ["true", "true", "NOT_A_JSON_OBJECT"],
  ["a bare word", secret, "NOT_A_JSON_OBJECT"],
  ["white space", " \n\t", "NOT_A_JSON_OBJECT"],
  ["an object cut short", `{"${secret}":`, "INVALID_JSON"],
  ["two objects", `{"${secret}":1}{}`, "INVALID_JSON"],
  ["text after the object", `{} ${secret}`, "INVALID_JSON"],
  ["single quotes", `{'${secret}':1}`, "INVALID_JSON"],
  ["a trailing comma", `{"${secret}":1,}`, "INVALID_JSON"],
  ["NaN", `{"${secret}":NaN}`, "INVALID_JSON"],
  ["a hexadecimal number", `{"${secret}":0x10}`, "INVALID_JSON"],
  ["an unknown escape", `{"${secret}":"\\x41"}`, "INVALID_JSON"],
  ["half an escape", `{"${secret}":"\\u12"}`, "INVALID_JSON"],
  ["a raw line break in a string", `{"${secret}":"\n"}`, "INVALID_JSON"],
  ["a byte-order mark", `\ufeff{"${secret}":1}`, "INVALID_JSON"],
  ["a no-break space", `\u00a0{"${secret}":1}`, "INVALID_JSON"],
  ["a raw NUL", `{"${secret}":"\0"}`, "NUL_CHARACTER"],
  ["\\u0000 in a value", `{"a":"${secret}\\u0000"}`, "NUL_CHARACTER"],
  ["\\u0000 in a key", `{"\\u0000${secret}":1}`, "NUL_CHARACTER"],
  ["\\u0000 after an escaped backslash", `{"a":"${secret}\\\\\\u0000"}`, "NUL_CHARACTER"],
  ["\\u0000 deep down", `{"a":[[{"b":["${secret}\\u0000"]}]]}`, "NUL_CHARACTER"],
  ["a high surrogate alone", `{"a":"${secret}\\ud83d"}`, "LONE_SURROGATE"],
  ["a low surrogate alone", `{"a":"${secret}\\uDE00"}`, "LONE_SURROGATE"],
  ["a pair the wrong way round", `{"a":"\\ude00\\ud83d${secret}"}`, "LONE_SURROGATE"],
  ["two high surrogates", `{"a":"\\ud83d\\ud83d\\ude00${secret}"}`, "LONE_SURROGATE"],
  ["a lone surrogate in a key", `{"\\ud83d${secret}":1}`, "LONE_SURROGATE"],
  ["a number out of Postgres's range", `{"${secret}":1e200000}`, "INVALID_JSON"],
  ["arrays nested 100,000 deep", deep("[", "]"), "INVALID_JSON"],
  ["objects nested 100,000 deep", deep('{"a":', "}").replace(":}", ":1}"), "INVALID_JSON"],
  ["100,000 brackets that are never closed", deep("[", ""), "INVALID_JSON"],
];

for (const [field, fill] of Object.entries(fields)) {
  describe(field, () => {
    for (const [name, json, reason] of refused) {
      test(name, async () => {
        const before = await edge.rowCounts();
        const call = fill(json);
        // A filter is short.
        const isLong = field === "metadata_filter_json" && json.length > 65_536;
        for (const way of ways) {
          const error = await failureOf(make(edge.clients[way], call));
          const [detail] = error.findDetails(ErrorDetailSchema);
          expect({ code: error.code, reason: detail?.reason }).toEqual({
            code: Code.InvalidArgument,
            reason: isLong ? "TOO_LONG" : reason,
          });
          // Of two fields in one statement Postgres does not say which it refused, and what
          // it alone refuses is not always found again.
          expect(detail?.field.split(" or ")).toContain(field);
          expectHarmless(error.rawMessage);
        }
        expect(await edge.rowCounts()).toBe(before);
      });
    }

    // Over JSON the text is a string within JSON, so one more level of escapes can break it.
    test("a raw lone surrogate", async () => {
      const before = await edge.rowCounts();
      const { rpc, json } = toRaw(fill(`{"${secret}":"LONE"}`));
      const { error } = await postJson(edge.server.url, rpc, json.replace("LONE", "\\ud800"));
      expect(error?.code).toBe("invalid_argument");
      expect(error?.message).toContain(field);
      expectHarmless(error?.message ?? "");
      expect(await edge.rowCounts()).toBe(before);
    });
  });
}

test("checkpoint_json is required", async () => {
  await edge.expectRefused(fields.checkpoint_json?.("") as Call, {
    code: Code.InvalidArgument,
    reason: "REQUIRED",
    field: "checkpoint_json",
  });
});

/** What looks wrong and is stored, and how Postgres gives it back. */
const stored: [string, string, string][] = [
  ["an escaped backslash before u0000", '{"a": "\\\\u0000"}', '{"a": "\\\\u0000"}'],
  ["an escaped backslash before ud800", '{"a": "\\\\ud800"}', '{"a": "\\\\ud800"}'],
  ["four backslashes before u0000", '{"a": "\\\\\\\\u0000"}', '{"a": "\\\\\\\\u0000"}'],
  ["a surrogate pair in escapes", '{"a": "\\ud83d\\ude00"}', '{"a": "😀"}'],
  ["white space around", ' \n\t{"a": 1}\r\n ', '{"a": 1}'],
  ["a 64-bit integer", '{"a": 9223372036854775807}', '{"a": 9223372036854775807}'],
  ["a number of 40 digits", `{"a": ${"12345".repeat(8)}}`, `{"a": ${"12345".repeat(8)}}`],
  ["a decimal with trailing zeros", '{"a": 1.500}', '{"a": 1.500}'],
  ["a key twice: the last wins", '{"a": 1, "a": 2}', '{"a": 2}'],
  ["an empty key", '{"": null}', '{"": null}'],
  ["a key that JavaScript treats specially", '{"__proto__": {"x": 1}}', '{"__proto__": {"x": 1}}'],
];

for (const [name, json, expected] of stored) {
  test(`stored: ${name}`, async () => {
    const { connect } = edge.clients;
    const key = { threadId: `${secret}-stored`, checkpointId: "1" };
    await connect.put({ ...key, checkpointJson: json, metadataJson: json });
    const { tuple } = await connect.getTuple(key);
    expect(tuple).toMatchObject({ checkpointJson: expected, metadataJson: expected });
    const found = [];
    for await (const each of connect.list({ threadId: key.threadId, metadataFilterJson: json })) {
      found.push(each.tuple?.key?.checkpointId);
    }
    expect(found).toEqual(["1"]);
  });
}

test("JSON as deep as Postgres takes it can be read, listed and filtered by", async () => {
  const { connect } = edge.clients;
  const nested = (depth: number) => `${'{"a":'.repeat(depth)}{}${"}".repeat(depth)}`;
  const key = { threadId: `${secret}-deep`, checkpointId: "1" };
  let depth = 0;
  // The deepest to within a hundred; where it lies depends on Postgres's max_stack_depth.
  for (let step = 65_536; step >= 100; step /= 2) {
    const json = nested(depth + step);
    const taken = await connect.put({ ...key, checkpointJson: json, metadataJson: json }).then(
      () => true,
      () => false,
    );
    if (taken) depth += step;
  }
  expect(depth).toBeGreaterThan(1000);
  const { tuple } = await connect.getTuple(key);
  expect(tuple?.checkpointJson.length).toBeGreaterThan(depth * 6);
  for (const metadataFilterJson of ["", '{"a": {}}', nested(depth / 2)]) {
    const found = [];
    const request = { threadId: key.threadId, metadataFilterJson };
    for await (const each of connect.list(request)) found.push(each.tuple?.key?.checkpointId);
    expect(found).toEqual(["1"]);
  }
});

test("a wrong filter is refused though no row would be compared, however often", async () => {
  const { connect } = edge.clients;
  const request = { threadId: `${secret}-nobody` };
  // After five runs of a statement Postgres may plan it without looking at the parameters.
  for (let i = 0; i < 40; i++) {
    await make(connect, { rpc: "list", request: { ...request, metadataFilterJson: "{}" } });
  }
  for (let i = 0; i < 10; i++) {
    const call: Call = { rpc: "list", request: { ...request, metadataFilterJson: "{oops}" } };
    const refusal = { code: Code.InvalidArgument, reason: "INVALID_JSON" } as const;
    await edge.expectRefused(call, { ...refusal, field: "metadata_filter_json" }, ["connect"]);
  }
});
