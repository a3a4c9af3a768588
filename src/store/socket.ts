/** The socket of a connection to Postgres, encrypted where the database URL says so. */
import { connect as connectTcp, isIP, type Socket } from "node:net";
import { type ConnectionOptions, connect as connectTls } from "node:tls";

/** Where a Postgres listens. */
export type Address = { host: string; port: number } | { path: string };

/** How it is to be encrypted: see Login. */
export interface Encryption {
  tls: false | "prefer" | ConnectionOptions;
  isDirect: boolean;
}

/**
 * Connects, and encrypts before the first word to Postgres. Rejects with Node's error, or with `late`
 * after so long. Its errors are listened to from then on: one between two owners must not end the
 * process.
 *
 * postgres.js could encrypt as well, but what it writes would not be seen any more (see bind.ts and
 * stall.ts).
 */
export function openSocket(
  address: Address,
  encryption: Encryption,
  timeoutMs: number,
  late: () => Error,
): Promise<Socket> {
  return new Promise((resolve, reject) => {
    const socket = connectTcp({ ...address, noDelay: true });
    const fail = (error: Error) => {
      clearTimeout(timer);
      socket.destroy();
      reject(error);
    };
    const timer = setTimeout(() => fail(late()), timeoutMs);
    socket.on("error", fail);
    socket.on("connect", () => {
      const name = "host" in address ? address.host : undefined;
      if (name !== undefined) Object.assign(socket, { host: name });
      encrypt(socket, name, encryption).then((encrypted) => {
        clearTimeout(timer);
        resolve(encrypted);
      }, fail);
    });
  });
}

/** Asks Postgres whether it speaks TLS: a length, and a number that is no version. */
const request = Buffer.from([0, 0, 0, 8, 4, 210, 22, 47]);

async function encrypt(
  socket: Socket,
  name: string | undefined,
  { tls, isDirect }: Encryption,
): Promise<Socket> {
  if (tls === false) return socket;
  if (!isDirect) {
    const answer = await ask(socket);
    // More than the answer in the clear would be somebody in between who speaks first.
    if (answer.length !== 1) throw new Error("the server said more than whether it speaks TLS");
    if (answer.toString() !== "S") {
      if (tls === "prefer") return socket;
      throw new Error("the server does not speak TLS, and sslmode of the database URL wants it");
    }
  }
  return new Promise((resolve, reject) => {
    const encrypted = connectTls({
      socket,
      ...(name === undefined || isIP(name) ? {} : { servername: name }),
      ...(isDirect ? { ALPNProtocols: ["postgresql"] } : {}),
      ...(tls === "prefer" ? { rejectUnauthorized: false } : tls),
    });
    encrypted.on("error", reject);
    encrypted.on("secureConnect", () => resolve(encrypted));
    socket.on("close", () => {
      encrypted.destroy();
      reject(new Error("the connection ended before it was encrypted"));
    });
  });
}

function ask(socket: Socket): Promise<Buffer> {
  return new Promise((resolve, reject) => {
    const onEnd = () => reject(new Error("the connection ended before it was encrypted"));
    socket.once("close", onEnd);
    socket.once("data", (answer: Buffer) => {
      socket.off("close", onEnd);
      resolve(answer);
    });
    socket.write(request);
  });
}
