// Builds tracenet/viewer/static from the sources. `--check` only compares: it fails where the committed files differ.
//
// app.js begins with a digest of everything it is built from, so that a test without Node can tell old files.

import { createHash } from "node:crypto";
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const web = dirname(fileURLToPath(import.meta.url));
const target = join(web, "..", "tracenet", "viewer", "static");

/** As tests/viewer/test_assets.py computes it: names and contents of the inputs in the order of their names. */
function digest() {
  const names = [
    ...readdirSync(join(web, "src")).map((name) => `src/${name}`),
    ...readdirSync(join(web, "static")).map((name) => `static/${name}`),
    "package-lock.json",
    "build.mjs",
  ].sort();
  const hash = createHash("sha256");
  for (const name of names) hash.update(`${name}\0`).update(readFileSync(join(web, name))).update("\0");
  return hash.digest("hex");
}

async function built() {
  const options = { absWorkingDir: web, bundle: true, minify: true, write: false, legalComments: "none" };
  const script = await build({
    ...options,
    entryPoints: ["src/main.ts"],
    format: "esm",
    target: ["es2022", "safari16"],
    banner: { js: `/* TraceNet viewer; built from web/ by \`make web\`. Sources: ${digest()} */` },
  });
  const style = await build({ ...options, entryPoints: ["static/app.css"], target: ["es2022", "safari16"] });
  return {
    "app.js": script.outputFiles[0].text,
    "app.css": style.outputFiles[0].text,
    "index.html": readFileSync(join(web, "static", "index.html"), "utf8"),
    "icon.svg": readFileSync(join(web, "static", "icon.svg"), "utf8"),
  };
}

const files = await built();
if (process.argv.includes("--check")) {
  const differing = Object.entries(files).filter(([name, text]) => {
    try {
      return readFileSync(join(target, name), "utf8") !== text;
    } catch {
      return true;
    }
  });
  if (differing.length) {
    console.error(`not built from these sources: ${differing.map(([name]) => name).join(", ")}; run \`make web\``);
    process.exit(1);
  }
  console.log("tracenet/viewer/static is what web/ builds");
} else {
  mkdirSync(target, { recursive: true });
  for (const [name, text] of Object.entries(files)) {
    writeFileSync(join(target, name), text);
    console.log(`${name} ${(Buffer.byteLength(text) / 1024).toFixed(1)} kB`);
  }
}
