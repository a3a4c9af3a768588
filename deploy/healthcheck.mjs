/** Ends with 0 when the server of this container is ready, which it tells by /readyz. */
import { request as requestHttp } from "node:http";
import { request as requestHttps } from "node:https";

const { CHECKPOINTD_PORT: port = "8080", CHECKPOINTD_TLS_CERT: certificate } = process.env;
const request = certificate === undefined ? requestHttp : requestHttps;
// Its certificate names the service, not this container.
const options = { host: "127.0.0.1", port, path: "/readyz", rejectUnauthorized: false };
const asking = request(options, (response) => {
  response.pipe(process.stdout);
  response.on("end", () => process.exit(response.statusCode === 200 ? 0 : 1));
});
asking.setTimeout(4_000, () => asking.destroy(new Error("no answer within 4 s")));
asking.on("error", (error) => {
  console.error(error.message);
  process.exit(1);
});
asking.end();
