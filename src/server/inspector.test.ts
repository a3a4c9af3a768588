/** The page's files as they are served: to whom, how, and what they tell a browser to refuse. */
import { readdirSync } from "node:fs";
import { request as overHttp1 } from "node:http";
import { connect } from "node:http2";
import { fileURLToPath } from "node:url";
import { gunzipSync } from "node:zlib";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { startEdge } from "../testing/edge.js";
import { startUnreadyServer } from "../testing/test_server.js";
import { isServed } from "./inspector.js";

interface Answer {
  status: number;
  headers: Record<string, string>;
  body: Buffer;
}

function ask(
  url: string,
  path: string,
  headers: Record<string, string> = {},
  method = "GET",
): Promise<Answer> {
  return new Promise((resolve, reject) => {
    const asking = overHttp1(new URL(path, url), { method, headers }, (response) => {
      const parts: Buffer[] = [];
      response.on("data", (part) => parts.push(part));
      response.on("end", () =>
        resolve({
          status: response.statusCode ?? 0,
          headers: response.headers as Record<string, string>,
          body: Buffer.concat(parts),
        }),
      );
    });
    asking.on("error", reject);
    asking.end();
  });
}

/** Asks for a path as it is written, which a URL would not keep. */
function askRaw(url: string, path: string): Promise<Answer> {
  const { hostname: host, port } = new URL(url);
  return new Promise((resolve, reject) => {
    const asking = overHttp1({ host, port, path }, (response) => {
      response.resume().on("end", () =>
        resolve({
          status: response.statusCode ?? 0,
          headers: response.headers as Record<string, string>,
          body: Buffer.alloc(0),
        }),
      );
    });
    asking.on("error", reject);
    asking.end();
  });
}

function askHttp2(url: string, path: string): Promise<Answer> {
  return new Promise((resolve, reject) => {
    const session = connect(url);
    session.on("error", reject);
    const stream = session.request({ ":path": path });
    const parts: Buffer[] = [];
    let headers: Record<string, string> = {};
    stream.on("response", (told) => {
      headers = told as unknown as Record<string, string>;
    });
    stream.on("data", (part) => parts.push(part));
    stream.on("end", () => {
      session.close();
      resolve({ status: Number(headers[":status"]), headers, body: Buffer.concat(parts) });
    });
  });
}

const built = (() => {
  const folder = fileURLToPath(new URL("../../dist/ui/ui", import.meta.url));
  return readdirSync(folder);
})();

