/**
 * The URLs, of one host each, that a URL with several stands for: `postgres://a:5432,b/x` for
 * `postgres://a:5432/x` and `postgres://b/x`, without `target_session_attrs`, which is about them
 * all.
 */
export function eachHost(databaseUrl: string): string[] {
  const [, before = "", hosts = "", after = ""] =
    /^([a-z]+:\/\/(?:[^/?#]*@)?)([^/?#]*)(.*)$/s.exec(databaseUrl) ?? [];
  const rest = after.replace(/([?&])target_session_attrs=[^&]*(&|$)/, (_, first, next) =>
    next === "&" ? first : "",
  );
  return hosts.split(",").map((host) => before + host + rest);
}
