import { chmod, chown, stat, writeFile } from "node:fs/promises";
import path from "node:path";
import { type Embedded, startEmbedded } from "../store/embedded.js";
import { createCertificate } from "./certificate.js";

/**
 * Starts an embedded Postgres in the folder that speaks TLS as "localhost", with a certificate of its
 * own in the file that is returned. Its caller stops it and removes the folder.
 */
export async function startTlsPostgres(
  folder: string,
): Promise<{ postgres: Embedded; certificate: string }> {
  const dataDir = path.join(folder, "data");
  const cluster = path.join(dataDir, "postgres");
  const start = (settings: Record<string, string>) =>
    startEmbedded({ dataDir, onProgress: () => {}, settings: { fsync: "off", ...settings } });
  await (await start({})).stop();
  const { uid, gid } = await stat(cluster);
  for (const [name, text] of Object.entries(createCertificate("localhost"))) {
    const file = path.join(cluster, `${name}.pem`);
    await writeFile(file, text);
    // Postgres takes a key only of its own user, and readable by nobody else.
    await chown(file, uid, gid);
    await chmod(file, 0o600);
  }
  const postgres = await start({ ssl: "on", ssl_cert_file: "cert.pem", ssl_key_file: "key.pem" });
  return { postgres, certificate: path.join(cluster, "cert.pem") };
}
