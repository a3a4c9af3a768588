-- The two roles of docs/operate.md, "Database privileges", made when Postgres sets itself up.
\set ON_ERROR_STOP on
\set migrate_password `cat /secrets/migrate_password`
\set serve_password `cat /secrets/serve_password`
CREATE ROLE checkpointd_migrate LOGIN PASSWORD :'migrate_password';
CREATE ROLE checkpointd_serve LOGIN PASSWORD :'serve_password';
GRANT USAGE, CREATE ON SCHEMA public TO checkpointd_migrate;
GRANT USAGE ON SCHEMA public TO checkpointd_serve;
ALTER DEFAULT PRIVILEGES FOR ROLE checkpointd_migrate IN SCHEMA public
  GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO checkpointd_serve;
