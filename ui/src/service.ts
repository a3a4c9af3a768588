/** The service that gave this page, by the same calls that any client makes. */
import { MethodOptions_IdempotencyLevel } from "@bufbuild/protobuf/wkt";
import { Code, ConnectError, createClient, type Interceptor } from "@connectrpc/connect";
import { createConnectTransport } from "@connectrpc/connect-web";
import { CheckpointService, errorDetail, ThreadService } from "checkpointd/client";

/** Where the service is: beside the page. */
export const baseUrl = new URL(".", location.href).href.replace(/\/$/, "");

const keyName = "checkpointd.key";

/** Keeps the key to call with until the tab is closed; nothing else is ever stored of it. */
export function keepKey(key: string | undefined): void {
  if (key === undefined) sessionStorage.removeItem(keyName);
  else sessionStorage.setItem(keyName, key);
}

/** Whether there is a key. */
export const hasKey = () => sessionStorage.getItem(keyName) !== null;

const withKey: Interceptor = (next) => (request) => {
  const key = sessionStorage.getItem(keyName);
  if (key !== null) request.header.set("authorization", `Bearer ${key}`);
  return next(request);
};

/** How much later it is at the server than here, in milliseconds, as its last answer said. */
let laterBy = 0;
/** Its answers tell whole seconds, and come a little later. */
const noticedFrom = 5_000;

/** The time at the server, which is the one that leases and threads are told in. */
export const serverNow = () => Date.now() + (Math.abs(laterBy) < noticedFrom ? 0 : laterBy);

const withClock: Interceptor = (next) => async (request) => {
  const response = await next(request);
  const told = Date.parse(response.header.get("date") ?? "");
  if (!Number.isNaN(told)) laterBy = told - Date.now();
  return response;
};

/** Whether the page was served to look only: it offers nothing that changes a thread then. */
export const isReadOnly =
  document.querySelector<HTMLMetaElement>("meta[name=checkpointd]")?.content === "read-only";

/** What is not offered is not called either, should the page have a mistake. */
const onlyReads: Interceptor = (next) => (request) => {
  if (isReadOnly && request.method.idempotency !== MethodOptions_IdempotencyLevel.NO_SIDE_EFFECTS) {
    throw new ConnectError("the page is read-only", Code.PermissionDenied);
  }
  return next(request);
};

/** Calls it; with another `fetch` for who looks at the bytes. */
export const createTransport = (fetch?: typeof globalThis.fetch) =>
  createConnectTransport({
    baseUrl,
    useBinaryFormat: true,
    interceptors: [withKey, onlyReads, withClock],
    ...(fetch ? { fetch } : {}),
  });
const transport = createTransport();

export const checkpoints = createClient(CheckpointService, transport);
export const threads = createClient(ThreadService, transport);

/** Why a call failed, for a person. */
export interface Failure {
  /** What is to be done about it: a key, patience, or neither. */
  kind: "key" | "away" | "wrong";
  text: string;
  /** The field of the request that is to blame, if one is. */
  field?: string;
}

/** undefined of a call that the page itself gave up. */
export function toFailure(thrown: unknown): Failure | undefined {
  const error = ConnectError.from(thrown);
  const text = error.rawMessage;
  switch (error.code) {
    case Code.Canceled:
      return undefined;
    case Code.Unauthenticated:
      return { kind: "key", text };
    case Code.Unavailable:
      return { kind: "away", text };
    case Code.Unknown:
    case Code.Internal:
      // What browsers say of a server that is not there; each has its own words.
      return errorDetail(error) || !(error.cause instanceof TypeError)
        ? { kind: "wrong", text }
        : { kind: "away", text: "the server does not answer" };
    default: {
      const field = errorDetail(error)?.field;
      return field ? { kind: "wrong", text, field } : { kind: "wrong", text };
    }
  }
}