describe("the page", () => {
  let edge: Awaited<ReturnType<typeof startEdge>>;
  beforeAll(async () => {
    edge = await startEdge();
  });
  afterAll(() => edge.stop());

  it("is at / over HTTP/1.1 and HTTP/2, whatever is asked of it", async () => {
    const plain = await ask(edge.server.url, "/?thread=x");
    expect(plain.status).toBe(200);
    expect(plain.headers["content-type"]).toBe("text/html; charset=utf-8");
    expect(plain.body.toString()).toContain('<meta name="checkpointd" content="read-write" />');
    const http2 = await askHttp2(edge.server.url, "/");
    expect(http2.status).toBe(200);
    expect(http2.body.equals(plain.body)).toBe(true);
    const head = await ask(edge.server.url, "/", {}, "HEAD");
    expect(head).toMatchObject({ status: 200, body: Buffer.alloc(0) });
    expect(head.headers["content-length"]).toBe(String(plain.body.length));
  });

  it("lets a browser run nothing but its own files, in nobody's frame", async () => {
    for (const path of ["/", ...built.map((name) => `/ui/${name}`)]) {
      const { status, headers } = await ask(edge.server.url, path);
      expect(status, path).toBe(200);
      expect(headers, path).toMatchObject({
        "content-security-policy":
          "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
        "x-content-type-options": "nosniff",
        "x-frame-options": "DENY",
        "referrer-policy": "no-referrer",
        "cross-origin-opener-policy": "same-origin",
        "cross-origin-resource-policy": "same-origin",
      });
    }
    const { body } = await ask(edge.server.url, "/");
    const html = body.toString();
    // Nothing of elsewhere, no script or style in it.
    expect(html).not.toMatch(/https?:|<style|style=|\son\w+=|<script(?![^>]*\ssrc=)/);
  });

  it("is kept by browsers as long as it is the same", async () => {
    const page = await ask(edge.server.url, "/");
    expect(page.headers["cache-control"]).toBe("no-cache");
    const again = await ask(edge.server.url, "/", { "if-none-match": page.headers.etag as string });
    expect(again).toMatchObject({ status: 304, body: Buffer.alloc(0) });
    const zipped = await ask(edge.server.url, "/", { "accept-encoding": "br, gzip" });
    expect(zipped.headers).toMatchObject({ "content-encoding": "gzip", vary: "accept-encoding" });
    expect(zipped.headers.etag).not.toBe(page.headers.etag);
    expect(gunzipSync(zipped.body).equals(page.body)).toBe(true);
    const script = built.find((name) => name.endsWith(".js"));
    const { headers } = await ask(edge.server.url, `/ui/${script}`);
    expect(headers["cache-control"]).toBe("public, max-age=31536000, immutable");
  });

  it("is less than 150 KB at first", async () => {
    const sizes = await Promise.all(
      ["/", ...built.map((name) => `/ui/${name}`)].map(async (path) => {
        const { body } = await ask(edge.server.url, path, { "accept-encoding": "gzip" });
        return body.length;
      }),
    );
    expect(sizes.reduce((sum, size) => sum + size)).toBeLessThan(150_000);
  });

  it("is zipped only for who takes that", async () => {
    for (const [accepted, encoding] of [
      ["gzip", "gzip"],
      ["br;q=1.0, GZIP;q=0.5", "gzip"],
      ["*", "gzip"],
      ["gzip;q=0", undefined],
      ["br, gzip; q=0.000, *", undefined],
      ["gzipped", undefined],
      ["identity", undefined],
      ["", undefined],
    ] as const) {
      for (const path of ["/", `/ui/${built[0]}`]) {
        const { headers } = await ask(edge.server.url, path, { "accept-encoding": accepted });
        expect(headers["content-encoding"], `${path} ${accepted}`).toBe(encoding);
      }
    }
  });

  it("is not changed for who has it, in either form, whatever else is asked for", async () => {
    for (const path of ["/", ...built.map((name) => `/ui/${name}`)]) {
      for (const accepted of [{}, { "accept-encoding": "gzip" }]) {
        const { headers } = await ask(edge.server.url, path, accepted);
        const { etag = "" } = headers;
        for (const known of [etag, `W/${etag}`, `"other", ${etag}`]) {
          for (const method of ["GET", "HEAD"]) {
            const asked = { ...accepted, "if-none-match": known };
            const again = await ask(edge.server.url, path, asked, method);
            expect(again, `${path} ${known}`).toMatchObject({ status: 304, body: Buffer.alloc(0) });
            for (const name of ["cache-control", "etag", "vary", "content-security-policy"]) {
              expect(again.headers[name], name).toBe(headers[name]);
            }
          }
        }
        const other = { ...accepted, "if-none-match": '"other"' };
        expect((await ask(edge.server.url, path, other)).status).toBe(200);
      }
    }
  });

  it("has no other files, however they are spelled", async () => {
    const asset = `ui/${built[0]}`;
    for (const path of [
      "/ui/../package.json",
      "/../package.json",
      "/ui/..%2f..%2fpackage.json",
      "/ui/%2e%2e/%2e%2e/package.json",
      "/ui/..\\..\\package.json",
      "//package.json",
      "/ui//",
      `//${asset}`,
      `/./${asset}`,
      `/x/../${asset}`,
      `/${asset}/`,
      `/${asset}%00`,
      `/${asset}.map`,
      "/ui",
      "/constructor",
      "/__proto__",
    ]) {
      const answer = await askRaw(edge.server.url, path);
      expect(answer.status, path).toBe(404);
      expect(answer.headers["content-type"], path).toMatch(/^text\/plain/);
      expect(answer.headers["cache-control"], path).toBe("no-store");
    }
  });

  it.each(["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND"])(
    "takes nothing by %s",
    async (method) => {
      for (const path of ["/", `/ui/${built[0]}`]) {
        const answer = await ask(edge.server.url, path, {}, method);
        expect(answer).toMatchObject({ status: 405, headers: { allow: "GET, HEAD" } });
        expect(answer.headers["content-security-policy"]).toContain("default-src 'none'");
        expect(answer.headers["cache-control"]).toBe("no-store");
      }
    },
  );

  it("has nothing else, and takes nothing", async () => {
    for (const path of ["/ui/", "/ui/../package.json", "/index.html", "/ui/%2e%2e/x", "/x"]) {
      expect((await ask(edge.server.url, path)).status, path).toBe(404);
    }
    const posted = await ask(edge.server.url, "/", {}, "POST");
    expect(posted).toMatchObject({ status: 405, headers: { allow: "GET, HEAD" } });
  });

  it("is refused where the host or the origin is, each of its files", async () => {
    for (const path of ["/", ...built.map((name) => `/ui/${name}`)]) {
      for (const headers of [
        { host: "evil.example" },
        { host: "127.0.0.1.evil.example" },
        { origin: "https://evil.example" },
        { origin: "null" },
        { origin: edge.server.url.replace(/:\d+$/, ":1") },
      ]) {
        const answer = await ask(edge.server.url, path, headers);
        expect(answer.status, `${path} ${JSON.stringify(headers)}`).toBe(403);
        expect(answer.body.toString()).not.toContain("<");
      }
      for (const headers of [{ host: "localhost:8080" }, { origin: edge.server.url }]) {
        expect((await ask(edge.server.url, path, headers)).status).toBe(200);
      }
    }
  });

  it("is kept apart by origin where pages of others may call", async () => {
    const corsOrigins = ["https://app.example"];
    const server = await startUnreadyServer(edge.database.url, { corsOrigins });
    try {
      const answer = await ask(server.url, "/", { origin: "https://app.example" });
      expect(answer.headers).toMatchObject({
        vary: "Origin, accept-encoding",
        "cross-origin-resource-policy": "same-origin",
        "x-frame-options": "DENY",
      });
      expect((await ask(server.url, "/")).headers.vary).toBe("Origin, accept-encoding");
    } finally {
      await server.drain();
    }
  });
});

