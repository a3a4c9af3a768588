/** Migrates the database and schema given as arguments and prints what it applied. */
import { migrate } from "../store/migrate.js";

const [databaseUrl = "", schema = ""] = process.argv.slice(3);
const { applied } = await migrate({ databaseUrl, schema });
console.log(JSON.stringify(applied));
