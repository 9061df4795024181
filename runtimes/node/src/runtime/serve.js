// Owns the listening socket, the signals and the life of the process; what a request means is `execution.js`'s matter.

'use strict';

const fs = require('node:fs');
const http = require('node:http');
const { Executions } = require('./execution');
const { load } = require('./loader');
const { captureConsole } = require('./native');

const BACKLOG = 4096;
// The caller pools connections and decides when they end; a server that closes an idle one races with the next request.
const KEEP_ALIVE_MS = 3_600_000;
const MAX_TIMER_MS = 2_147_483_647;
// How long a stopping server waits for executions that are under way.
const DRAIN_MS = 5_000;

/** Binds, announces readiness, loads the function, and serves until a signal. Returns the http.Server. */
function serve(settings) {
  const executions = new Executions(settings);
  const server = http.createServer(
    {
      keepAliveTimeout: KEEP_ALIVE_MS,
      requestTimeout: 0,
      headersTimeout: 0,
      connectionsCheckingInterval: MAX_TIMER_MS,
      maxHeaderSize: 131_072,
      noDelay: true,
      requireHostHeader: false,
    },
    (request, response) => executions.handle(request, response),
  );
  server.maxRequestsPerSocket = 0;
  server.on('checkContinue', (request, response) => {
    if (executions.isTooLarge(request)) response.shouldKeepAlive = false;
    else response.writeContinue();
    executions.handle(request, response);
  });
  server.on('error', (error) => {
    print(2, `HTTP server failed: ${error.message}\n`);
    process.exit(1);
  });
  captureConsole(executions.current);
  guardProcess(server, executions);
  server.listen({ port: settings.port, backlog: BACKLOG }, () => {
    print(1, 'HTTP server successfully started!\n');
    noteStartup(settings);
    executions.loaded(load(settings.codeDir, settings.entrypoint));
  });
  return server;
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

/** Main process duties: as PID 1 a signal without a handler is ignored, and one bad callback must not end all executions. */
function guardProcess(server, executions) {
  const stop = () => {
    server.close();
    executions.drained(DRAIN_MS, () => process.exit(0));
  };
  process.on('SIGTERM', stop);
  process.on('SIGINT', stop);
  process.on('exit', () => executions.flush());
  const fail = (error) => {
    if (!executions.failCurrent(error)) print(2, `${error?.stack ?? error}\n`);
  };
  process.on('uncaughtException', fail);
  process.on('unhandledRejection', fail);
}

/** Writes to the process's own output without the cost of a stream; a reader that is gone is no reason to fail. */
function print(fd, text) {
  try {
    fs.writeSync(fd, text);
  } catch {
    // Nobody reads the output.
  }
}

module.exports = { serve };
