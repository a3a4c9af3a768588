/** Sends attacks, and tells what came back. */
import { request } from "node:http";
import { connect } from "node:net";
import type { Attack } from "./requests.js";

/** What is the answer to an attack. */
export interface Answer {
  /** The HTTP status; 0 where there is none. */
  status: number;
  /** What came back, as far as it is text. */
  text: string;
  ms: number;
}

const patienceMs = 20_000;
/** Bytes at the port are not awaited for longer: nobody says that an answer is due. */
const rawMs = 150;
const keptBytes = 20_000;

/** Never rejects. */
export async function send(base: string, attack: Attack): Promise<Answer> {
  const since = performance.now();
  const { status, text } = await (attack.path === undefined
    ? sendRaw(base, attack.body)
    : sendRequest(base, attack.path, attack));
  return { status, text, ms: performance.now() - since };
}

type Told = Pick<Answer, "status" | "text">;

function sendRequest(base: string, path: string, { headers, body }: Attack): Promise<Told> {
  return new Promise((resolve) => {
    let text = "";
    const asked = request(
      `${base}${path}`,
      { method: "POST", headers, timeout: patienceMs },
      (answer) => {
        answer.on("data", (chunk: Buffer) => {
          if (text.length < keptBytes) text += chunk.toString("latin1");
        });
        answer.on("close", () => resolve({ status: answer.statusCode ?? 0, text }));
      },
    );
    asked.on("timeout", () => asked.destroy(new Error("no answer")));
    asked.on("error", (error) => resolve({ status: 0, text: `${text} ${error.message}` }));
    asked.end(body);
  });
}

function sendRaw(base: string, body: Uint8Array): Promise<Told> {
  const { hostname, port } = new URL(base);
  return new Promise((resolve) => {
    let text = "";
    const socket = connect({ host: hostname, port: Number(port) });
    const timer = setTimeout(() => socket.destroy(), rawMs);
    socket.on("data", (chunk) => {
      if (text.length < keptBytes) text += chunk.toString("latin1");
    });
    socket.on("error", () => {});
    socket.on("close", () => {
      clearTimeout(timer);
      resolve({ status: 0, text });
    });
    socket.write(body);
  });
}
