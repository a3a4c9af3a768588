#!/usr/bin/env node
import { listenForStop } from "./stop_signal.js";

// Whoever stops a migration or another command means that it is not to go on, which needs no help.
if (process.argv[2] === "serve") listenForStop();
const { run } = await import("./commands.js");
process.exitCode = await run(process.argv.slice(2));
// All is done. What still keeps the process, a socket to a database that is frozen, does not.
setTimeout(() => process.exit(), 1000).unref();
