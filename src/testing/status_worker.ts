/**
 * A worker to kill: runs every scenario at once, slowly, each in a thread of its own.
 * Arguments: the service's URL, the durability, what the thread ids begin with.
 */
import { ConnectSaver } from "../index.js";
import { type Durability, pace, scenarios } from "./scenarios.js";

const [url = "", durability, prefix = ""] = process.argv.slice(2);
const saver = ConnectSaver.fromUrl(url);
pace.ms = 120;
console.log("started");
await Promise.all(
  scenarios.map(({ name, build, run }) =>
    run(build(saver), {
      configurable: { thread_id: `${prefix}${name}` },
      durability: durability as Durability,
    }).catch(() => {}),
  ),
);
