/** Values that an agent, or somebody in its place, may store: too deep, too many, damaged, or written to mislead. */
const message = (kwargs: string) =>
  `{"lc":1,"type":"constructor","id":["x","messages","AIMessage"],"kwargs":${kwargs}}`;

const values: [type: string, data: string | Buffer][] = [
  ["json", `${'[{"a":'.repeat(5_000)}1${"}]".repeat(5_000)}`],
  ["json", `${"[".repeat(450)}1${"]".repeat(450)}`],
  ["json", `{${Array.from({ length: 60_000 }, (_, i) => `"k${i}":${i}`).join(",")}}`],
  ["json", '{"__proto__":{"polluted":1},"constructor":{"prototype":{"polluted":1}}}'],
  [
    "json",
    message(
      '{"content":[{"type":"image","url":{}},{"type":"tool_call","id":{}},{"type":["text"]},{"type":"reasoning","summary":[null]},{"type":"file","source":{"source":{}}},{"__proto__":{"type":"text"}},null,1],"tool_calls":[{"name":{}}],"invalid_tool_calls":[null,1],"id":{},"name":[1]}',
    ),
  ],
  ["json", message('{"content":{"length":1e9},"content_blocks":[[[]]],"__proto__":{"text":"x"}}')],
  ["json", message(`{"content":"${"x\\n```".repeat(20_000)}"}`)],
  ["json", '"\\u202eevil\\u0000\\ud800 \\u001b[31m\\u2066"'],
  ["json", '{"\\u202egnp.exe":"\\ud800"}'],
  ["json", `${'{"lc":2,"type":"delta_snapshot","value":'.repeat(300)}1${"}".repeat(300)}`],
  ["json", '{"lc":2,"type":"constructor","id":["Map"],"args":[[[[1],{"lc":2}]]]}'],
  ["json", "1e999"],
  ["json", "{"],
  ["msgpack", Buffer.from("c1", "hex")],
  ["msgpack", Buffer.from("d46301", "hex")],
  ["msgpack", Buffer.from("91".repeat(10_000), "hex")],
  ["msgpack", Buffer.from("ddffffffff", "hex")],
  ["msgpack", Buffer.from(`dc03e8${"c0".repeat(1_000)}`, "hex")],
  ["\u202etype", Buffer.from("00", "hex")],
];

/** The values of a checkpoint's channels `c0`, `c1`, and so on. */
export const hostileValues = values.map(([type, data]) => ({ type, data: Buffer.from(data) }));
