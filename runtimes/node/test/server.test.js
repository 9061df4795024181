// What the table does not reach: concurrency, loading, signals, hostile callers and functions.

'use strict';

const assert = require('node:assert/strict');
const fs = require('node:fs');
const net = require('node:net');
const os = require('node:os');
const path = require('node:path');
const { setTimeout: sleep } = require('node:timers/promises');
const { test } = require('node:test');
const { Server } = require('./server');

const FIXTURES = path.join(__dirname, 'fixtures');

/** A server of `files`, stopped and deleted with the test. */
async function serverOf(t, files, env = {}) {
  const directory = fs.mkdtempSync(path.join(os.tmpdir(), 'function-'));
  for (const [name, text] of Object.entries(files)) {
    fs.mkdirSync(path.dirname(path.join(directory, name)), { recursive: true });
    fs.writeFileSync(path.join(directory, name), text);
  }
  const server = await Server.start(directory, env);
  t.after(async () => {
    await server.stop('SIGKILL');
    fs.rmSync(directory, { recursive: true });
  });
  return server;
}

/** All that comes back on one connection for `text`, until the other side ends it or `quiet` milliseconds pass. */
function speak(port, text, quiet = 300) {
  return new Promise((resolve) => {
    let answer = '';
    const socket = net.connect(port, '127.0.0.1', () => socket.write(text));
    const done = () => {
      socket.destroy();
      resolve(answer);
    };
    socket.setTimeout(quiet, done);
    socket.on('data', (chunk) => (answer += chunk)).on('end', done).on('error', done);
  });
}

test('keeps overlapping executions’ native output apart', async (t) => {
  const server = await Server.start(FIXTURES, { OPEN_RUNTIMES_ENTRYPOINT: 'tests.js' });
  t.after(() => server.stop('SIGKILL'));
  const ids = ['a', 'b', 'c', 'd'];
  await Promise.all(
    ids.map((id) =>
      server.fetch('/', { 'x-action': 'nativeOverlap', 'x-open-runtimes-log-id': id }, { method: 'POST', body: id }),
    ),
  );
  for (const id of ids) {
    const lines = server.readLog(`${id}_logs.log`).trim().split('\n');
    assert.deepEqual(lines.slice(1), [0, 1, 2].map((i) => `native ${id} ${i}`));
    assert.match(lines[0], /^Native logs detected\./);
  }
});

test('gives an error nobody caught to the execution it came from', async (t) => {
  const server = await Server.start(FIXTURES, { OPEN_RUNTIMES_ENTRYPOINT: 'tests.js' });
  t.after(() => server.stop('SIGKILL'));
  const answer = await server.fetch('/', { 'x-action': 'lostError', 'x-open-runtimes-log-id': 'lost' });
  assert.equal(answer.status, 500);
  assert.match(server.readLog('lost_errors.log'), /Lost error!/);
  assert.equal((await server.fetch('/__opr/health')).status, 200);
});

test('answers 503 and says why where the function cannot be loaded', async (t) => {
  const cases = {
    'missing.js': [{}, /file missing\.js does not exist/],
    'syntax.js': [{ 'syntax.js': 'const = 1;' }, /Syntax error in syntax\.js/],
    'throws.js': [{ 'throws.js': 'throw new Error("at load")' }, /Failed to load module: at load/],
    'needs.js': [{ 'needs.js': 'require("absent-package")' }, /Failed to load module: Cannot find module/],
    'object.js': [{ 'object.js': 'module.exports = { main: 1 }' }, /Function signature invalid/],
  };
  for (const [entrypoint, [files, expected]] of Object.entries(cases)) {
    const server = await serverOf(t, files, { OPEN_RUNTIMES_ENTRYPOINT: entrypoint });
    const answer = await server.fetch('/', { 'x-open-runtimes-log-id': 'load' });
    assert.equal(answer.status, 503, entrypoint);
    assert.match(server.readLog('load_errors.log'), expected);
  }
});

test('loads modules of each kind', async (t) => {
  const cases = {
    'cjs.cjs': { 'cjs.cjs': 'module.exports = ({ res }) => res.text("ok")' },
    'default.js': { 'default.js': 'exports.default = ({ res }) => res.text("ok")' },
    'esm.mjs': { 'esm.mjs': 'export default ({ res }) => res.text("ok")' },
    'typed.js': { 'typed.js': 'export default ({ res }) => res.text("ok")', 'package.json': '{"type":"module"}' },
    'awaits.mjs': { 'awaits.mjs': 'await 1; export default ({ res }) => res.text("ok")' },
    'deep/in.js': { 'deep/in.js': 'module.exports = require("./main")', 'deep/main.js': 'module.exports = ({ res }) => res.text("ok")' },
  };
  for (const [entrypoint, files] of Object.entries(cases)) {
    const server = await serverOf(t, files, { OPEN_RUNTIMES_ENTRYPOINT: entrypoint });
    assert.equal(await (await server.fetch('/')).text(), 'ok', entrypoint);
  }
});

