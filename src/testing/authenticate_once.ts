/** Prints as whom the auth file takes a token; both are given as arguments. */
import { startAuthenticator } from "../auth/authenticator.js";
import { createLog } from "../log.js";

const [file = "", token = ""] = process.argv.slice(3);
const auth = await startAuthenticator({ file, log: createLog("warn") });
const headers = { authorization: `Bearer ${token}` };
try {
  console.log((await auth.authenticate(headers, undefined)).name);
} catch (error) {
  console.log((error as Error).message);
}
auth.stop();
