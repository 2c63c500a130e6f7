#!/usr/bin/env node
// What `npx clustermesh` runs: the bundle that `npm run build` makes.
import { existsSync } from 'node:fs';
import { fileURLToPath } from 'node:url';

const bundle = new URL('../../dist/clustermesh.mjs', import.meta.url);
if (existsSync(bundle)) {
  await import(bundle.href);
} else {
  process.stderr.write(
    `error: clustermesh is not built: ${fileURLToPath(bundle)} is missing\nhint: run npm run build (or npm run setup on a fresh machine) in the checkout\n`,
  );
  process.exitCode = 1;
}
