// The server with paths of a test's choice: `serve.ts PORT CODE_DIR STATE_DIR`. Runs in a tree as the image has it.

import process from 'node:process';
import { serve } from '../src/runtime/serve.mjs';
import { settings } from '../src/runtime/settings.js';

const [port, codeDir, stateDir] = process.argv.slice(2);
serve({
  ...settings(process.env),
  port: Number(port),
  codeDir,
  logsDir: `${stateDir}/logs`,
  timingsFile: `${stateDir}/telemetry/timings.txt`,
});
