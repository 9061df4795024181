// One request from its first line to its answer, in the protocol's order:
// special paths, authentication, timeout, log, body, function, response.

'use strict';

const fs = require('node:fs');
const { AsyncLocalStorage } = require('node:async_hooks');
const { Logger, NO_LOG, logId } = require('./logger');
const { Request, isEqualSecret } = require('./request');
const { FunctionResponse, render } = require('./response');
const { Timeouts, TimeoutError } = require('./timeout');

const BODY_LIMIT = 20 * 1024 * 1024;
// What a caller may go on sending after an answer of 413 until its connection is cut.
const DISCARD_LIMIT = 64 * 1024 * 1024;
const MAX_TIMEOUT_S = 2_147_483;

const UNAUTHORIZED = 'Unauthorized. Provide correct "x-open-runtimes-secret" header.';
const BAD_TIMEOUT = 'Header "x-open-runtimes-timeout" must be an integer greater than 0.';
const NO_RETURN = 'Return statement missing. return context.res.empty() if no response is expected.';
const PLAIN = 'text/plain; charset=utf-8';

/** All executions of this process, and which of them the running code belongs to. */
class Executions {
  constructor(settings) {
    this.settings = settings;
    this.current = new AsyncLocalStorage();
    this.timeouts = new Timeouts(settings.logsDir);
    this.active = new Set();
    this.ready = new Promise((resolve) => (this.loaded = resolve));
    this.ready.then((module) => (this.module = module));
  }

  handle(request, response) {
    const { url, headers } = request;
    const mark = url.indexOf('?');
    const path = mark < 0 ? url : url.slice(0, mark);
    if (path === '/__opr/health') return answer(response, 200, 'OK');
    if (path === '/__opr/timings') return answer(response, 200, this.timings());

    const secret = this.settings.secret;
    if (secret !== '' && !isEqualSecret(headers['x-open-runtimes-secret'] ?? '', secret)) {
      return answer(response, 401, UNAUTHORIZED);
    }
    const seconds = parseTimeout(headers['x-open-runtimes-timeout']);
    if (seconds === undefined) return answer(response, 500, BAD_TIMEOUT);

    new Execution(this, request, response, seconds).receive();
  }

  isTooLarge(request) {
    return Number(request.headers['content-length']) > BODY_LIMIT;
  }

  timings() {
    try {
      return fs.readFileSync(this.settings.timingsFile);
    } catch {
      return '';
    }
  }

  /** Calls `done` when nothing runs any more, at the latest after `limit` milliseconds. */
  drained(limit, done) {
    if (this.active.size === 0) return done();
    this.onIdle = done;
    setTimeout(done, limit);
  }

  /** Gives an error nobody caught to the execution it came from; false where it came from none. */
  failCurrent(error) {
    const execution = this.current.getStore();
    if (!execution || execution.isDone) return false;
    execution.fail(error);
    return true;
  }

  /** Saves what executions have logged so far: the process ends. */
  flush() {
    for (const execution of this.active) execution.logger.flush();
  }
}

/** One execution; `finish` is reached exactly once. */
class Execution {
  constructor(executions, request, response, seconds) {
    this.executions = executions;
    this.request = request;
    this.response = response;
    this.seconds = seconds;
    this.isDone = false;
    const { settings } = executions;
    const id = logId(request.headers, settings.isDevelopment);
    this.logger = id === '' ? NO_LOG : new Logger(settings.logsDir, id);
    executions.active.add(this);
  }

  /** Reads the whole body, then runs. */
  receive() {
    const { headers } = this.request;
    if (headers['transfer-encoding'] === undefined && !(Number(headers['content-length']) > 0)) {
      return this.start(Buffer.alloc(0));
    }
    if (this.executions.isTooLarge(this.request)) return this.refuseBody();
    const chunks = [];
    let size = 0;
    const onData = (chunk) => {
      size += chunk.length;
      if (size > BODY_LIMIT) {
        this.request.off('data', onData).off('end', onEnd);
        return this.refuseBody();
      }
      chunks.push(chunk);
    };
    const onEnd = () => this.start(chunks.length === 1 ? chunks[0] : Buffer.concat(chunks, size));
    this.request.on('data', onData).on('end', onEnd);
    this.request.on('error', () => this.end());
    this.request.on('close', () => this.request.complete || this.end());
  }

