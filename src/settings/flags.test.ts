import { describe, expect, it } from "vitest";
import { didYouMean } from "../protocol/nearest.js";
import { define, readFlags, UsageError, unknownCommand, type Values } from "./flags.js";
import {
  age,
  anyText,
  duration,
  integer,
  jsonObject,
  present,
  size,
  someOf,
  time,
} from "./kinds.js";

const flags = {
  limit: define({ flag: "limit", kind: integer(0, 10), unset: undefined, help: "" }),
  status: define({ flag: "status", kind: someOf(["pending", "failed"]), unset: [], help: "" }),
  name: define({ flag: "name", kind: anyText, fallback: "x", help: "" }),
  json: define({ flag: "json", kind: present, unset: false, help: "" }),
};
const usage = { least: 1, most: 2, usage: "Usage: it THREAD [TARGET]" };
const read = (...args: string[]) => readFlags(flags, args, {}, usage);

describe("the reader of flags", () => {
  it("takes flags before, between and after the words, and none after --", () => {
    const { values, words } = read("a", "--limit=3", "b", "--status", "failed, pending", "--json");
    expect({ values, words }).toEqual({
      values: { limit: 3, status: ["failed", "pending"], name: "x", json: true },
      words: ["a", "b"],
    });
    expect(read("--", "--json", "-x").words).toEqual(["--json", "-x"]);
    expect(read("-").words).toEqual(["-"]);
    expect(read("a", "--limit", "1", "--limit", "2").values.limit).toBe(2);
  });

  it.each([
    [[], "Usage: it THREAD [TARGET]"],
    [["a", "b", "c"], 'Unexpected argument "c". Usage: it THREAD'],
    [["a", "--lmit", "1"], "Unknown flag --lmit. Did you mean --limit?"],
    [["a", "--colour"], "Unknown flag --colour. Allowed are --limit, --status, --name, --json."],
    [["a", "-j"], "Unknown flag -j. Allowed are"],
    [["a", "--limit", "11"], '--limit must be a whole number from 0 to 10, not "11".'],
    [["a", "--limit", "-1"], '--limit must be a whole number from 0 to 10, not "-1".'],
    [["a", "--limit", "1e1"], '--limit must be a whole number from 0 to 10, not "1e1".'],
    [["a", "--limit", "--json"], "--limit needs a value: a whole number from 0 to 10."],
    [["a", "--name"], "--name needs a value: text."],
    [["a", "--json=1"], "--json takes no value."],
    [["a", "--no-json"], "Unknown flag --no-json."],
    [["a", "--status", "failed,pendig"], 'commas, not "pendig". Did you mean pending?'],
    [["a", "--status", "Failed"], 'commas, not "Failed". Did you mean failed?'],
    [
      ["a", "--limit", "x", "--limit", "1"],
      '--limit must be a whole number from 0 to 10, not "x".',
    ],
  ])("refuses %j: %s", (args, sentence) => {
    expect(() => read(...args)).toThrow(UsageError);
    expect(() => read(...args)).toThrow(sentence);
  });

  it("says which command was meant", () => {
    const typed = (word: string) => () => unknownCommand(word, ["ls", "show"], "threads ");
    expect(typed("sho")).toThrow('Unknown command "threads sho". Did you mean threads show?');
    expect(typed("export")).toThrow('Unknown command "threads export". Commands are ls, show.');
    expect(typed("--url")).toThrow("The command comes before its flags, such as --url.");
  });

  it("has values of the types that its kinds have", () => {
    const values: Values<typeof flags> = read("a").values;
    // @ts-expect-error It may be undefined.
    const limit: number = values.limit;
    // @ts-expect-error It has no such flag.
    const other: unknown = values.other;
    // @ts-expect-error It is none of the words.
    const status: "completed"[] = values.status;
    expect({ limit, other, status }).toEqual({ limit: undefined, other: undefined, status: [] });
  });
});

describe("what is meant by a word", () => {
  it.each([
    ["prot", " Did you mean port?"],
    ["POOL-SIZE", " Did you mean pool-size?"],
    ["pool", " Did you mean pool-size?"],
    ["x", ""],
    ["", ""],
    ["frobnicate", ""],
  ])("%j:%s", (typed, sentence) => {
    expect(didYouMean(typed, ["port", "pool-size", "ns"])).toBe(sentence);
  });
});

describe("a kind with units", () => {
  it.each([
    [duration, "1ms", 1],
    [duration, "60m", 3_600_000],
    [duration, "1h", 3_600_000],
    [age, "0s", 0],
    [age, "90d", 7_776_000_000],
    [size, "1KiB", 1024],
    [size, "255MiB", 267_386_880],
    [jsonObject, '{"a":1}', { a: 1 }],
    [time, "2020-01-01", new Date("2020-01-01")],
  ])("%o reads %s", (kind, text, value) => expect(kind.parse(text)).toEqual(value));

  it.each([
    [duration, ["0ms", "61m", "5", "s", "1.5s", "1constructor", " 1s", "1 s", ""]],
    [age, ["36526d", "1y", "30", "-1d", "99999999999999999999d"]],
    [size, ["1023B", "256MiB", "1GB", "1kib"]],
    [jsonObject, ["[1]", "null", "1", "{", ""]],
    [time, ["then", "7", "", "2020-13-01", "12", "1"]],
  ])("%o refuses %j", (kind, texts) => {
    for (const text of texts) expect(() => kind.parse(text)).toThrow(kind.allowed);
  });

  it("reads an age as the time that was so long ago", () => {
    const before = Date.now() - 3_600_000;
    const then = time.parse("1h").getTime();
    expect(then).toBeGreaterThanOrEqual(before);
    expect(then).toBeLessThanOrEqual(Date.now() - 3_600_000);
  });
});
