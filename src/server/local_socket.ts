import { lstatSync, unlinkSync } from "node:fs";
import { connect } from "node:net";

/**
 * Removes a socket of Unix that a server left behind which was killed. One that somebody listens on,
 * and what is no socket, stays.
 */
export async function removeDeadSocket(path: string): Promise<void> {
  if (!lstatSync(path, { throwIfNoEntry: false })?.isSocket()) return;
  const isDead = await new Promise<boolean>((resolve) => {
    const socket = connect(path, () => {
      socket.destroy();
      resolve(false);
    });
    socket.on("error", (error: NodeJS.ErrnoException) => resolve(error.code === "ECONNREFUSED"));
  });
  if (isDead) unlinkSync(path);
}