  /** 413 at once; what is still on its way is thrown away, so that the caller comes to read the answer. */
  refuseBody() {
    if (this.isDone) return;
    this.respond(413, {}, '');
    let discarded = 0;
    this.request.on('data', (chunk) => {
      discarded += chunk.length;
      if (discarded > DISCARD_LIMIT) this.request.destroy();
    });
  }

  start(body) {
    const { module } = this.executions;
    if (module) return this.run(module, body);
    this.executions.ready.then((loaded) => this.run(loaded, body));
  }

  run(module, body) {
    if (module.failure) {
      this.logger.error(module.failure);
      return this.respond(503, {}, '');
    }
    const { settings, current, timeouts } = this.executions;
    const { logger } = this;
    const context = {
      req: new Request(this.request, body, settings),
      res: new FunctionResponse(),
      log: (...messages) => logger.log(...messages),
      error: (...messages) => logger.error(...messages),
    };
    if (this.seconds > 0) {
      const socket = this.request.socket;
      this.timer = timeouts.start(this.seconds, socket, logger.id, () => this.fail(new TimeoutError()));
    }
    let output;
    try {
      output = current.run(this, module.main, context);
    } catch (error) {
      return this.fail(error);
    }
    if (typeof output?.then !== 'function') return this.finish(output);
    output.then(
      (value) => this.finish(value),
      (error) => this.fail(error),
    );
  }

  finish(output) {
    if (this.isDone) return;
    if (output === undefined || output === null) {
      this.logger.error(NO_RETURN);
      return this.respond(500, {}, '');
    }
    try {
      const rendered = render(output);
      if (typeof rendered.then !== 'function') return this.send(rendered);
      rendered.then(
        (value) => this.send(value),
        (error) => this.fail(error),
      );
    } catch (error) {
      this.fail(error);
    }
  }

  fail(error) {
    if (this.isDone) return;
    this.logger.error(error instanceof TimeoutError ? error.message : error);
    this.respond(500, {}, '');
  }

  send({ status, headers, body }) {
    if (this.isDone) return;
    try {
      this.respond(status, headers, body);
    } catch (error) {
      // A header's name or value that cannot be sent: nothing has left yet.
      this.fail(error);
    }
  }

  respond(status, headers, body) {
    const { response, logger } = this;
    headers['content-type'] ??= PLAIN;
    headers['x-open-runtimes-log-id'] = logger.id;
    if (status !== 204 && status !== 304) headers['content-length'] = Buffer.byteLength(body);
    response.writeHead(status, headers);
    const isAnswered = this.end();
    if (isAnswered) return response.destroy();
    response.end(body);
  }

  /** Closes what the execution held; true where the watchdog has answered in its place. */
  end() {
    if (this.isDone) return false;
    this.isDone = true;
    this.logger.close();
    const { active, onIdle } = this.executions;
    active.delete(this);
    if (onIdle && active.size === 0) this.response.once('close', onIdle);
    return this.timer ? this.timer.clear() : false;
  }
}

/** Whole seconds; 0 where none are asked for; undefined where the text is no positive integer. */
function parseTimeout(text) {
  if (text === undefined || text === '') return 0;
  if (!/^[0-9]+$/.test(text)) return undefined;
  const seconds = Number(text);
  return seconds > 0 ? Math.min(seconds, MAX_TIMEOUT_S) : undefined;
}

/** An answer of the runtime itself, outside any execution. */
function answer(response, status, body) {
  response.writeHead(status, { 'content-type': PLAIN, 'content-length': Buffer.byteLength(body) });
  response.end(body);
}

module.exports = { Executions };
