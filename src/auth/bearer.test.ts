import { once } from "node:events";
import { createServer } from "node:http";
import { type AddressInfo, connect } from "node:net";
import { expect, test } from "vitest";
import { createKey } from "./api_keys.js";
import { checkOneAuthorization } from "./bearer.js";
import { createKeyAuthenticator } from "./key_authenticator.js";

test("two authorization headers are refused, of which Node shows the first only", async () => {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const socket = connect((server.address() as AddressInfo).port, "127.0.0.1");
  socket.write(
    "GET / HTTP/1.1\r\nhost: a\r\nauthorization: Bearer a\r\nAUTHORIZATION: Bearer b\r\n\r\n",
  );
  const [request] = await once(server, "request");
  expect(request.headers.authorization).toBe("Bearer a");
  expect(() => checkOneAuthorization(request.rawHeaders)).toThrow("not accepted");
  expect(() => checkOneAuthorization(request.rawHeaders.slice(0, 4))).not.toThrow();
  // The value of another header is none.
  expect(() => checkOneAuthorization(["a", "authorization", "b", "authorization"])).not.toThrow();
  socket.destroy();
  server.close();
});

test("with one key alone whoever has it may do everything, and nobody else anything", () => {
  const key = createKey();
  const auth = createKeyAuthenticator(key);
  const principal = auth.authenticate({ authorization: `Bearer ${key}` }, undefined);
  expect(principal).toMatchObject({
    name: "token",
    tenant: "",
    expiresAt: Number.POSITIVE_INFINITY,
  });
  expect(auth.authenticate({ authorization: `Bearer ${key}` }, undefined)).toBe(principal);
  for (const authorization of [`Bearer ${createKey()}`, `Basic ${key}`, "Bearer x", ""]) {
    expect(() => auth.authenticate({ authorization }, undefined)).toThrow("not accepted");
  }
  expect(() => auth.authenticate({}, undefined)).toThrow("this server asks who calls");
});
