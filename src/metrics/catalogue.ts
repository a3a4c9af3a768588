/**
 * Every metric there is, in the order of the page. The tables in docs/metrics.md, the dashboard and
 * the alert rules in deploy/ are checked against this one.
 */

/** How the values of several workers become one. */
export type Merge = "sum" | "max" | "min";

/** One metric. */
export interface Metric {
  readonly name: string;
  readonly type: "counter" | "gauge" | "histogram";
  /** What it means, as Prometheus shows it. */
  readonly help: string;
  readonly labels: readonly string[];
  readonly merge: Merge;
  /** Of a histogram: the upper bounds, without infinity. */
  readonly buckets: readonly number[];
}

const counter = (name: string, help: string, labels: readonly string[] = []): Metric => ({
  name,
  type: "counter",
  help,
  labels,
  merge: "sum",
  buckets: [],
});

const gauge = (
  name: string,
  help: string,
  labels: readonly string[] = [],
  merge: Merge = "sum",
): Metric => ({ name, type: "gauge", help, labels, merge, buckets: [] });

const histogram = (
  name: string,
  help: string,
  buckets: readonly number[],
  labels: readonly string[] = [],
): Metric => ({ name, type: "histogram", help, labels, merge: "sum", buckets });

/** From half a millisecond, which is what a single put takes, to what nobody waits for. */
const callSeconds = [
  0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30,
];
const queueSeconds = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10];
/** Up to what one statement takes. */
const batchCalls = [1, 2, 4, 8, 16, 32];
/** Up to what makes clients give a server up. */
const standstillSeconds = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5];

