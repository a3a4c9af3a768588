/** A collector for tests: takes OTLP over HTTP as protobuf, and keeps the spans. */
import { createServer, type IncomingHttpHeaders } from "node:http";
import type { AddressInfo } from "node:net";
import { BinaryReader, WireType } from "@bufbuild/protobuf/wire";

/** A span as it arrived. */
export interface ReceivedSpan {
  traceId: string;
  spanId: string;
  /** Empty: it is the first of its trace. */
  parentSpanId: string;
  name: string;
  /** By OTLP's numbers: 1 internal, 2 server, 3 client. */
  kind: number;
  /** In nanoseconds. */
  start: bigint;
  end: bigint;
  attributes: Record<string, unknown>;
  /** 0 unset, 2 an error. */
  status: number;
  traceState: string;
  resource: Record<string, unknown>;
}

/** One that listens. */
export interface OtlpReceiver {
  /** What OTEL_EXPORTER_OTLP_ENDPOINT has to be. */
  readonly endpoint: string;
  readonly spans: ReceivedSpan[];
  /** The headers of the requests, and how many there were. */
  readonly requests: IncomingHttpHeaders[];
  /** With what it answers. */
  status: number;
  /** Whether it answers at all. */
  isMute: boolean;
  close(): Promise<void>;
}

/** Starts one on a free port, or on this one. */
export async function startOtlpReceiver(port = 0): Promise<OtlpReceiver> {
  const receiver = { spans: [] as ReceivedSpan[], requests: [] as IncomingHttpHeaders[] };
  const answering = { status: 200, isMute: false };
  const server = createServer((request, response) => {
    const chunks: Buffer[] = [];
    request.on("data", (chunk: Buffer) => chunks.push(chunk));
    request.on("end", () => {
      receiver.requests.push(request.headers);
      if (answering.isMute) return;
      if (answering.status === 200) receiver.spans.push(...readSpans(Buffer.concat(chunks)));
      response.writeHead(answering.status, { "content-type": "application/x-protobuf" }).end();
    });
  });
  await new Promise<void>((resolve) => server.listen(port, "127.0.0.1", resolve));
  const bound = (server.address() as AddressInfo).port;
  return Object.assign(answering, receiver, {
    endpoint: `http://127.0.0.1:${bound}`,
    close: () => {
      server.closeAllConnections();
      return new Promise<void>((resolve) => server.close(() => resolve()));
    },
  });
}

/** Of a message each field's values by its number; of messages within it their bytes. */
function fieldsOf(bytes: Uint8Array): Map<number, (Uint8Array | bigint | number)[]> {
  const fields = new Map<number, (Uint8Array | bigint | number)[]>();
  const reader = new BinaryReader(bytes);
  while (reader.pos < reader.len) {
    const [number, type] = reader.tag();
    let value: Uint8Array | bigint | number;
    if (type === WireType.LengthDelimited) value = reader.bytes();
    else if (type === WireType.Bit64) value = BigInt(reader.fixed64());
    else if (type === WireType.Bit32) value = reader.fixed32();
    else value = BigInt(reader.uint64());
    fields.set(number, [...(fields.get(number) ?? []), value]);
  }
  return fields;
}

type Fields = ReturnType<typeof fieldsOf>;
const messagesOf = (fields: Fields, number: number) =>
  ((fields.get(number) ?? []) as Uint8Array[]).map(fieldsOf);
const textOf = (fields: Fields, number: number) =>
  Buffer.from((fields.get(number)?.[0] as Uint8Array) ?? []).toString();
const hexOf = (fields: Fields, number: number) =>
  Buffer.from((fields.get(number)?.[0] as Uint8Array) ?? []).toString("hex");

/** An ExportTraceServiceRequest's spans; the numbers are those of opentelemetry-proto. */
function readSpans(bytes: Uint8Array): ReceivedSpan[] {
  return messagesOf(fieldsOf(bytes), 1).flatMap((ofResource) => {
    const resource = attributesOf(messagesOf(ofResource, 1)[0] ?? new Map(), 1);
    return messagesOf(ofResource, 2).flatMap((ofScope) =>
      messagesOf(ofScope, 2).map((span) => ({
        traceId: hexOf(span, 1),
        spanId: hexOf(span, 2),
        traceState: textOf(span, 3),
        parentSpanId: hexOf(span, 4),
        name: textOf(span, 5),
        kind: Number(span.get(6)?.[0] ?? 0),
        start: span.get(7)?.[0] as bigint,
        end: span.get(8)?.[0] as bigint,
        attributes: attributesOf(span, 9),
        status: Number(messagesOf(span, 15)[0]?.get(3)?.[0] ?? 0),
        resource,
      })),
    );
  });
}

function attributesOf(fields: Fields, number: number): Record<string, unknown> {
  return Object.fromEntries(
    messagesOf(fields, number).map((attribute) => {
      const [value = new Map()] = messagesOf(attribute, 2);
      return [textOf(attribute, 1), toValue(value)];
    }),
  );
}

function toValue(value: Fields): unknown {
  if (value.has(2)) return value.get(2)?.[0] === 1n;
  if (value.has(3)) return Number(value.get(3)?.[0]);
  if (value.has(4)) {
    const bits = Buffer.alloc(8);
    bits.writeBigUInt64LE(value.get(4)?.[0] as bigint);
    return bits.readDoubleLE();
  }
  return textOf(value, 1);
}
