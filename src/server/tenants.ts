/** The tenants of one database: a schema each, behind one pool. */
import { setTimeout as sleep } from "node:timers/promises";
import type { Authenticator } from "../auth/authenticator.js";
import type { Principal } from "../auth/principal.js";
import type { CheckpointdError } from "../errors.js";
import type { Log } from "../log.js";
import type { Db } from "../store/db.js";
import { lookAtTables } from "../store/look.js";
import { quoteSchema } from "../store/schema_name.js";
import type { Store } from "./access.js";
import { describeCause } from "./call_log.js";
import { notReady } from "./connect_error.js";
import { Quota } from "./quota.js";
import { describeNewer, refusalOf } from "./readiness.js";

/** What carries out a tenant's calls, once its tables are there. */
export interface TenantStore extends Store {
  readonly quota: Quota;
  /** What its calls are refused with while this version cannot serve its tables. */
  refusal: (() => CheckpointdError) | undefined;
}

/** What tenants are made with. */
export interface TenantsOptions {
  /** Of the server's own schema, which is the tenant "". */
  db: Db;
  createStore: (db: Db) => Store;
  authenticator: Pick<Authenticator, "tenants">;
  /** Brings a schema's tables up to date; undefined where somebody else does. */
  migrate: ((schema: string) => Promise<unknown>) | undefined;
  /** Called once for each schema, when its tables are up to date. */
  onReady: (schema: string) => void;
  log: Log;
}

/** A tenant's schema that could not be brought up to date is not tried again before. */
const retryMs = 5_000;
/** From the end of a look at one tenant's tables to the next tenant's: ten are looked at every 5 s. */
const lookMs = 500;
/** A look that takes longer says nothing; the tenant's calls find out for themselves. */
const lookTimeoutMs = 5_000;

/**
 * Returns what finds who carries out a principal's calls. A schema each, since then no statement of one tenant
 * can reach a row of another, whatever it says, no list passes others' rows, and a direct saver of the
 * tenant has a role that sees its schema alone. A batch is of one tenant. With ten tenants at 32 puts in
 * flight that took Postgres 1.2 times the CPU of batches that mix them (gets 1.2), and row-level
 * security, which needs a transaction with a setting for each batch, 1.7 (gets 1.9); with 4 in flight
 * 1.1 and 2.1.
 *
 * The first call of a tenant waits until its tables are up to date. Then they are looked at in turn:
 * another version may bring one schema up to date and not the others.
 */
export function createTenants(options: TenantsOptions) {
  const { db, createStore, authenticator, migrate, onReady, log } = options;
  const own: TenantStore = { ...createStore(db), quota: new Quota(db, log), refusal: undefined };
  const bySchema = new Map<string, TenantStore>();
  const preparing = new Map<string, Promise<TenantStore>>();
  const stopping = new AbortController();

  const dbOf = (schema: string): Db => ({
    ...db,
    schema: quoteSchema(schema),
    guard: { until: 0 },
  });

  /** What calls on the tables are refused with, told in the log when it is another than before. */
  async function judge(schema: string, before: TenantStore["refusal"]) {
    const signal = AbortSignal.any([stopping.signal, AbortSignal.timeout(lookTimeoutMs)]);
    const look = await lookAtTables(dbOf(schema), schema, signal);
    const refusal = refusalOf(look);
    if (refusal?.().message === before?.().message) return before;
    if (!refusal) log.info({ schema }, "a tenant's tables can be served again");
    else {
      const why =
        look.newer.length > 0 ? describeNewer(look) : "they are older: run checkpointd migrate";
      log.error({ schema }, `a tenant's tables cannot be served: ${why}; its calls are refused`);
    }
    return refusal;
  }

  async function prepare(schema: string): Promise<TenantStore> {
    let refusal: TenantStore["refusal"];
    try {
      await migrate?.(schema);
      refusal = await judge(schema, undefined);
    } catch (error) {
      log.error({ schema, error: describeCause(error) }, "a tenant's tables are not up to date");
      setTimeout(() => preparing.delete(schema), retryMs).unref();
      throw notReady();
    }
    const ofTenant = dbOf(schema);
    const store = { ...createStore(ofTenant), quota: new Quota(ofTenant, log), refusal };
    bySchema.set(schema, store);
    preparing.delete(schema);
    onReady(schema);
    return store;
  }

  function servable(store: TenantStore): TenantStore {
    if (store.refusal) throw store.refusal();
    return store;
  }

  async function watch(): Promise<void> {
    while (!stopping.signal.aborted) {
      // A schema that comes while they are looked at has its turn as well.
      for (const [schema, store] of bySchema) {
        await pause(lookMs);
        // What keeps a look from an answer is not of this tenant; readiness tells it.
        store.refusal = await judge(schema, store.refusal).catch(() => store.refusal);
      }
      await pause(lookMs);
    }
  }

  const pause = (ms: number) =>
    sleep(ms, undefined, { ref: false, signal: stopping.signal }).catch(() => {});
  void watch();

  function storeOf({ tenant: name }: Pick<Principal, "tenant">) {
    if (name === "") return own;
    const tenant = authenticator.tenants.get(name);
    // It was taken out of the auth file, and its principals with it.
    if (!tenant) throw notReady();
    const { schema, storedBytes } = tenant;
    if (quoteSchema(schema) === db.schema) {
      log.error(
        { tenant: name, schema },
        "a tenant has the server's own schema: its calls are refused",
      );
      throw notReady();
    }
    const ready = bySchema.get(schema);
    if (ready) {
      ready.quota.limit = storedBytes ?? Number.POSITIVE_INFINITY;
      return servable(ready);
    }
    const begun = preparing.get(schema) ?? prepare(schema);
    preparing.set(schema, begun);
    return begun.then(servable);
  }

  return {
    storeOf,
    /** Ends looking at the tables. */
    stop: () => stopping.abort(),
    /** What the tenants with a quota store, of those that have written since the start. */
    *stored(): Generator<{ tenant: string; stored: number; limit: number }> {
      for (const [tenant, { schema }] of authenticator.tenants) {
        const { stored, limit = Number.POSITIVE_INFINITY } = bySchema.get(schema)?.quota ?? {};
        if (stored !== undefined && Number.isFinite(limit)) yield { tenant, stored, limit };
      }
    },
    /** Brings the tables of all tenants up to date that the auth file has now. */
    prepareAll(): void {
      for (const tenant of authenticator.tenants.keys()) {
        // It is in the log, and tried again at the tenant's next call.
        void (async () => storeOf({ tenant }))().catch(() => {});
      }
    },
  };
}