test('finishes what is under way before it ends on SIGTERM', async (t) => {
  const server = await serverOf(t, {
    'index.js': 'module.exports = async ({ res }) => { await new Promise((r) => setTimeout(r, 300)); return res.text("done") }',
  });
  const answer = server.fetch('/');
  await sleep(100);
  server.child.kill('SIGTERM');
  assert.equal(await (await answer).text(), 'done');
  assert.equal(await server.exited, 0);
});

test('ends at once on SIGTERM when nothing runs', async (t) => {
  const server = await serverOf(t, { 'index.js': 'module.exports = ({ res }) => res.empty()' });
  await server.fetch('/', { 'x-open-runtimes-timeout': '5' });
  const began = Date.now();
  server.child.kill('SIGTERM');
  assert.equal(await server.exited, 0);
  assert.ok(Date.now() - began < 500);
});

test('ends with the function’s own exit status and saves its log', async (t) => {
  const server = await serverOf(t, { 'index.js': 'module.exports = ({ log }) => { log("last words"); process.exit(3) }' });
  await assert.rejects(server.fetch('/', { 'x-open-runtimes-log-id': 'exit' }));
  assert.equal(await server.exited, 3);
  assert.equal(server.readLog('exit_logs.log'), 'last words\n');
});

test('answers where logs cannot be written', async (t) => {
  const server = await serverOf(t, { 'index.js': 'module.exports = ({ res, log }) => { log("x"); return res.text("ok") }' });
  fs.rmSync(path.join(server.state, 'logs'), { recursive: true });
  assert.equal(await (await server.fetch('/')).text(), 'ok');
  fs.mkdirSync(path.join(server.state, 'logs'));
});

test('bounds the log of one execution', async (t) => {
  const server = await serverOf(t, {
    'index.js': 'module.exports = ({ res, log }) => { for (let i = 0; i < 2000; i++) log("x".repeat(7999)); return res.empty() }',
  });
  await server.fetch('/', { 'x-open-runtimes-log-id': 'flood' });
  const { size } = fs.statSync(path.join(server.state, 'logs/flood_logs.log'));
  assert.ok(size > 5 * 1024 * 1024 && size < 6 * 1024 * 1024, String(size));
});

test('refuses a body that is announced too large without asking for it', async (t) => {
  const server = await serverOf(t, { 'index.js': 'module.exports = ({ res }) => res.empty()' });
  const head = 'POST / HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 30000000\r\n\r\n';
  const answer = await speak(server.port, head);
  assert.match(answer, /^HTTP\/1\.1 413 /);
  assert.match(await speak(server.port, head.replace('30000000', '3')), /^HTTP\/1\.1 100 Continue/);
});

test('a request without a host header has an empty host', async (t) => {
  const server = await serverOf(t, { 'index.js': 'module.exports = ({ req, res }) => res.text(`[${req.host}]${req.port}${req.url}`)' });
  assert.match(await speak(server.port, 'GET /a?b HTTP/1.1\r\n\r\n'), /\[\]80http:\/\/\/a\?b$/);
});

test('keeps the client’s authorization beside the caller’s own', async (t) => {
  const server = await serverOf(t, { 'index.js': 'module.exports = ({ req, res }) => res.text(String(req.headers.authorization))' }, {
    OPEN_RUNTIMES_SECRET: 's',
  });
  const own = `authorization: Basic ${Buffer.from('opr:s').toString('base64')}\r\n`;
  const head = (lines) => `GET / HTTP/1.1\r\nhost: x\r\nx-open-runtimes-secret: s\r\n${lines}\r\n`;
  assert.match(await speak(server.port, head(own)), /undefined$/);
  assert.match(await speak(server.port, head(`${own}authorization: Bearer t\r\n`)), /Bearer t$/);
});

test('notes its start where the lifecycle asks for it', async (t) => {
  const server = await serverOf(t, { 'index.js': 'module.exports = ({ res }) => res.empty()' }, {
    OPEN_RUNTIMES_STARTUP_BEGAN: String(Date.now() / 1000),
  });
  assert.match(await (await server.fetch('/__opr/timings')).text(), /^startup=0\.\d{3}$/m);
});

test('a module that blocks the loop at load delays requests and nothing else', async (t) => {
  const server = await serverOf(t, {
    'index.js': 'const end = Date.now() + 300; while (Date.now() < end); module.exports = ({ res }) => res.text("ok")',
  });
  assert.equal(await (await server.fetch('/')).text(), 'ok');
});
