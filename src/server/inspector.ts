/** The page that `ui/` is built into, served beside the RPCs: static files, and what a browser must not do with them. */
import { createHash } from "node:crypto";
import { readdir, readFile } from "node:fs/promises";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { gzip } from "node:zlib";
import type { NodeHandler } from "./handler.js";
import { pathOf } from "./metrics_page.js";
import { isLoopback } from "./web_guard.js";

type NodeRequest = Parameters<NodeHandler>[0];
type NodeResponse = Parameters<NodeHandler>[1];

/** What `--ui` says. "auto": on loopback, and where the server asks who calls. */
export const uiModes = ["auto", "on", "read-only", "off"] as const;
export type UiMode = (typeof uiModes)[number];

/** Answers a request that is for the page, and returns true; or returns false. */
export type Inspector = (request: NodeRequest, response: NodeResponse) => boolean;

/**
 * Whether the page is served. It is no more than a client of the RPCs, so it opens nothing that they
 * do not; but elsewhere than on loopback, where nobody asks who calls, whoever finds the port would
 * find a page that deletes threads.
 */
export function isServed(mode: UiMode, listensOn: string, asksWhoCalls: boolean): boolean {
  if (mode === "auto") return asksWhoCalls || isLoopback(listensOn);
  return mode !== "off";
}

/**
 * Nothing inline, nothing of elsewhere, in nobody's frame; and no text of a thread can become HTML
 * even by a mistake of the page (trusted types).
 */
const policy = [
  "default-src 'none'",
  "script-src 'self'",
  "style-src 'self'",
  "img-src 'self' blob:",
  "connect-src 'self'",
  "base-uri 'none'",
  "form-action 'none'",
  "frame-ancestors 'none'",
  "require-trusted-types-for 'script'",
  "trusted-types 'none'",
].join("; ");

const headers = {
  "content-security-policy": policy,
  "x-content-type-options": "nosniff",
  "x-frame-options": "DENY",
  // The address names threads.
  "referrer-policy": "no-referrer",
  "cross-origin-opener-policy": "same-origin",
  "cross-origin-resource-policy": "same-origin",
};

const types: Record<string, string> = {
  ".html": "text/html; charset=utf-8",
  ".js": "text/javascript; charset=utf-8",
  ".css": "text/css; charset=utf-8",
  ".svg": "image/svg+xml",
};

interface PageFile {
  type: string;
  body: Buffer;
  zipped: Buffer;
  etag: string;
  cacheControl: string;
}

/** Where the build puts it: beside the folder of the compiled server, whichever package that is in. */
const folder = fileURLToPath(
  new URL(import.meta.url.endsWith(".ts") ? "../../dist/ui" : "../../ui", import.meta.url),
);

/** Reads the page's files; undefined where it was not built, as in a tree that only has its sources. */
export async function readInspector(mode: UiMode): Promise<Inspector | undefined> {
  const files = new Map<string, PageFile>();
  const entries = await readdir(folder, { recursive: true, withFileTypes: true }).catch(() => []);
  for (const entry of entries) {
    const type = types[path.extname(entry.name)];
    if (!entry.isFile() || type === undefined) continue;
    const file = path.join(entry.parentPath, entry.name);
    const name = path.relative(folder, file).split(path.sep).join("/");
    files.set(
      name === "index.html" ? "/" : `/${name}`,
      await toFile(await readFile(file), type, mode),
    );
  }
  if (!files.has("/")) return undefined;
  return (request, response) => {
    const asked = pathOf(request) ?? "";
    const file = files.get(asked);
    if (!file) return false;
    answer(file, request, response);
    return true;
  };
}

async function toFile(read: Buffer, type: string, mode: UiMode): Promise<PageFile> {
  const isPage = type.startsWith("text/html");
  const isReadOnly = isPage && mode === "read-only";
  const body = isReadOnly
    ? Buffer.from(read.toString().replace('content="read-write"', 'content="read-only"'))
    : read;
  return {
    type,
    body,
    zipped: await promisify(gzip)(body),
    etag: `"${createHash("sha256").update(body).digest("base64url").slice(0, 22)}"`,
    // The others have what is in them in their names.
    cacheControl: isPage ? "no-cache" : "public, max-age=31536000, immutable",
  };
}

/** Whether a client names gzip, or all, and not to refuse it (`gzip;q=0`). */
function takesGzip(accepted: string): boolean {
  const named = new Map(
    accepted.split(",").map((each) => {
      const [name = "", ...parameters] = each.toLowerCase().split(";");
      const isRefused = parameters.some((it) => /^\s*q\s*=\s*0(\.0*)?\s*$/.test(it));
      return [name.trim(), !isRefused] as const;
    }),
  );
  return named.get("gzip") ?? named.get("*") ?? false;
}

function answer(file: PageFile, request: NodeRequest, response: NodeResponse): void {
  if (request.method !== "GET" && request.method !== "HEAD") {
    const type = "text/plain; charset=utf-8";
    response.writeHead(405, { ...headers, "content-type": type, allow: "GET, HEAD" });
    response.end("method not allowed\n");
    return;
  }
  const isZipped = takesGzip(String(request.headers["accept-encoding"] ?? ""));
  // Of the two forms each has its own, as a cache between must not mix them.
  const etag = isZipped ? file.etag.replace(/"$/, '-gzip"') : file.etag;
  const told = {
    ...headers,
    "cache-control": file.cacheControl,
    etag,
    // To pages of allowed origins it is told beside CORS headers.
    vary: [response.getHeader("vary"), "accept-encoding"].filter(Boolean).join(", "),
  };
  const known = String(request.headers["if-none-match"] ?? "").split(/\s*,\s*/);
  if (known.some((each) => each.replace(/^W\//, "") === etag)) {
    response.writeHead(304, told);
    response.end();
    return;
  }
  const body = isZipped ? file.zipped : file.body;
  response.writeHead(200, {
    ...told,
    "content-type": file.type,
    "content-length": body.length,
    ...(isZipped ? { "content-encoding": "gzip" } : {}),
  });
  if (request.method === "HEAD") response.end();
  else response.end(body);
}
