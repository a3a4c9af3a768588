/** What the settings say of where to listen and how, looked at before anything is started. */
import { lookup } from "node:dns/promises";
import { checkTlsFiles, type TlsFiles } from "../server/tls.js";
import { UsageError } from "../settings/flags.js";
import { judgeListening } from "./may_listen.js";
import type { ServeValues } from "./settings.js";

/** The settings that say it. */
type Given = Pick<
  ServeValues,
  | "host"
  | "port"
  | "socketPath"
  | "tlsCert"
  | "tlsKey"
  | "tlsClientCa"
  | "tokenFile"
  | "authFile"
  | "behindTlsProxy"
  | "insecure"
>;

/**
 * The files of TLS, if there is to be TLS, and sentences for whoever runs the command.
 *
 * @throws UsageError when settings lack each other, or the server must not listen there; Error when a
 *   file cannot be used
 */
export async function chooseListening(
  given: Given,
): Promise<{ tls: TlsFiles | undefined; warnings: string[] }> {
  const { tlsCert: cert, tlsKey: key, tlsClientCa: clientCa, behindTlsProxy, insecure } = given;
  if ((cert === undefined) !== (key === undefined)) {
    throw new UsageError("--tls-cert and --tls-key need each other.");
  }
  if (clientCa !== undefined && cert === undefined) {
    throw new UsageError("--tls-client-ca needs --tls-cert and --tls-key.");
  }
  if (given.tokenFile !== undefined && given.authFile !== undefined) {
    throw new UsageError(
      "--token-file is for servers without --auth-file, which has keys of its own.",
    );
  }
  const tls = cert !== undefined && key !== undefined ? { cert, key, clientCa } : undefined;
  const { refusal, warning } = judgeListening({
    host: given.port === undefined ? undefined : await addressOf(given.host),
    hasAuthentication: (given.tokenFile ?? given.authFile) !== undefined,
    hasTls: tls !== undefined,
    hasSocket: given.socketPath !== undefined,
    behindTlsProxy,
    insecure,
  });
  if (refusal !== undefined) throw new UsageError(refusal);
  if (tls) await checkTlsFiles(tls);
  const warnings = warning === undefined ? [] : [warning];
  if (clientCa !== undefined && given.authFile === undefined) {
    warnings.push(
      given.tokenFile === undefined
        ? "--tls-client-ca: without --auth-file no certificate counts for anything: every caller may do everything"
        : "--tls-client-ca: with --token-file no certificate counts for anything: every caller needs the key; an --auth-file says whose certificates there are",
    );
  }
  return { tls, warnings };
}

/** As Node takes it when it listens: a name may be called localhost and lead elsewhere. */
async function addressOf(host: string): Promise<string> {
  try {
    return (await lookup(host)).address;
  } catch {
    return host;
  }
}
