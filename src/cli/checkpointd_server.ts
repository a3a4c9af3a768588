#!/usr/bin/env node
/**
 * `checkpointd-server`, the name that `npx checkpointd-server` runs: `checkpointd`, which serves
 * unless a command is given, as whoever runs something of that name expects.
 */
const [first = ""] = process.argv.slice(2);
const asksForHelp = ["--help", "-h", "--version", "-v"].includes(first);
// In the arguments themselves, which the processes of --workers begin with.
if (first === "" || (first.startsWith("-") && !asksForHelp)) process.argv.splice(2, 0, "serve");
await import("./main.js");

export {};
