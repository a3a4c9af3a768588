/** The roles of the embedded Postgres besides its superuser. */
import { randomBytes } from "node:crypto";
import type pg from "pg";

/** Reads and writes what is in the tables: whoever takes over the service can start no program. */
const serving = "checkpointd_serve";
/** Owns the tables. */
const migrating = "checkpointd_migrate";

/** Everything of ours and of LangGraph's savers, in whatever schema. */
const tables = [
  "checkpoints",
  "checkpoint_blobs",
  "checkpoint_writes",
  "checkpoint_migrations",
  "checkpointd_claims",
  "checkpointd_migrations",
];

/**
 * Makes the two roles where they are missing, gives them new passwords, which nobody has to keep,
 * and hands over the tables that an earlier version made as the superuser.
 *
 * @param client a session of the superuser
 */
export async function makeRoles(
  client: pg.Client,
): Promise<Record<"serving" | "migrating", { role: string; password: string }>> {
  const passwords = [serving, migrating].map((role) => {
    return { role, password: randomBytes(24).toString("hex") };
  });
  const statements = [
    "BEGIN",
    ...passwords.flatMap(({ role, password }) => [
      `DO $$ BEGIN
         IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '${role}') THEN CREATE ROLE ${role}; END IF;
       END $$`,
      `ALTER ROLE ${role} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS PASSWORD '${password}'`,
    ]),
    `GRANT CREATE ON DATABASE postgres TO ${migrating}`,
    `GRANT USAGE, CREATE ON SCHEMA public TO ${migrating}`,
    `ALTER DEFAULT PRIVILEGES FOR ROLE ${migrating} GRANT USAGE ON SCHEMAS TO ${serving}`,
    `ALTER DEFAULT PRIVILEGES FOR ROLE ${migrating}
       GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO ${serving}`,
    `DO $$
     DECLARE found record;
     BEGIN
       FOR found IN
         SELECT c.oid::regclass AS name, n.oid::regnamespace AS home,
           n.nspowner = current_user::regrole AS is_ours
         FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
         WHERE relkind IN ('r', 'p') AND relname IN (${tables.map((name) => `'${name}'`).join()})
           AND nspname !~ '^pg_' AND relowner <> '${migrating}'::regrole
       LOOP
         IF found.is_ours THEN
           EXECUTE format('ALTER SCHEMA %s OWNER TO ${migrating}', found.home);
         END IF;
         EXECUTE format('GRANT USAGE, CREATE ON SCHEMA %s TO ${migrating}', found.home);
         EXECUTE format('GRANT USAGE ON SCHEMA %s TO ${serving}', found.home);
         EXECUTE format('ALTER TABLE %s OWNER TO ${migrating}', found.name);
         EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON %s TO ${serving}', found.name);
       END LOOP;
     END $$`,
    "COMMIT",
  ];
  for (const statement of statements) await client.query(statement);
  return { serving: passwords[0]!, migrating: passwords[1]! };
}
