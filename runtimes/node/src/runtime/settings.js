// What the server is told by its environment, read once at start.

'use strict';

const path = require('node:path');

const SERVER_ROOT = path.resolve(__dirname, '../..');

/** Settings made of `env`; the paths and the port are the protocol's own. `entrypoint` is the one where `env` names none. */
function settings(env, entrypoint = 'index.js') {
  const secret = env.OPEN_RUNTIMES_SECRET ?? '';
  return {
    port: 3000,
    codeDir: path.join(SERVER_ROOT, 'src/function'),
    logsDir: '/mnt/logs',
    timingsFile: '/mnt/telemetry/timings.txt',
    startupBegan: Number(env.OPEN_RUNTIMES_STARTUP_BEGAN) || undefined,
    secret,
    // The caller's own `authorization`, which is not the function's to see.
    ownCredential: secret === '' ? undefined : `Basic ${Buffer.from(`opr:${secret}`).toString('base64')}`,
    isDevelopment: env.OPEN_RUNTIMES_ENV === 'development',
    entrypoint: env.OPEN_RUNTIMES_ENTRYPOINT || entrypoint,
    enforcedHeaders: parseEnforcedHeaders(env.OPEN_RUNTIMES_HEADERS),
  };
}

/** Lower-cased names with text values; anything that is no JSON object means none. */
function parseEnforcedHeaders(text) {
  const headers = {};
  let parsed;
  try {
    parsed = JSON.parse(text || '{}');
  } catch {
    return headers;
  }
  if (parsed === null || typeof parsed !== 'object' || Array.isArray(parsed)) return headers;
  for (const [name, value] of Object.entries(parsed)) {
    headers[name.toLowerCase()] = typeof value === 'object' ? JSON.stringify(value) : String(value);
  }
  return headers;
}

module.exports = { settings };
