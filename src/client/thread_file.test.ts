/** What an import that fails leaves, and says. */
import { expect, it } from "vitest";
import { type ThreadStore, threadFromLines } from "./thread_file.js";

const lines = [
  JSON.stringify({ checkpointd: "thread", version: 1, threadId: "t" }),
  JSON.stringify({ key: { checkpointId: "2" }, checkpointJson: "{}" }),
  JSON.stringify({ key: { checkpointId: "1" }, checkpointJson: "{}" }),
  JSON.stringify({ end: true, checkpoints: 2 }),
];

async function* ofFile() {
  yield* lines;
}

const import_ = (store: Partial<ThreadStore>) =>
  threadFromLines(
    ofFile(),
    undefined,
    {
      check: async () => {},
      put: async () => {},
      putWrites: async () => {},
      copyThread: async () => {},
      deleteThread: async () => {},
      ...store,
    },
    () => {},
  );

it("names what is left where the server goes in between", async () => {
  let puts = 0;
  const put = async () => {
    if (++puts > 1) throw new Error("the server does not answer");
  };
  const deleteThread = async () => {
    throw new Error("nor now");
  };
  await expect(import_({ put, deleteThread })).rejects.toThrow(
    /^the server does not answer; .* is left in the thread importing-[\da-f-]+: delete it$/,
  );
});

it("tells why it did not begin, and removes nothing then", async () => {
  const check = async () => {
    throw new Error("there is a thread t already");
  };
  const deleteThread = async () => {
    throw new Error("this key may not delete");
  };
  await expect(import_({ check, deleteThread })).rejects.toThrow(/^there is a thread t already$/);
});

it("removes what it stored, whether it fails or not", async () => {
  const deleted: string[] = [];
  const deleteThread = async ({ threadId }: { threadId: string }) => void deleted.push(threadId);
  await import_({ deleteThread });
  const copyThread = async () => {
    throw new Error("taken");
  };
  await expect(import_({ copyThread, deleteThread })).rejects.toThrow(/^taken$/);
  expect(deleted).toEqual([
    expect.stringMatching(/^importing-/),
    expect.stringMatching(/^importing-/),
  ]);
});
