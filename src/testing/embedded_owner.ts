/** Starts an embedded Postgres on the folder given as argument, says so, and waits to be killed. */
import { startEmbedded } from "../store/embedded.js";

const [dataDir = "", then] = process.argv.slice(3);
try {
  const embedded = await startEmbedded({ dataDir, onProgress: (line) => console.error(line) });
  console.log(JSON.stringify({ databaseUrl: embedded.databaseUrl }));
  if (then === "exit") process.exit(0);
  if (then === "stop") await embedded.stop();
  else setInterval(() => {}, 60_000);
} catch (error) {
  console.log(JSON.stringify({ error: (error as Error).message }));
}
