/**
 * An agent whose connections a balancer retires: each call is answered with a GOAWAY behind it, and
 * the next one is made while the connection closes. Prints how many it made. Without end() at last:
 * the process ends by itself, unless something it left keeps it.
 * Arguments: the service's URL, whether with sessions, the method, the calls.
 */
import { ConnectSaver } from "../index.js";
import { watchHttp2 } from "./http2_streams.js";

const [url = "", session, method, calls] = process.argv.slice(3);

let onGoaway = () => {};
watchHttp2((connection) => {
  // In the tick of the GOAWAY, after connect-node's own listener: the connection is destroyed and has
  // not said so yet.
  connection.on("goaway", () => process.nextTick(() => onGoaway()));
});
const saver = ConnectSaver.fromUrl(url, { session: session === "sessions", timeoutMs: 20_000 });

async function call(): Promise<void> {
  if (method === "getTuple") await saver.getTuple({ configurable: { thread_id: "t" } });
  else for await (const _ of saver.threads.list()) break;
}

async function run(): Promise<void> {
  // An idle connection keeps no process alive.
  const waiting = setTimeout(() => {}, 60_000);
  await call();
  for (let i = 1; i < Number(calls); i++) {
    await new Promise<void>((resolve) => {
      onGoaway = resolve;
    });
    await call();
  }
  clearTimeout(waiting);
  console.log(`${calls} calls`);
}
run();
