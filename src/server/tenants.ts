/** The tenants of one database: a schema each, behind one pool. */
import type { Authenticator } from "../auth/authenticator.js";
import type { Principal } from "../auth/principal.js";
import type { Log } from "../log.js";
import type { Db } from "../store/db.js";
import { quoteSchema } from "../store/schema_name.js";
import type { Store } from "./access.js";
import { describeCause } from "./call_log.js";
import { notReady } from "./connect_error.js";
import { Quota } from "./quota.js";

/** What carries out a tenant's calls, once its tables are there. */
export interface TenantStore extends Store {
  readonly quota: Quota;
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

/**
 * Returns what finds who carries out a principal's calls. A schema each, since then no statement of one tenant
 * can reach a row of another, whatever it says, no list passes others' rows, and a direct saver of the
 * tenant has a role that sees its schema alone. A batch is of one tenant. With ten tenants at 32 puts in
 * flight that took Postgres 1.2 times the CPU of batches that mix them (gets 1.2), and row-level
 * security, which needs a transaction with a setting for each batch, 1.7 (gets 1.9); with 4 in flight
 * 1.1 and 2.1.
 *
 * The first call of a tenant waits until its tables are up to date.
 */
export function createTenants(options: TenantsOptions) {
  const { db, createStore, authenticator, migrate, onReady, log } = options;
  const own: TenantStore = { ...createStore(db), quota: new Quota(db, log) };
  const bySchema = new Map<string, TenantStore>();
  const preparing = new Map<string, Promise<TenantStore>>();

  async function prepare(schema: string): Promise<TenantStore> {
    try {
      await migrate?.(schema);
    } catch (error) {
      log.error({ schema, error: describeCause(error) }, "a tenant's tables are not up to date");
      setTimeout(() => preparing.delete(schema), retryMs).unref();
      throw notReady();
    }
    const ofTenant: Db = { ...db, schema: quoteSchema(schema), guard: { until: 0 } };
    const store = { ...createStore(ofTenant), quota: new Quota(ofTenant, log) };
    bySchema.set(schema, store);
    preparing.delete(schema);
    onReady(schema);
    return store;
  }

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
      return ready;
    }
    const begun = preparing.get(schema) ?? prepare(schema);
    preparing.set(schema, begun);
    return begun;
  }

  return {
    storeOf,
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
        const store = storeOf({ tenant });
        // It is in the log, and tried again at the tenant's next call.
        if (store instanceof Promise) store.catch(() => {});
      }
    },
  };
}
