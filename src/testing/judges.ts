/** h2spec and Connect's conformance suite, which Go builds from `.ci/judges/go.mod`. */
import { execFile } from "node:child_process";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";

const execute = promisify(execFile);
const root = fileURLToPath(new URL("../..", import.meta.url));

/** The programs, ready to be run. */
export interface Judges {
  readonly h2spec: string;
  readonly connectconformance: string;
  /** What ConformanceService and its messages are, as a FileDescriptorSet. */
  readonly descriptors: string;
  /** A folder for what they read and write. */
  readonly folder: string;
  /** Removes all of it. */
  remove(): Promise<void>;
}

/** Builds them; the first time that takes Go a minute. Throws where there is no Go. */
export async function buildJudges(): Promise<Judges> {
  const folder = await mkdtemp(path.join(tmpdir(), "checkpointd-judges-"));
  const remove = () => rm(folder, { recursive: true, force: true });
  const go = async (...args: string[]) => {
    const env = { ...process.env, GOBIN: folder };
    return (await execute("go", args, { env, cwd: path.join(root, ".ci/judges") })).stdout.trim();
  };
  try {
    await go("install", "tool");
    const module = await go("list", "-m", "-f", "{{.Dir}}", "connectrpc.com/conformance");
    const descriptors = path.join(folder, "conformance.binpb");
    const require = createRequire(import.meta.url);
    const buf = path.join(
      path.dirname(require.resolve("@bufbuild/buf/package.json")),
      require("@bufbuild/buf/package.json").bin.buf,
    );
    const output = ["--as-file-descriptor-set", "-o", descriptors];
    await execute(process.execPath, [buf, "build", path.join(module, "proto"), ...output]);
    return {
      h2spec: path.join(folder, "h2spec"),
      connectconformance: path.join(folder, "connectconformance"),
      descriptors,
      folder,
      remove,
    };
  } catch (error) {
    await remove();
    const isMissing = (error as { code?: unknown }).code === "ENOENT";
    throw isMissing ? new Error("there is no Go: install it", { cause: error }) : error;
  }
}

/** The cases of an h2spec report, by section and title, and which of them did not pass. */
export async function readReport(file: string) {
  const cases = [
    ...(await readFile(file, "utf8")).matchAll(
      /<testcase package="([^"]+)" classname="([^"]+)"[^>]*>(.*?)<\/testcase>/gs,
    ),
  ];
  const thoseWith = (outcome: RegExp) =>
    cases
      .filter(([, , , inside = ""]) => outcome.test(inside))
      .map(([, section, title]) => `${section}: ${title}`.replaceAll("&#34;", '"'));
  return {
    cases: cases.length,
    failed: thoseWith(/<(failure|error)>/),
    skipped: thoseWith(/<skipped>/),
  };
}
