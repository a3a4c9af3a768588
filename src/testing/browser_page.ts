/** The script of the page that `server/browser.test.ts` opens: what an application would write. */
import { Code, ConnectError, createClient } from "@connectrpc/connect";
import { createConnectTransport } from "@connectrpc/connect-web";
import { CheckpointService, decodeValue, errorDetail } from "../client.js";

/** What the test calls in the page. Every answer is plain JSON. */
export interface Page {
  /** The checkpoint's text and the bytes of its first blob, or nothing. */
  getTuple(threadId: string): Promise<{ json?: string; bytes?: number[] }>;
  /** The ids of a thread's checkpoints in the order they arrived. */
  list(threadId: string): Promise<{ ids: string[] }>;
  /** The latest checkpoint's messages, as text. */
  messages(threadId: string): Promise<string[]>;
  /** Takes a few checkpoints of the stream and goes away. */
  listSome(threadId: string, count: number): Promise<{ ids: string[] }>;
  /** The error of a call that is wrong. */
  fail(): Promise<{ code: string; message: string; detail: unknown; requestId: string | null }>;
  /** How a call fails whose answer the browser withholds. */
  getTupleRefused(): Promise<{ code: string; message: string }>;
}

/** Creates the page's functions against a server of another origin. */
function createPage(baseUrl: string, useBinaryFormat: boolean, useHttpGet: boolean): Page {
  const client = createClient(
    CheckpointService,
    createConnectTransport({ baseUrl, useBinaryFormat, useHttpGet }),
  );
  const failureOf = async (call: Promise<unknown>) =>
    ConnectError.from(
      await call.then(
        () => new Error("the call succeeded"),
        (error) => error,
      ),
    );
  return {
    async getTuple(threadId) {
      const { tuple } = await client.getTuple(
        { threadId },
        { headers: { "x-request-id": "page-1" } },
      );
      return { json: tuple?.checkpointJson, bytes: [...(tuple?.blobs[0]?.value?.data ?? [])] } as {
        json?: string;
      };
    },
    async list(threadId) {
      const ids: string[] = [];
      for await (const { tuple } of client.list({ threadId })) {
        ids.push(tuple?.key?.checkpointId ?? "none");
      }
      return { ids };
    },
    async messages(threadId) {
      const { tuple } = await client.getTuple({ threadId });
      const decoded = decodeValue(tuple?.blobs[0]?.value);
      const items = decoded.kind === "list" ? decoded.items : [];
      return items.map((item) =>
        item.kind === "message" ? `${item.role}: ${item.text}` : item.kind,
      );
    },
    async listSome(threadId, count) {
      const ids: string[] = [];
      for await (const { tuple } of client.list({ threadId })) {
        if (ids.push(tuple?.key?.checkpointId ?? "none") === count) break;
      }
      return { ids };
    },
    async fail() {
      // A GET has its request in its URL, which cannot be that long.
      const threadId = useHttpGet ? "" : "x".repeat(65_537);
      const error = await failureOf(client.getTuple({ threadId }));
      const detail = errorDetail(error);
      return {
        code: Code[error.code],
        message: error.rawMessage,
        detail: detail && {
          reason: detail.reason,
          field: detail.field,
          limit: Number(detail.limit),
        },
        requestId: error.metadata.get("x-request-id"),
      };
    },
    async getTupleRefused() {
      const error = await failureOf(client.getTuple({ threadId: "x" }));
      return { code: Code[error.code] ?? "", message: error.rawMessage };
    },
  };
}

Object.assign(globalThis, { createPage });
