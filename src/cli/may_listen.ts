/** Closed by default: where a server may listen that asks nobody who they are, or does not encrypt. */
import { isLoopback } from "../server/web_guard.js";

/** What decides it. */
export interface Exposure {
  /** The address of the port, resolved; undefined: there is no port. */
  host: string | undefined;
  hasAuthentication: boolean;
  hasTls: boolean;
  insecure: boolean;
  behindTlsProxy: boolean;
  hasSocket: boolean;
}

/** Sentences for whoever starts the server. */
export interface Judgement {
  /** Why it must not listen there and what to do; undefined: it may. */
  refusal?: string;
  /** What is dangerous about it, all the same. */
  warning?: string;
}

/** Whether a server may listen there. A socket of Unix and loopback are open only to this machine. */
export function judgeListening(exposure: Exposure): Judgement {
  const { host, hasAuthentication, hasSocket, insecure } = exposure;
  if (host === undefined) {
    return hasSocket
      ? {}
      : { refusal: "--port none leaves nothing to listen on: give --listen-socket." };
  }
  if (isLoopback(host)) return {};
  const isEncrypted = exposure.hasTls || exposure.behindTlsProxy;
  if (hasAuthentication && isEncrypted) return {};
  if (insecure) {
    const what = hasAuthentication
      ? "keys and threads can be read on their way"
      : "whoever reaches it may read, change and delete every thread";
    return { warning: `--insecure: this server listens on ${host}, and ${what}` };
  }
  const authentication = "--token-file or --auth-file";
  const encryption =
    "--tls-cert and --tls-key (or --behind-tls-proxy, where one ends TLS in front of it)";
  const [danger, wanted] = !hasAuthentication
    ? [
        "would ask nobody who they are",
        isEncrypted ? authentication : `${authentication}, and ${encryption}`,
      ]
    : ["would not encrypt keys and threads", encryption];
  return {
    refusal:
      `On ${host} other machines reach this server, and it ${danger}: give ${wanted}. ` +
      "127.0.0.1 needs none of it; --insecure listens all the same.",
  };
}
