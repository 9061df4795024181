// Preloaded into a site's server: every HTTP server of the process answers the protocol's requests before its framework sees
// one, and what is printed goes to the log of the request it was printed for.

import { AsyncLocalStorage } from 'node:async_hooks';
import fs from 'node:fs';
import http from 'node:http';
import { createRequire } from 'node:module';

const require = createRequire(import.meta.url);
const { Logger, NO_LOG, logId } = require('../runtime/logger.js');
const { isEqualSecret } = require('../runtime/request.js');
const { settings: read } = require('../runtime/settings.js');

const CONTROL = 'x-open-runtimes-';
const MAX_TIMEOUT_S = 2_147_483;
const UNAUTHORIZED = 'Unauthorized. Provide correct "x-open-runtimes-secret" header.';
const BAD_TIMEOUT = 'Header "x-open-runtimes-timeout" must be an integer greater than 0.';

const settings = read(process.env);
const current = new AsyncLocalStorage();

/** One request, from its head to the end of its answer. */
function handle(request, response, dispatch) {
  const { headers, method, url } = request;
  if (method === 'GET' && url === '/__opr/health') return answer(response, 200, 'OK');
  if (method === 'GET' && url === '/__opr/timings') return answer(response, 200, timings());
  const { secret, isDevelopment, logsDir } = settings;
  if (secret !== '' && !isEqualSecret(headers['x-open-runtimes-secret'] ?? '', secret)) {
    return answer(response, 500, UNAUTHORIZED);
  }
  const id = logId(headers, isDevelopment);
  const seconds = parseTimeout(headers['x-open-runtimes-timeout']);
  response.setHeader('x-open-runtimes-log-id', id);
  if (seconds === undefined) return answer(response, 500, BAD_TIMEOUT);
  const logger = id === '' ? NO_LOG : new Logger(logsDir, id);
  hideControl(request);
  closeBeforeEnd(response, logger);
  const timer = seconds > 0 ? setTimeout(() => fail(response, logger, 'Execution timed out.'), seconds * 1000) : undefined;
  response.once('close', () => {
    clearTimeout(timer);
    logger.close();
  });
  current.run(logger, () => {
    try {
      dispatch();
    } catch (error) {
      fail(response, logger, error);
    }
  });
}

/** The files are whole when the caller sees the end of the answer. */
function closeBeforeEnd(response, logger) {
  const { end } = response;
  response.end = function (...parts) {
    logger.close();
    return end.apply(this, parts);
  };
}

/** What the caller tells the runtime is not the site's to see. */
function hideControl(request) {
  const { headers, rawHeaders } = request;
  for (const name of Object.keys(headers)) if (name.startsWith(CONTROL)) delete headers[name];
  const isOwn = (name, value) => name === 'authorization' && value === settings.ownCredential;
  if (isOwn('authorization', headers.authorization)) delete headers.authorization;
  request.rawHeaders = [];
  for (let i = 0; i < rawHeaders.length; i += 2) {
    const name = rawHeaders[i].toLowerCase();
    if (!name.startsWith(CONTROL) && !isOwn(name, rawHeaders[i + 1])) request.rawHeaders.push(rawHeaders[i], rawHeaders[i + 1]);
  }
}

function fail(response, logger, error) {
  logger.error(error);
  if (response.headersSent) return;
  answer(response, 500, '');
}

function answer(response, status, body) {
  response.writeHead(status, { 'content-type': 'text/plain; charset=utf-8', 'content-length': Buffer.byteLength(body) });
  response.end(body);
}

function timings() {
  try {
    return fs.readFileSync(settings.timingsFile);
  } catch {
    return '';
  }
}

/** The `startup` metric, where the start lifecycle told when it began. */
function noteStartup({ startupBegan, timingsFile }) {
  if (startupBegan === undefined) return;
  try {
    fs.appendFileSync(timingsFile, `startup=${(Date.now() / 1000 - startupBegan).toFixed(3)}\n`);
  } catch {
    // Timings are a help, not a need.
  }
}

/** Whole seconds; 0 where none are asked for; undefined where the text is no positive integer. */
function parseTimeout(text) {
  if (text === undefined || text === '') return 0;
  const seconds = /^[0-9]+$/.test(text) ? Number(text) : 0;
  return seconds > 0 ? Math.min(seconds, MAX_TIMEOUT_S) : undefined;
}

for (const method of ['log', 'info', 'debug', 'warn', 'error']) {
  const print = console[method];
  console[method] = (...messages) => {
    const logger = current.getStore();
    if (!logger?.isOpen) print.apply(console, messages);
    else if (method === 'error') logger.error(...messages);
    else logger.log(...messages);
  };
}

const { emit } = http.Server.prototype;
http.Server.prototype.emit = function (event, ...parts) {
  if (event === 'listening') noteStartup(settings);
  if (event !== 'request') return emit.call(this, event, ...parts);
  handle(parts[0], parts[1], () => emit.call(this, event, ...parts));
  return true;
};
