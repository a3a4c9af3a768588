import { describe, expect, it } from "vitest";
import { Refusal } from "./kinds.js";
import { retentionRules } from "./retention_rules.js";

const parse = (text: string) => retentionRules.parse(text);

describe("rules of retention", () => {
  it.each([
    ["keep_last=20", [{ keepLast: 20, olderThanMs: undefined, metadata: undefined }]],
    ["older_than=90s", [{ keepLast: 1, olderThanMs: 90_000 }]],
    ["keep_last = 5 , older_than = 12h", [{ keepLast: 5, olderThanMs: 43_200_000 }]],
    ["delete,older_than=30d", [{ keepLast: 0, olderThanMs: 2_592_000_000 }]],
    ["older_than=30d,delete", [{ keepLast: 0, olderThanMs: 2_592_000_000 }]],
    [
      "metadata.tenant=acme inc,metadata.n=4,keep_last=100; delete,older_than=2m",
      [
        {
          text: "metadata.tenant=acme inc,metadata.n=4,keep_last=100",
          keepLast: 100,
          metadata: '{"tenant":"acme inc","n":4}',
          olderThanMs: undefined,
        },
        {
          text: "delete,older_than=2m",
          keepLast: 0,
          olderThanMs: 120_000,
          metadata: undefined,
        },
      ],
    ],
    [
      "metadata.a=true,keep_last=3;metadata.a=x=y,keep_last=2;keep_last=1",
      [
        { keepLast: 3, metadata: '{"a":true}' },
        { keepLast: 2, metadata: '{"a":"x=y"}' },
        { keepLast: 1, metadata: undefined },
      ],
    ],
  ])("%s", (text, rules) => {
    expect(parse(text)).toHaveLength(rules.length);
    expect(parse(text)).toMatchObject(rules);
  });

  it.each([
    ["", "must be rules such as keep_last=20,older_than=30d"],
    [" ; ", "must be rules such as keep_last=20,older_than=30d"],
    [
      "keep_last",
      'rule 1, "keep_last": keep_last must be a whole number from 1 to 1000000, not "".',
    ],
    ["keep_last=0", 'keep_last must be a whole number from 1 to 1000000, not "0".'],
    ["keep_last=many", 'keep_last must be a whole number from 1 to 1000000, not "many".'],
    ["older_than=30", "older_than must be an age from 0s to 36525d, such as 30m, 12h or 90d, not"],
    [
      "older_than=1y",
      'older_than must be an age from 0s to 36525d, such as 30m, 12h or 90d, not "1y"',
    ],
    ["older_than=", "older_than must be an age from 0s to 36525d"],
    ["delete", "delete needs older_than=AGE, the age of a thread's last update."],
    ["delete,keep_last=1,older_than=1d", "delete and keep_last exclude each other."],
    ["delete=1,older_than=1d", "delete takes no value."],
    ["delete=,older_than=1d", "delete takes no value."],
    [
      "metadata.a=1",
      "it does not say what goes: give keep_last=N, older_than=AGE or both, or delete.",
    ],
    ["metadata.=1,keep_last=1", '"metadata.=1" must be metadata.KEY=VALUE.'],
    ["metadata.a,keep_last=1", '"metadata.a" must be metadata.KEY=VALUE.'],
    ["keep=1", 'there is no condition "keep". Did you mean keep_last?'],
    ["keep last=1", 'there is no condition "keep last". Did you mean keep_last?'],
    ["keep_last=1,older-than=1d", 'there is no condition "older-than". Did you mean older_than?'],
    ["keep_last=1,delet", 'there is no condition "delet". Did you mean delete?'],
    ["metdata.tenant=a,keep_last=1", "Did you mean metadata.KEY?"],
    [
      "tenant=a,keep_last=1",
      "Known are keep_last=N, older_than=AGE, delete and metadata.KEY=VALUE.",
    ],
    ["keep_last=1,keep_last=2", "keep_last stands there twice."],
    ["keep_last=1;", 'rule 2, "": there is no rule beside the semicolon.'],
    [
      "keep_last=1;metadata.a=b,keep_last=2",
      'rule 2, "metadata.a=b,keep_last=2": it is never reached, because rule 1 is for all threads.',
    ],
    [
      "metadata.a=b,keep_last=2; older_than=1",
      'is wrong in rule 2, "older_than=1": older_than must',
    ],
  ])("%j is refused: %s", (text, sentence) => {
    expect(() => parse(text)).toThrow(Refusal);
    expect(() => parse(text)).toThrow(sentence);
  });
});
