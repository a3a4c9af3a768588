/**
 * What others take HTTP/2, gRPC, gRPC-Web and Connect to be: `npm run test:conformance`, which needs
 * Go. A failure that is known has its reason here; one that is gone is a failure of this test too.
 */
import { writeFile } from "node:fs/promises";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, expect, test } from "vitest";
import { secret, startEdge } from "../testing/edge.js";
import { run, service } from "../testing/foreign_tool.js";
import { buildJudges, type Judges, readReport } from "../testing/judges.js";
import { startRelay } from "../testing/relay.js";
import { startTestServer } from "../testing/test_server.js";

let judges: Judges;
beforeAll(async () => {
  judges = await buildJudges();
}, 600_000);
afterAll(() => judges?.remove());

// Seen with 1.61, which Node 20.20 has, and with 1.69 and 1.70 of Node 22.23 and 24.21.
const isOldNghttp2 = Number(process.versions.nghttp2?.split(".")[1]) < 65;

/** What h2spec finds wrong. Only the first is ours; the rest a bare server of node:http2 has too. */
const knownOfHttp2: { failure: string; reason: string; on?: boolean }[] = [
  {
    failure: "http2/3.5: Sends invalid connection preface",
    reason: "What is no preface of HTTP/2 is HTTP/1.1 on this port, and is answered with its 400.",
  },
  ...[
    "http2/5.1: closed: Sends a DATA frame after sending RST_STREAM frame",
    "http2/5.1: closed: Sends a HEADERS frame after sending RST_STREAM frame",
    "http2/5.1: closed: Sends a DATA frame",
    "http2/5.1: closed: Sends a HEADERS frame",
    "http2/5.1.1: Sends stream identifier that is numerically smaller than previous",
  ].map((failure) => ({
    failure,
    reason:
      "Node has nghttp2 forget streams that are closed (no_closed_streams), which ignores frames of " +
      "streams that it does not know.",
  })),
  {
    failure: "http2/6.7: Sends a PING frame with ACK",
    reason: "Node ends a connection that answers a PING which was never sent.",
  },
  {
    failure:
      "http2/6.9.1: Sends multiple WINDOW_UPDATE frames increasing the flow control window to above 2^31-1",
    reason:
      "With the older nghttp2 Node says INTERNAL_ERROR in that GOAWAY, not FLOW_CONTROL_ERROR.",
    on: isOldNghttp2,
  },
  {
    failure:
      "http2/6.9.1: Sends multiple WINDOW_UPDATE frames increasing the flow control window to above 2^31-1 on a stream",
    reason: "The newer nghttp2 ends the connection with FLOW_CONTROL_ERROR, not the stream alone.",
    on: !isOldNghttp2,
  },
  ...[
    "http2/5.3.1: Sends PRIORITY frame that depend on itself",
    "http2/6.3: Sends a PRIORITY frame with 0x0 stream identifier",
  ].map((failure) => ({
    failure,
    reason: "The newer nghttp2 does not read PRIORITY, which RFC 9113 has given up.",
    on: !isOldNghttp2,
  })),
];

test("h2spec", async () => {
  // An answer that comes from the database, 50 ms away: what of HTTP/2 depends on whether a stream
  // was answered already comes out the same each time.
  const edge = await startEdge();
  const relay = await startRelay(() => Number(new URL(edge.database.url).port), undefined, {
    intercept: ({ near, far }) => {
      return (from, chunk) => {
        if (from === "near") far.write(chunk);
        else setTimeout(() => near.write(chunk), 50);
      };
    },
  });
  const server = await startTestServer(relay.through(edge.database.url), { migrate: false });
  const message = encodeURIComponent(JSON.stringify({ threadId: `${secret}-seed` }));
  const get = `/${service}/GetTuple?connect=v1&encoding=json&message=${message}`;
  expect(await (await fetch(server.url + get)).json()).toMatchObject({ tuple: {} });
  const report = path.join(judges.folder, "h2spec.xml");
  // Cases that are failed by silence take all of the time that each is given.
  const { out, err } = await run(
    judges.h2spec,
    ["--strict", "-p", `${server.port}`, "-P", get, "-o", "5", "-j", report],
    240_000,
  );
  await server.drain();
  relay.close();
  await edge.stop();
  const { cases, failed, skipped } = await readReport(report);
  expect({ cases, skipped }).toEqual({ cases: 146, skipped: [] });
  const known = knownOfHttp2.filter(({ on = true }) => on).map(({ failure }) => failure);
  expect(failed.toSorted(), out + err).toEqual(known.toSorted());
}, 300_000);

test("connectconformance", async () => {
  const config = path.join(judges.folder, "config.yaml");
  await writeFile(config, JSON.stringify({ features }));
  const server = ["run_ts.mjs", "conformance_server.ts"].map((file) =>
    fileURLToPath(new URL(`../testing/${file}`, import.meta.url)),
  );
  const { out, err } = await run(
    judges.connectconformance,
    [
      ...["--mode", "server", "--conf", config, "--max-servers", "2", "--parallel", "4"],
      ...["--", process.execPath, ...server, judges.descriptors],
    ],
    240_000,
  );
  // All of what is supported; there is no failure that is known.
  expect(out + err).toMatch(/^1900 passed, 0 failed$/m);
}, 300_000);

/** What the port supports. JSON is YAML too. */
const features = {
  versions: ["HTTP_VERSION_1", "HTTP_VERSION_2"],
  protocols: ["PROTOCOL_CONNECT", "PROTOCOL_GRPC", "PROTOCOL_GRPC_WEB"],
  codecs: ["CODEC_PROTO", "CODEC_JSON"],
  compressions: ["COMPRESSION_IDENTITY", "COMPRESSION_GZIP"],
  streamTypes: [
    "STREAM_TYPE_UNARY",
    "STREAM_TYPE_CLIENT_STREAM",
    "STREAM_TYPE_SERVER_STREAM",
    "STREAM_TYPE_HALF_DUPLEX_BIDI_STREAM",
    "STREAM_TYPE_FULL_DUPLEX_BIDI_STREAM",
  ],
  supportsH2c: true,
  // A proxy's business.
  supportsTls: false,
  supportsTrailers: true,
  // connect-es answers them with 505; sessions over HTTP/1.1 are upgraded connections.
  supportsHalfDuplexBidiOverHttp1: false,
  supportsConnectGet: true,
  supportsMessageReceiveLimit: true,
};
