/** What a command-line tool of others is made to tell a server, and what it has to answer. */
import { execFile } from "node:child_process";
import { expect } from "vitest";

export const service = "checkpointd.v1.CheckpointService";
export const rpcs = ["GetTuple", "Put", "PutWrites", "List", "DeleteThread"];

/** How a tool ended, and what it wrote. */
export interface Output {
  code: number;
  out: string;
  err: string;
}

/** Runs a tool to its end; `limitMs` are too long. */
export function run(file: string, args: string[], limitMs = 20_000): Promise<Output> {
  return new Promise((resolve) => {
    execFile(file, args, { timeout: limitMs, maxBuffer: 2 ** 24 }, (error, out, err) =>
      resolve({ code: error ? Number(error.code ?? -1) : 0, out, err }),
    );
  });
}

/** The JSON values of an output, one after the other with nothing but white space between. */
function parseAll(text: string): unknown[] {
  return text
    .split(/(?<=^\}|^\{\})\s*\n/m)
    .filter((each) => each.trim() !== "")
    .map((each) => JSON.parse(each));
}

const put = (threadId: string) => ({
  threadId,
  checkpointId: "1",
  checkpointJson: `{"v":4,"channel_versions":{"c":1}}`,
  blobs: [{ channel: "c", version: "1", value: { type: "json", data: "MQ==" } }],
});

/** Calls each RPC through a tool, and one of them wrongly. */
export async function tellAll(
  threadId: string,
  call: (rpc: string, request: object) => Promise<Output>,
): Promise<void> {
  const key = { threadId, checkpointId: "1" };
  const ok = async (rpc: string, request: object): Promise<unknown[]> => {
    const { code, out, err } = await call(rpc, request);
    expect(code, err).toBe(0);
    return parseAll(out);
  };
  expect(await ok("Put", put(threadId))).toEqual([{}]);
  const writes = [{ channel: "c", value: { type: "json", data: "MQ==" } }];
  expect(await ok("PutWrites", { ...key, taskId: "t", writes })).toEqual([{}]);
  await ok("Put", { ...put(threadId), checkpointId: "2", parentCheckpointId: "1", blobs: [] });
  const tuple = { key, blobs: put(threadId).blobs, pendingWrites: [{ taskId: "t" }] };
  expect(await ok("GetTuple", key)).toMatchObject([{ tuple }]);
  expect(await ok("List", { threadId })).toMatchObject([
    { tuple: { key: { checkpointId: "2" }, parentCheckpointId: "1" } },
    { tuple },
  ]);
  expect(await ok("DeleteThread", { threadId })).toEqual([{}]);
  expect(await ok("GetTuple", key)).toEqual([{}]);
  const refused = await call("GetTuple", {});
  expect(refused.code).not.toBe(0);
  expect(refused.err.toLowerCase().replace("_", "")).toContain("invalidargument");
  expect(refused.err).toContain("must not be empty");
  expect(refused.err).toContain("checkpointd.v1.ErrorDetail");
}
