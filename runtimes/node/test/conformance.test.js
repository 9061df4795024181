// The table of ../../test/conformance.json against this server, as a process of its own.

'use strict';

const assert = require('node:assert/strict');
const { createHash } = require('node:crypto');
const fs = require('node:fs');
const http = require('node:http');
const path = require('node:path');
const { after, before, describe, test } = require('node:test');
const { Server } = require('./server');

const FIXTURES = path.join(__dirname, 'fixtures');
const { checks } = JSON.parse(fs.readFileSync(path.join(__dirname, '../../test/conformance.json'), 'utf8'));
const SECRET = 'test-secret-key';
const SECONDARY = { OPEN_RUNTIMES_SECRET: '', OPEN_RUNTIMES_HEADERS: '', OPEN_RUNTIMES_ENV: 'development' };
const SERVERS = {
  main: {
    OPEN_RUNTIMES_SECRET: SECRET,
    OPEN_RUNTIMES_HEADERS: '{"x-custom":"value","X-CUSTOM-UPPERCASE":"Value2","x-open-runtimes-custom":248}',
    CUSTOM_ENV_VAR: 'customValue',
  },
  secondary: SECONDARY,
  'no-export': SECONDARY,
};

for (const entrypoint of ['tests.js', 'tests.mjs']) {
  describe(entrypoint, () => {
    const servers = {};
    before(async () => {
      for (const [name, env] of Object.entries(SERVERS)) {
        const file = name === 'no-export' ? 'no-export.js' : entrypoint;
        servers[name] = await Server.start(FIXTURES, { ...env, OPEN_RUNTIMES_ENTRYPOINT: file });
      }
    });
    after(() => Promise.all(Object.values(servers).map((server) => server.stop())));
    for (const check of checks) {
      if (check.only && !check.only.includes('node')) continue;
      const name = check.server ?? 'main';
      test(check.id, async () => {
        await servers[name].revive();
        await run(check, servers[name], SERVERS[name].OPEN_RUNTIMES_SECRET);
      });
    }
  });
}

async function run({ request, expect }, server, secret) {
  server.clearLogs();
  const began = Date.now();
  const body = bodyOf(request);
  const answer = await send(server.port, request, headersOf(request, secret), body);
  if (expect.maxSeconds) assert.ok(Date.now() - began < expect.maxSeconds * 1000, 'too slow');
  compareBody(expect, answer, body);
  compareHeaders(expect, answer, request);
  const id = answer.headers['x-open-runtimes-log-id'] || 'dev';
  for (const stream of ['logs', 'errors']) {
    if (expect[stream]) compareLog(expect[stream], server.readLog(`${id}_${stream}.log`), 'tests.');
  }
  if (expect.noFiles) assert.deepEqual(server.logFiles(), []);
}

function bodyOf(request) {
  if (request.bodySize) return Buffer.alloc(request.bodySize, 'a');
  return request.bodyHex ? Buffer.from(request.bodyHex, 'hex') : Buffer.from(request.body ?? '');
}

function headersOf(request, serverSecret) {
  const secret = 'secret' in request ? request.secret : serverSecret;
  const given = request.headers ?? {};
  const headers = { ...given };
  const names = Object.keys(given).map((name) => name.toLowerCase());
  if (!names.includes('content-type')) headers['content-type'] = 'text/plain';
  if (secret) headers['x-open-runtimes-secret'] = secret;
  if (secret && !names.includes('authorization')) {
    headers.authorization = `Basic ${Buffer.from(`opr:${secret}`).toString('base64')}`;
  }
  return headers;
}

function send(port, { method = 'POST', path: target = '/', chunked }, headers, body) {
  return new Promise((resolve, reject) => {
    if (!chunked && body.length > 0) headers['content-length'] = body.length;
    const request = http.request({ port, host: '127.0.0.1', method, path: target, headers }, (response) => {
      const chunks = [];
      response.on('data', (chunk) => chunks.push(chunk));
      response.on('end', () => resolve({ status: response.statusCode, headers: response.headers, body: Buffer.concat(chunks) }));
    });
    request.on('error', reject);
    for (let at = 0; at < body.length; at += 65536) request.write(body.subarray(at, at + 65536));
    request.end();
  });
}

function compareBody(expect, answer, sent) {
  assert.ok(expect.status.includes(answer.status), `status ${answer.status}: ${answer.body}`);
  const text = answer.body.toString();
  if ('body' in expect) assert.equal(text, expect.body);
  if (expect.bodyHex) assert.equal(answer.body.toString('hex'), expect.bodyHex);
  if (expect.bodyHexPrefix) assert.ok(answer.body.toString('hex').startsWith(expect.bodyHexPrefix));
  if (expect.json) assert.deepEqual(JSON.parse(text), expect.json);
  for (const part of expect.bodyContains ?? []) assert.ok(text.includes(part), text);
  for (const part of expect.bodyLacks ?? []) assert.ok(!text.includes(part), text);
  for (const [key, value] of Object.entries(expect.jsonContains ?? {})) assert.deepEqual(JSON.parse(text)[key], value);
  if (expect.bodyIsMd5OfRequest) assert.equal(text, createHash('md5').update(sent).digest('hex'));
}

function compareHeaders(expect, answer, request) {
  for (const [name, value] of Object.entries(expect.headers ?? {})) assert.deepEqual(answer.headers[name], value ?? undefined);
  for (const [name, part] of Object.entries(expect.headerContains ?? {})) assert.ok(answer.headers[name].includes(part));
  const id = answer.headers['x-open-runtimes-log-id'];
  if (expect.logId === 'generated') {
    assert.equal(id.length, 20);
    assert.notEqual(id, request.headers?.['x-open-runtimes-log-id']);
  } else if (expect.logId) {
    assert.equal(id, expect.logId);
  }
}

function compareLog(expect, text, entrypoint) {
  for (const part of expect.contains ?? []) assert.ok(text.includes(part.replace('{entrypoint}', entrypoint)), `${part} in: ${text}`);
  for (const part of expect.containsAnyCase ?? []) assert.ok(text.toLowerCase().includes(part.toLowerCase()), text);
  for (const part of expect.lacks ?? []) assert.ok(!text.includes(part), text);
  if ('equals' in expect) assert.equal(text, expect.equals);
  if (expect.minLines) assert.ok(text.split('\n').length >= expect.minLines, text);
  if (expect.empty) assert.equal(text, '');
}