it("is served on loopback and where the server asks who calls, unless told otherwise", () => {
  expect(isServed("auto", "127.0.0.1", false)).toBe(true);
  expect(isServed("auto", "::1", false)).toBe(true);
  expect(isServed("auto", "0.0.0.0", false)).toBe(false);
  expect(isServed("auto", "10.0.0.7", true)).toBe(true);
  expect(isServed("on", "0.0.0.0", false)).toBe(true);
  expect(isServed("read-only", "0.0.0.0", false)).toBe(true);
  expect(isServed("off", "127.0.0.1", true)).toBe(false);
});

it("is not there by itself where whoever finds the port may call", async () => {
  const nowhere = "postgres://nobody@127.0.0.1:1/none";
  for (const [ui, status] of [
    ["auto", 404],
    ["on", 200],
  ] as const) {
    const open = await startUnreadyServer(nowhere, { host: "0.0.0.0", ui });
    const url = `http://127.0.0.1:${open.port}`;
    for (const path of ["/", `/ui/${built[0]}`]) {
      expect((await ask(url, path)).status, `${ui} ${path}`).toBe(status);
    }
    await open.drain();
  }
});

it("says that it is read-only, or is not there", async () => {
  const nowhere = "postgres://nobody@127.0.0.1:1/none";
  const off = await startUnreadyServer(nowhere, { ui: "off" });
  expect((await ask(off.url, "/")).status).toBe(404);
  await off.drain();
  const looking = await startUnreadyServer(nowhere, { ui: "read-only" });
  expect((await ask(looking.url, "/")).body.toString()).toContain('content="read-only"');
  await looking.drain();
});
