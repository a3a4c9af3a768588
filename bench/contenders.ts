import { type BaseCheckpointSaver, MemorySaver } from "@langchain/langgraph-checkpoint";
import { PostgresSaver } from "@langchain/langgraph-checkpoint-postgres";
import pg from "pg";
import { openHttp2Stream } from "../src/client/session_socket.js";
import { UrlTransport } from "../src/client/transport.js";
import { ConnectSaver, keyring } from "../src/index.js";
import { HttpSaver } from "./http_saver.js";
import { poolSize } from "./postgres_settings.js";

/**
 * What is compared: LangGraph's saver on Postgres itself, ConnectSaver as it comes, the same
 * over the gRPC protocol, and a proxy that speaks JSON over HTTP. Only where they are asked for run
 * `memory`, which stores nothing and shows what LangGraph costs by itself, `http2`, whose sessions
 * are streams of HTTP/2, `unary`, which has no sessions, and `encrypted`, which encrypts.
 */
export const contenders = [
  "direct",
  "connect",
  "grpc",
  "http-json",
  "memory",
  "http2",
  "unary",
  "encrypted",
] as const;

/** One of `contenders`. */
export type Contender = (typeof contenders)[number];

/** Where a contender's checkpoints are kept. `url` is the service's or the proxy's. */
export interface Target {
  databaseUrl: string;
  url: string | undefined;
}

/** Any saver. */
export type Saver = BaseCheckpointSaver;

/** A saver of this process, and the way to let go of its connections. */
export interface OpenSaver {
  saver: Saver;
  close(): Promise<void>;
}

/** Opens a contender's saver. The tables are there already. */
export function openSaver(contender: Contender, target: Target): OpenSaver {
  switch (contender) {
    case "direct": {
      const pool = new pg.Pool({ connectionString: target.databaseUrl, max: poolSize });
      const saver = new PostgresSaver(pool);
      return { saver: saver, close: () => saver.end() };
    }
    case "connect": {
      const saver = ConnectSaver.fromUrl(target.url!);
      return { saver, close: () => saver.end() };
    }
    case "encrypted": {
      const keys = keyring("bench", { bench: new Uint8Array(32) });
      const saver = ConnectSaver.fromUrl(target.url!, { encryption: { keys } });
      return { saver, close: () => saver.end() };
    }
    case "grpc": {
      const saver = ConnectSaver.fromUrl(target.url!, { protocol: "grpc" });
      return { saver, close: () => saver.end() };
    }
    case "unary": {
      const saver = ConnectSaver.fromUrl(target.url!, { session: false });
      return { saver, close: () => saver.end() };
    }
    case "http2": {
      const transport = new UrlTransport(target.url!, {});
      if (transport.sessions) transport.sessions.open = openHttp2Stream;
      const saver = new ConnectSaver(transport);
      return {
        saver,
        async close() {
          await saver.end();
          transport.close();
        },
      };
    }
    case "http-json": {
      const saver = new HttpSaver(target.url!);
      return { saver: saver, close: () => saver.end() };
    }
    case "memory":
      return { saver: new MemorySaver(), close: async () => {} };
  }
}
