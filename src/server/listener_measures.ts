import type * as http2 from "node:http2";
import type { Unread } from "./unread.js";

/** What is measured of a listener. */
export interface ListenerMeasures {
  /** Connections by what they speak; "none": they have not said it yet. */
  connections: Record<"http1" | "http2" | "session" | "none", number>;
  connectionsLimit: number;
  unread: Unread;
  unreadBytesLimit: number;
  /** Connections and answers that it ended, by the limit that they reached. */
  cuts: Readonly<ReturnType<typeof noCuts>>;
}

/** None of each. */
export const noCuts = () => ({
  connections: 0,
  unread: 0,
  pipelined: 0,
  backlog: 0,
  small_frames: 0,
  age: 0,
});

/** What is known of what a connection speaks. */
export interface Speaking {
  /** Set as soon as the connection turns out to speak HTTP/2. */
  session?: http2.ServerHttp2Session;
  /** It was taken over, and is no connection of HTTP any more. */
  upgraded: boolean;
  /** It is known what it speaks. */
  spoken: boolean;
}

/** How many connections speak what. */
export function countSpoken(connections: Iterable<Speaking>): ListenerMeasures["connections"] {
  const speaking = { http1: 0, http2: 0, session: 0, none: 0 };
  for (const { session, upgraded, spoken } of connections) {
    speaking[upgraded ? "session" : session ? "http2" : spoken ? "http1" : "none"]++;
  }
  return speaking;
}