/** The metrics by the names that the code has for them. */
export const catalogue = {
  // Calls
  calls: counter("checkpointd_calls_total", "Calls that are over.", ["rpc", "carrier", "code"]),
  callSeconds: histogram(
    "checkpointd_call_duration_seconds",
    "How long the client of a call waited for the server; of a stream, for one message at the longest.",
    callSeconds,
    ["rpc", "carrier"],
  ),
  queueSeconds: histogram(
    "checkpointd_call_queue_seconds",
    "How long the statements of a call waited for a connection to Postgres.",
    queueSeconds,
    ["rpc"],
  ),
  batchCalls: histogram(
    "checkpointd_call_batch_size",
    "The most calls that travelled in one statement of a call, itself included.",
    batchCalls,
    ["rpc"],
  ),
  requestBytes: counter(
    "checkpointd_request_bytes_total",
    "Bytes of requests, as they are on the wire.",
    ["rpc", "carrier"],
  ),
  answerBytes: counter(
    "checkpointd_answer_bytes_total",
    "Bytes of answers, as they are on the wire.",
    ["rpc", "carrier"],
  ),
  callErrors: counter(
    "checkpointd_call_errors_total",
    "Calls that were answered with an error, by its reason (none: it has none).",
    ["reason"],
  ),
  callsInFlight: gauge(
    "checkpointd_calls_in_flight",
    "Calls that have begun and are not over; an open stream is one.",
  ),

  // The way to Postgres
  poolConnections: gauge(
    "checkpointd_pool_connections",
    "Connections to Postgres: in_use by a statement or being opened for one, or idle.",
    ["state"],
  ),
  poolLimit: gauge("checkpointd_pool_connections_limit", "Connections held at the most."),
  poolWaiting: gauge(
    "checkpointd_pool_waiting_calls",
    "Calls that wait for a connection to Postgres.",
  ),
  poolWaitingLimit: gauge(
    "checkpointd_pool_waiting_calls_limit",
    "Calls that may wait; the next one is refused as QUEUE_FULL.",
  ),
  poolLong: gauge(
    "checkpointd_pool_long_statements",
    "Statements of lists, prunes, copies and the like that run.",
  ),
  poolLongLimit: gauge(
    "checkpointd_pool_long_statements_limit",
    "Such statements that may run at a time; the others wait.",
  ),
  poolOpened: counter(
    "checkpointd_pool_connections_opened_total",
    "Connections to Postgres that were opened.",
  ),
  poolFailed: counter(
    "checkpointd_pool_connect_failures_total",
    "Tries to connect to Postgres that failed.",
  ),
  poolLost: counter(
    "checkpointd_pool_connections_lost_total",
    "Connections to Postgres that ended without our closing them, by what ended them.",
    ["reason"],
  ),
  resultBytes: gauge(
    "checkpointd_result_bytes",
    "Bytes of results that have arrived of statements that run.",
  ),
  resultBytesLimit: gauge(
    "checkpointd_result_bytes_limit",
    "Such bytes at the most; beyond it the largest result is given up as OVERLOADED.",
  ),

  // The database
  ready: gauge(
    "checkpointd_ready",
    "1 while the database can be used and the server is not draining, as /readyz tells.",
    [],
    "min",
  ),
  draining: gauge("checkpointd_draining", "1 once the server was told to stop.", [], "max"),
  databaseReachable: gauge(
    "checkpointd_database_reachable",
    "1 while Postgres answers the look at it every five seconds.",
    [],
    "min",
  ),
  databaseWritable: gauge(
    "checkpointd_database_writable",
    "1 while Postgres takes writes; 0 on a standby and while it is not reached.",
    [],
    "min",
  ),
  databaseProbeSeconds: gauge(
    "checkpointd_database_probe_seconds",
    "How long the last look at the database took.",
    [],
    "max",
  ),
  databaseHost: gauge(
    "checkpointd_database_host",
    "1 for the host of the database URL that the last connection was opened to.",
    ["host"],
    "max",
  ),
  databaseStart: gauge(
    "checkpointd_database_start_timestamp_seconds",
    "When the Postgres was started that answered last.",
    [],
    "max",
  ),
  standbyLag: gauge(
    "checkpointd_database_standby_lag_bytes",
    "WAL that the slowest standby has not replayed, where the primary tells the role (pg_monitor).",
    [],
    "max",
  ),
  tableLocks: gauge(
    "checkpointd_database_table_locks",
    "Locks of others that make calls wait, at the last look.",
    [],
    "max",
  ),

  // Clients
  connections: gauge("checkpointd_connections", "Connections of clients, by what they speak.", [
    "protocol",
  ]),
  connectionsLimit: gauge(
    "checkpointd_connections_limit",
    "Connections at the most; further ones are closed as they arrive.",
  ),
  connectionsCut: counter(
    "checkpointd_connections_cut_total",
    "Connections and answers that the server ended to keep its limits, by which.",
    ["limit"],
  ),
  sessions: gauge(
    "checkpointd_sessions",
    "Sessions: new (under a minute old), settled, or overdue (asked to move and still there).",
    ["age"],
  ),
  sessionsOpened: counter("checkpointd_sessions_opened_total", "Sessions that were begun."),
  streams: gauge(
    "checkpointd_streams",
    "Streams that are no sessions of our own clients: answers (of List and the like), or other.",
    ["kind"],
  ),
  streamsLimit: gauge("checkpointd_streams_limit", "Such streams at the most.", ["kind"]),
  streamsRefused: counter(
    "checkpointd_streams_refused_total",
    "Streams that were answered with HTTP 429, because there were too many.",
  ),
  answersStalled: gauge(
    "checkpointd_answers_stalled",
    "Streams and connections of whose waiting answers the reader has taken nothing for 5 s.",
  ),
  unreadBytes: gauge("checkpointd_unread_bytes", "Bytes of answers that wait for their readers."),
  unreadBytesLimit: gauge(
    "checkpointd_unread_bytes_limit",
    "Such bytes at the most; beyond it the connection with most is cut.",
  ),
  requestHeldBytes: gauge(
    "checkpointd_request_held_bytes",
    "Bytes of requests that are received or worked on.",
  ),
  requestHeldBytesLimit: gauge(
    "checkpointd_request_held_bytes_limit",
    "Such bytes at the most; beyond it requests are refused as OVERLOADED.",
  ),
  listedBytes: gauge(
    "checkpointd_listed_bytes",
    "Bytes of the tuples of streamed lists that wait for their readers.",
  ),

  // Who calls
  credentialsRefused: counter(
    "checkpointd_credentials_refused_total",
    "Credentials that were refused, by why; missing: there was none.",
    ["why"],
  ),
  tenantCalls: counter(
    "checkpointd_tenant_calls_total",
    "Calls of a tenant that are over; (none) is the server's own schema.",
    ["tenant"],
  ),
  tenantRefused: counter(
    "checkpointd_tenant_refused_total",
    "Calls of a tenant that were refused for its rights, its limits or its quota.",
    ["tenant", "reason"],
  ),
  tenantRequestBytes: counter(
    "checkpointd_tenant_request_bytes_total",
    "Bytes of a tenant's requests.",
    ["tenant"],
  ),
  tenantAnswerBytes: counter(
    "checkpointd_tenant_answer_bytes_total",
    "Bytes of the answers to a tenant.",
    ["tenant"],
  ),
  tenantStoredBytes: gauge(
    "checkpointd_tenant_stored_bytes",
    "What a tenant with a quota stores, as last counted.",
    ["tenant"],
    "max",
  ),
  tenantStoredBytesLimit: gauge(
    "checkpointd_tenant_stored_bytes_limit",
    "The quota of a tenant that has one.",
    ["tenant"],
    "max",
  ),

  // Threads
  leasesTaken: counter("checkpointd_leases_taken_total", "Leases that ClaimThreads gave."),
  leasesHeld: gauge(
    "checkpointd_leases_held",
    "Leases that are held, at the last sample, counted up to 10,000.",
    [],
    "max",
  ),
  sampledThreads: gauge(
    "checkpointd_sampled_threads",
    "How the latest threads stand, of --metrics-threads at the most.",
    ["status"],
    "max",
  ),
  sampleSeconds: gauge(
    "checkpointd_sample_seconds",
    "How long the last sample of threads took.",
    [],
    "max",
  ),
  sampledAt: gauge(
    "checkpointd_sample_timestamp_seconds",
    "When threads were last sampled.",
    [],
    "max",
  ),
  retentionRuns: counter(
    "checkpointd_retention_runs_total",
    "Runs of retention: done, failed, or elsewhere (another replica has it).",
    ["result"],
  ),
  retentionRemoved: counter(
    "checkpointd_retention_removed_rows_total",
    "Rows that retention removed.",
    ["table"],
  ),
  retentionRemovedBytes: counter(
    "checkpointd_retention_removed_bytes_total",
    "Bytes that retention removed, as they were stored.",
  ),
  retentionSeconds: counter(
    "checkpointd_retention_seconds_total",
    "How long runs of retention took, its pauses included.",
  ),
  retentionDoneAt: gauge(
    "checkpointd_retention_done_timestamp_seconds",
    "When a run of retention was last done here, or elsewhere; 0: not since the start.",
    [],
    "max",
  ),

  // Traces
  spansEnded: counter(
    "checkpointd_trace_spans_ended_total",
    "Spans of sampled calls that are over, and are to be exported.",
  ),
  spansExported: counter(
    "checkpointd_trace_spans_exported_total",
    "Spans by what came of their export: sent, or failed (they are lost).",
    ["result"],
  ),
  traceLimited: counter(
    "checkpointd_trace_limited_calls_total",
    "Calls that were to be traced and were not, by --trace-limit.",
  ),

  // The process
  buildInfo: gauge("checkpointd_build_info", "1, with the versions.", ["version", "node"], "max"),
  workers: gauge("checkpointd_workers", "Processes that serve; of them the page has the values."),
  workersSilent: gauge(
    "checkpointd_workers_silent",
    "Workers that did not answer within two seconds: their gauges are missing from the page.",
  ),
  workersEnded: counter(
    "checkpointd_workers_ended_total",
    "Workers that ended without being told to, and were replaced.",
  ),
  standstillSeconds: histogram(
    "checkpointd_event_loop_standstill_seconds",
    "Seconds of the process by the longest time that its event loop stood still in them.",
    standstillSeconds,
  ),
  eventLoopBusy: counter(
    "checkpointd_event_loop_busy_seconds_total",
    "How long event loops were at work; one second a second is all that one has.",
  ),
  gcSeconds: counter("checkpointd_gc_seconds_total", "How long garbage collections took.", [
    "kind",
  ]),
  heapUsed: gauge("checkpointd_heap_used_bytes", "Memory of V8's heap that is in use.", [], "max"),
  heapLimit: gauge(
    "checkpointd_heap_limit_bytes",
    "What V8's heap may grow to; at it the process ends.",
    [],
    "min",
  ),
  externalBytes: gauge(
    "checkpointd_external_bytes",
    "Memory of Buffers, which is not in the heap.",
  ),
  cpuSeconds: counter("process_cpu_seconds_total", "CPU time of the process, user and system."),
  residentBytes: gauge("process_resident_memory_bytes", "Resident memory."),
  openFds: gauge("process_open_fds", "Open files, sockets included.", [], "max"),
  maxFds: gauge("process_max_fds", "Files that the process may have open.", [], "min"),
  startedAt: gauge("process_start_time_seconds", "When the process started.", [], "min"),
} satisfies Record<string, Metric>;

/** A metric of the catalogue. */
export type MetricKey = keyof typeof catalogue;
