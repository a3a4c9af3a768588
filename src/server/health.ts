import { Code, ConnectError, type ServiceImpl } from "@connectrpc/connect";
import {
  type Health as HealthService,
  HealthCheckResponse_ServingStatus as ServingStatus,
} from "../../gen/health/v1/health_pb.js";

export { ServingStatus };

/** The health of this process as `grpc.health.v1.Health` tells it. */
export interface Health {
  /** The implementation of `grpc.health.v1.Health`, for a Connect router. */
  readonly service: ServiceImpl<typeof HealthService>;
  /** Sets the status of one service, known before or not; "" is the server as a whole. */
  set(service: string, status: ServingStatus): void;
  /** Sets the status of every service known so far. */
  setAll(status: ServingStatus): void;
  /**
   * The server is shutting down: every service turns NOT_SERVING, every Watch tells so and
   * ends with OK, and later calls of `set` and `setAll` change nothing. Idempotent.
   */
  close(): void;
  /** How many Watch calls are under way. */
  watchers(): number;
}

/**
 * Creates the health of the named services and of the server as a whole (""), all of them
 * NOT_SERVING until set.
 *
 * Check of an unknown service is NOT_FOUND. Watch sends the current status at once
 * (SERVICE_UNKNOWN for an unknown service) and then each change; a reader slower than the
 * changes gets the latest. A Watch lasts until its client goes away or `close` is called.
 */
export function createHealth(...services: string[]): Health {
  const statuses = new Map<string, ServingStatus>();
  const watchers = new Set<() => void>();
  let closed = false;

  function set(service: string, status: ServingStatus): void {
    if (closed) return;
    statuses.set(service, status);
    for (const wake of watchers) wake();
  }

  function setAll(status: ServingStatus): void {
    for (const service of statuses.keys()) set(service, status);
  }

  for (const service of ["", ...services]) set(service, ServingStatus.NOT_SERVING);

  return {
    set,
    setAll,
    close() {
      setAll(ServingStatus.NOT_SERVING);
      closed = true;
      for (const wake of watchers) wake();
    },
    watchers: () => watchers.size,
    service: {
      check({ service }) {
        const status = statuses.get(service);
        if (status === undefined) throw new ConnectError("unknown service", Code.NotFound);
        return { status };
      },

      list: () => ({
        statuses: Object.fromEntries([...statuses].map(([name, status]) => [name, { status }])),
      }),

      async *watch({ service }, { signal }) {
        let resume = () => {};
        const wake = () => resume();
        watchers.add(wake);
        // Connect does not stop a handler whose client went away (connectrpc/connect-es#1217):
        // without the signal this loop would wait for the next change for ever.
        signal.addEventListener("abort", wake);
        try {
          let sent: ServingStatus | undefined;
          while (!signal.aborted) {
            const status = statuses.get(service) ?? ServingStatus.SERVICE_UNKNOWN;
            if (status !== sent) {
              sent = status;
              yield { status };
            } else if (closed) {
              return;
            } else {
              await new Promise<void>((resolve) => {
                resume = resolve;
              });
            }
          }
          // At its deadline the call is to say so, and not that all is told.
          signal.throwIfAborted();
        } finally {
          watchers.delete(wake);
          signal.removeEventListener("abort", wake);
        }
      },
    },
  };
}
