/**
 * What connectrpc.conformance.v1.ConformanceService has to answer, as its .proto says: each request
 * says what, and the answer tells what was asked. Nothing of it is generated: the descriptors come
 * from the judge.
 */
import { setTimeout as sleep } from "node:timers/promises";
import { create, type DescMessage, type Message, type Registry } from "@bufbuild/protobuf";
import { type Any, anyPack } from "@bufbuild/protobuf/wkt";
import { ConnectError, type ConnectRouter, type HandlerContext } from "@connectrpc/connect";

interface Header {
  name: string;
  value: string[];
}

interface AskedError {
  code: number;
  message?: string;
  details: Any[];
}

/** Of both its definitions of an answer the fields that a server has to know. */
interface Asked {
  responseHeaders: Header[];
  responseTrailers: Header[];
  responseDelayMs: number;
  /** Of a single answer. */
  response?: { case: "responseData"; value: Uint8Array } | { case: "error"; value: AskedError };
  /** Of a stream. */
  responseData?: Uint8Array[];
  error?: AskedError;
}

type Request = Message & { responseDefinition?: Asked; fullDuplex?: boolean };
/** Of any of its answers. */
type Answer = { payload: { data?: Uint8Array; requestInfo?: object } };

const packageName = "connectrpc.conformance.v1";

/** Its routes, by a registry of its files. */
export function conformanceRoutes(registry: Registry): (router: ConnectRouter) => void {
  const service = registry.getService(`${packageName}.ConformanceService`);
  const infoSchema = registry.getMessage(`${packageName}.ConformancePayload.RequestInfo`);
  if (!service || !infoSchema) throw new Error("these are not the judge's files");

  const pack = (message: Message): Any =>
    anyPack(registry.getMessage(message.$typeName) as DescMessage, message);
  const toInfo = (context: HandlerContext, requests: readonly Request[]) => ({
    requestHeaders: toHeaders(context.requestHeader),
    timeoutMs: toTimeout(context.timeoutMs()),
    requests: requests.map(pack),
    ...(context.requestMethod === "GET"
      ? { connectGetInfo: { queryParams: toHeaders(new URL(context.url).searchParams) } }
      : {}),
  });
  const toError = ({ code, message, details }: AskedError, info?: object): ConnectError => {
    const error = new ConnectError(message ?? "", code);
    const told = info ? [pack(create(infoSchema, info as never))] : [];
    for (const { typeUrl, value } of [...details, ...told]) {
      error.details.push({ type: typeUrl.slice(typeUrl.lastIndexOf("/") + 1), value });
    }
    return error;
  };

  const answerOnce = async (requests: readonly Request[], context: HandlerContext) => {
    const asked = requests[0]?.responseDefinition;
    setMetadata(asked, context);
    const requestInfo = toInfo(context, requests);
    await sleep(asked?.responseDelayMs ?? 0);
    if (asked?.response?.case === "error") throw toError(asked.response.value, requestInfo);
    const data = asked?.response?.value;
    return { payload: { ...(data ? { data } : {}), requestInfo } };
  };
  /** Answers from the `sent`th on, or with the error that is to follow them. */
  async function* answerAll(asked: Asked | undefined, info: object): AsyncGenerator<Answer> {
    const { responseData = [], responseDelayMs = 0, error } = asked ?? {};
    for (const [i, data] of responseData.entries()) {
      await sleep(responseDelayMs);
      yield { payload: { data, ...(i === 0 ? { requestInfo: info } : {}) } };
    }
    if (error) throw toError(error, responseData.length === 0 ? info : undefined);
  }

  const methods = {
    unary: (request: Request, context: HandlerContext) => answerOnce([request], context),
    idempotentUnary: (request: Request, context: HandlerContext) => answerOnce([request], context),
    async clientStream(requests: AsyncIterable<Request>, context: HandlerContext) {
      const received: Request[] = [];
      for await (const request of requests) received.push(request);
      return answerOnce(received, context);
    },
    async *serverStream(request: Request, context: HandlerContext) {
      setMetadata(request.responseDefinition, context);
      yield* answerAll(request.responseDefinition, toInfo(context, [request]));
    },
    async *bidiStream(requests: AsyncIterable<Request>, context: HandlerContext) {
      const received: Request[] = [];
      let asked: Asked | undefined;
      let sent = 0;
      for await (const request of requests) {
        if (received.length === 0) {
          asked = request.responseDefinition;
          setMetadata(asked, context);
        }
        received.push(request);
        if (!received[0]?.fullDuplex) continue;
        const data = asked?.responseData?.[sent];
        // It has said all that it was to say.
        if (data === undefined) break;
        await sleep(asked?.responseDelayMs);
        const requestInfo = sent === 0 ? toInfo(context, [request]) : { requests: [pack(request)] };
        sent++;
        yield { payload: { data, requestInfo } };
      }
      if (!received[0]?.fullDuplex) yield* answerAll(asked, toInfo(context, received));
      else if (asked?.error) {
        throw toError(asked.error, sent === 0 ? toInfo(context, received) : undefined);
      }
    },
  };
  // `unimplemented` is left out on purpose.
  // JSON of an Any needs the type that is in it.
  return (router) =>
    void router.service(service, methods as object, {
      jsonOptions: { registry, textDecoder: new TextDecoder("utf-8", { fatal: true }) } as object,
    });
}

function setMetadata(asked: Asked | undefined, context: HandlerContext): void {
  for (const { name, value } of asked?.responseHeaders ?? []) {
    for (const each of value) context.responseHeader.append(name, each);
  }
  for (const { name, value } of asked?.responseTrailers ?? []) {
    for (const each of value) context.responseTrailer.append(name, each);
  }
}

function toHeaders(entries: Iterable<[string, string]>): Header[] {
  return [...entries].map(([name, value]) => ({ name, value: [value] }));
}

function toTimeout(ms: number | undefined): bigint | undefined {
  return ms === undefined ? undefined : BigInt(Math.round(ms));
}
