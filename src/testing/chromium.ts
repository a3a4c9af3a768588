/** A Chromium to drive: an installed one, or the one that comes with `npm ci`. */
import { accessSync, constants } from "node:fs";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { type Browser, chromium } from "playwright-core";

/** A browser that runs. */
export interface TestBrowser {
  browser: Browser;
  /** Ends it and removes what was unpacked for it. */
  close(): Promise<void>;
}

const installed = findInstalled();

/** Why there is no Chromium, where nothing is installed and npm has none for this platform. */
export const noChromium =
  installed === undefined && (process.platform !== "linux" || process.arch !== "x64")
    ? `npm has no Chromium for ${process.platform} ${process.arch}: install one, or set CHROMIUM_PATH`
    : undefined;

/** Starts one, with a fresh profile that goes with it. */
export async function startChromium(): Promise<TestBrowser> {
  if (installed !== undefined) {
    const browser = await launch(installed, {});
    return { browser, close: () => browser.close() };
  }
  const { folder, executablePath, env } = await unpack();
  const browser = await launch(executablePath, env);
  return {
    browser,
    async close() {
      await browser.close();
      await rm(folder, { recursive: true, force: true });
    },
  };
}

function launch(executablePath: string, env: Record<string, string>): Promise<Browser> {
  return chromium.launch({
    executablePath,
    env: { ...(process.env as Record<string, string>), ...env },
    args: [
      "--headless",
      "--no-sandbox",
      "--disable-gpu",
      "--disable-quic",
      "--no-first-run",
      "--disable-background-networking",
      "--disable-component-update",
      "--disable-sync",
    ],
  });
}

/** CHROMIUM_PATH, or what the systems' packages are called. */
function findInstalled(): string | undefined {
  if (process.env.CHROMIUM_PATH) return process.env.CHROMIUM_PATH;
  const folders = (process.env.PATH ?? "").split(path.delimiter);
  return ["chromium", "chromium-browser", "google-chrome"]
    .flatMap((name) => folders.map((folder) => path.join(folder, name)))
    .concat("/Applications/Google Chrome.app/Contents/MacOS/Google Chrome")
    .find((file) => {
      try {
        accessSync(file, constants.X_OK);
        return true;
      } catch {
        return false;
      }
    });
}

/**
 * Unpacks the Chromium of `@sparticuz/chromium` with the libraries and a font it needs beyond libc.
 *
 * The package is made for Amazon's Lambda: only there does it unpack libraries, and always to the
 * folder for temporary files, where it believes whatever is called `chromium`, also the half of
 * one. It reads the environment when it is called, hence what is said to it here. (147.0.0 is its
 * last release that asks for no later Node than 20.)
 */
async function unpack() {
  const folder = await mkdtemp(path.join(tmpdir(), "checkpointd-chromium-"));
  const { default: packed } = await import("@sparticuz/chromium");
  const { TMPDIR, AWS_EXECUTION_ENV } = process.env;
  Object.assign(process.env, { TMPDIR: folder, AWS_EXECUTION_ENV: "nodejs22.x" });
  const unpacked = packed.executablePath();
  for (const [name, value] of Object.entries({ TMPDIR, AWS_EXECUTION_ENV })) {
    if (value === undefined) delete process.env[name];
    else process.env[name] = value;
  }
  const executablePath = await unpacked;
  const fonts = path.join(folder, "fonts");
  await writeFile(
    path.join(fonts, "fonts.conf"),
    `<fontconfig><dir>${fonts}</dir><cachedir>${folder}/cache</cachedir></fontconfig>`,
  );
  return {
    folder,
    executablePath,
    env: { LD_LIBRARY_PATH: path.join(folder, "al2023", "lib"), FONTCONFIG_PATH: fonts },
  };
}
