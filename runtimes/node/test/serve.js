// The server with paths of a test's choice: `node test/serve.js PORT CODE_DIR STATE_DIR`.

'use strict';

const { serve } = require('../src/runtime/serve');
const { settings } = require('../src/runtime/settings');

const [port, codeDir, stateDir] = process.argv.slice(2);
serve({
  ...settings(process.env),
  port: Number(port),
  codeDir,
  logsDir: `${stateDir}/logs`,
  timingsFile: `${stateDir}/telemetry/timings.txt`,
});
