/** A Chromium to drive: an installed one, or the one that comes with `npm ci`. */
import { accessSync, constants } from "node:fs";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { createRequire } from "node:module";
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
  const { executablePath, env, remove } = installed
    ? { executablePath: installed, env: {}, remove: async () => {} }
    : await unpack();
  const browser = await chromium.launch({
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
  return {
    browser,
    async close() {
      await browser.close();
      await remove();
    },
  };
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
 * Unpacks the Chromium of `@sparticuz/chromium` with the libraries and a font it needs beyond
 * libc, which that package itself does in Amazon's Lambda only. Its own `executablePath` is of no
 * use here: it unpacks to /tmp/chromium and believes whatever lies there, also the half of one.
 */
async function unpack() {
  const folder = await mkdtemp(path.join(tmpdir(), "checkpointd-chromium-"));
  const { inflate } = await import("@sparticuz/chromium");
  const entry = createRequire(import.meta.url).resolve("@sparticuz/chromium");
  const bin = path.join(path.dirname(entry), "../../bin");
  // It unpacks to the folder for temporary files, which it asks for when it is called.
  const { TMPDIR } = process.env;
  process.env.TMPDIR = folder;
  const unpacked = ["chromium.br", "al2023.tar.br", "fonts.tar.br"].map((file) =>
    inflate(path.join(bin, file)),
  );
  if (TMPDIR === undefined) delete process.env.TMPDIR;
  else process.env.TMPDIR = TMPDIR;
  await Promise.all(unpacked);
  const fonts = path.join(folder, "fonts");
  await writeFile(
    path.join(fonts, "fonts.conf"),
    `<fontconfig><dir>${fonts}</dir><cachedir>${folder}/cache</cachedir></fontconfig>`,
  );
  return {
    executablePath: path.join(folder, "chromium"),
    env: { LD_LIBRARY_PATH: path.join(folder, "al2023", "lib"), FONTCONFIG_PATH: fonts },
    remove: () => rm(folder, { recursive: true, force: true }),
  };
}
