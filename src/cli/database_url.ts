/** Which database the settings name, and whether they keep its password to themselves. */
import { UsageError } from "../settings/flags.js";
import { eachHost } from "../store/hosts.js";
import { findOpenPassfile } from "../store/passfile.js";
import { type DatabaseUrlFile, settings } from "./settings.js";

/**
 * The URL of the database, from where it was given; undefined where it was not. `warnings` are
 * sentences for whoever runs the command.
 *
 * @param args the command line, of which all users of the machine can read the flags
 * @throws UsageError when two settings name a database
 */
export function chooseDatabase(
  given: { databaseUrl: string | undefined; databaseUrlFile: DatabaseUrlFile | undefined },
  args: readonly string[],
): { databaseUrl: string | undefined; warnings: string[] } {
  const { databaseUrl, databaseUrlFile: file } = given;
  if (databaseUrl !== undefined && file !== undefined) {
    throw new UsageError(
      "Give the database by --database-url or DATABASE_URL, or by --database-url-file or CHECKPOINTD_DATABASE_URL_FILE, not by both.",
    );
  }
  const url = databaseUrl ?? file?.url;
  const warnings: string[] = [];
  const flag = `--${settings.databaseUrl.flag}`;
  const isTyped = args.some((arg) => arg === flag || arg.startsWith(`${flag}=`));
  if (isTyped && url !== undefined && holdsPassword(url)) {
    warnings.push(
      `the password in ${flag} can be read by all users of this machine in the list of processes: use --database-url-file, DATABASE_URL, or a password file (PGPASSFILE)`,
    );
  }
  if (file?.isOpen) {
    warnings.push(
      `all users of this machine can read the database URL's file ${file.path}: take the right from them (chmod o-r)`,
    );
  }
  const passfile = url === undefined || holdsPassword(url) ? undefined : findOpenPassfile();
  if (passfile !== undefined) {
    warnings.push(
      `the password file ${passfile} is not read, because others may read it: chmod 600 it`,
    );
  }
  return { databaseUrl: url, warnings };
}

const holdsPassword = (databaseUrl: string) =>
  eachHost(databaseUrl).some((url) => {
    const { password, searchParams } = new URL(url);
    return password !== "" || searchParams.has("password");
  });
