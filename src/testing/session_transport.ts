/** A client of SessionService that is not ours: it believes nothing but the server. */
import { create } from "@bufbuild/protobuf";
import { Code, ConnectError, createClient, type Transport } from "@connectrpc/connect";
import { ErrorDetailSchema } from "../../gen/checkpointd/v1/checkpoint_pb.js";
import {
  type ListRequest,
  ListRequestSchema,
  ListResponseSchema,
} from "../../gen/checkpointd/v1/checkpoint_service_pb.js";
import {
  ListPageRequestSchema,
  type ListPageResponse,
  type OpenSessionRequest,
  OpenSessionRequestSchema,
  type OpenSessionResponse,
  SessionService,
} from "../../gen/checkpointd/v1/session_service_pb.js";

type Operation = OpenSessionRequest["operation"];

/**
 * Makes calls of CheckpointService as operations of a session that `carrier` carries, a List as
 * one for each page. Deadlines and cancellations are left to the server: a call ends when the
 * server answers it, with what the server says, or with the error that ended the session. A
 * session that ended or said goodbye is followed by another.
 */
export function createSessionTransport(carrier: Transport): Transport {
  let session: ReturnType<typeof openSession> | undefined;

  async function run(
    operation: Operation,
    signal?: AbortSignal,
    timeoutMs?: number,
    asked?: ConstructorParameters<typeof Headers>[0],
  ) {
    if (!session || session.isLeaving()) session = openSession(carrier);
    const { id, result } = await session.run(operation, signal, timeoutMs, new Headers(asked));
    // As unary calls have it, in answers and in errors.
    const header = new Headers({ "x-request-id": `${session.requestId()}/${id}` });
    if (result.case === "error") {
      const { code, message, detail } = result.value;
      const details = detail ? [{ desc: ErrorDetailSchema, value: detail }] : [];
      throw new ConnectError(message, code, header, details);
    }
    return { header, message: result.value };
  }

  async function* pages(
    request: ListRequest,
    signal?: AbortSignal,
    timeoutMs?: number,
    asked?: ConstructorParameters<typeof Headers>[0],
  ) {
    const list = create(ListRequestSchema, request);
    const page = create(ListPageRequestSchema, { list });
    do {
      const { message } = await run({ case: "listPage", value: page }, signal, timeoutMs, asked);
      const { tuples, nextMaxTuples } = message as ListPageResponse;
      for (const tuple of tuples) yield create(ListResponseSchema, { tuple });
      page.maxTuples = nextMaxTuples;
      page.afterCheckpointJson = tuples.at(-1)?.checkpointJson ?? "";
      list.after = tuples.at(-1)?.key;
      if (list.limit !== undefined) list.limit -= tuples.length;
    } while (page.maxTuples > 0);
  }

  return {
    async unary(method, signal, timeoutMs, asked, input) {
      const operation = { case: method.localName, value: create(method.input, input) };
      const { header, message } = await run(operation as never, signal, timeoutMs, asked);
      return {
        stream: false,
        service: method.parent,
        method,
        header,
        trailer: new Headers(),
        message: message as never,
      };
    },
    async stream(method, signal, timeoutMs, asked, input) {
      const { value: request } = await input[Symbol.asyncIterator]().next();
      return {
        stream: true,
        service: method.parent,
        method,
        header: new Headers(),
        trailer: new Headers(),
        message: pages(request as never, signal, timeoutMs, asked) as never,
      };
    },
  };
}

function openSession(carrier: Transport) {
  const answered = new Map<number, (answer: OpenSessionResponse | Promise<never>) => void>();
  const outbox: OpenSessionRequest[] = [];
  let wake = () => {};
  let lastId = 0;
  let requestId: string | null = null;
  let leaving = false;

  async function* requests() {
    while (!leaving || answered.size > 0) {
      const request = outbox.shift();
      if (request) {
        yield request;
      } else {
        await new Promise<void>((resolve) => {
          wake = resolve;
        });
      }
    }
  }
  const send = (request: OpenSessionRequest) => {
    outbox.push(request);
    wake();
  };
  const read = async () => {
    const client = createClient(SessionService, carrier);
    const onHeader = (headers: Headers) => {
      requestId = headers.get("x-request-id");
    };
    for await (const answer of client.openSession(requests(), { onHeader })) {
      if (answer.result.case === "goodbye") leaving = true;
      answered.get(answer.id)?.(answer);
      answered.delete(answer.id);
      if (leaving) wake();
    }
    throw new ConnectError("the session ended without an answer", Code.Unavailable);
  };
  read().catch((error) => {
    leaving = true;
    for (const settle of answered.values()) settle(Promise.reject(error));
    answered.clear();
    wake();
  });

  return {
    isLeaving: () => leaving,
    requestId: () => requestId,
    run(
      operation: Operation,
      signal: AbortSignal | undefined,
      timeoutMs = 0,
      header: Headers,
    ): Promise<OpenSessionResponse> {
      const id = ++lastId;
      const answer = new Promise<OpenSessionResponse>((resolve) => answered.set(id, resolve));
      const traceparent = header.get("traceparent") ?? "";
      const tracestate = header.get("tracestate") ?? "";
      send(create(OpenSessionRequestSchema, { id, timeoutMs, operation, traceparent, tracestate }));
      signal?.addEventListener("abort", () => {
        const cancel = { case: "cancel", value: {} } as const;
        send(create(OpenSessionRequestSchema, { id, operation: cancel }));
      });
      return answer;
    },
  };
}
