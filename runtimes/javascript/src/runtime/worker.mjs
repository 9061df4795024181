// The thread that runs the function: it loads the entrypoint, then runs any number of executions at once.

import { AsyncLocalStorage } from 'node:async_hooks';
import process from 'node:process';
import { load } from './loader.mjs';
import { Logger, NO_LOG } from './logger.js';
import { captureConsole } from './native.js';
import { Request } from './request.js';
import { FunctionResponse, render } from './response.js';

const NO_RETURN = 'Return statement missing. return context.res.empty() if no response is expected.';
const FAILED = { status: 500, headers: [['content-type', 'text/plain; charset=utf-8']], body: null };

/** What is logged is on disk at once, since the thread may be ended at any time. */
class DurableLogger extends Logger {
  log(...messages) {
    super.log(...messages);
    this.flush();
  }

  error(...messages) {
    super.error(...messages);
    this.flush();
  }

  native(messages) {
    super.native(messages);
    this.flush();
  }
}

/** The request with its body in the type that the web has for bytes. */
class WebRequest extends Request {
  #bytes;

  constructor(message, bytes, settings) {
    super(message, Buffer.from(bytes), settings);
    this.#bytes = bytes;
  }

  get bodyBinary() {
    return this.#bytes;
  }
}

/** The executions of this thread, and which of them the running code belongs to. */
class Executions {
  constructor(settings) {
    this.settings = settings;
    this.current = new AsyncLocalStorage();
    this.active = new Map();
    captureConsole(this.current);
  }

  async run({ key, id, message, body }, main) {
    const { settings } = this;
    const logger = id === '' ? NO_LOG : new DurableLogger(settings.logsDir, id);
    const context = {
      req: new WebRequest(message, body, settings),
      res: new FunctionResponse(),
      log: (...messages) => logger.log(...messages),
      error: (...messages) => logger.error(...messages),
    };
    this.active.set(key, logger);
    let output;
    try {
      output = await this.current.run({ logger }, async () => toOutput(await main(context), logger));
    } catch (error) {
      logger.error(error);
      output = FAILED;
    }
    if (!this.active.delete(key)) return;
    logger.close();
    postMessage({ key, output }, output.body === null ? [] : [output.body]);
  }

  /** The execution has been answered in its place: nothing of it is logged any more. */
  close(key) {
    const logger = this.active.get(key);
    if (logger === undefined) return;
    this.active.delete(key);
    logger.close();
    postMessage({ key, isClosed: true });
  }

  /** An error nobody caught is the one's that it came from, where that can be told. */
  failCurrent(error) {
    const logger = this.current.getStore()?.logger;
    if (logger?.isOpen) logger.error(error);
    else process.stderr.write(`${error?.stack ?? error}\n`);
  }
}

async function toOutput(returned, logger) {
  if (returned === undefined || returned === null) {
    logger.error(NO_RETURN);
    return FAILED;
  }
  const { status, headers, body } = await render(returned);
  const pairs = Object.entries(headers).flatMap(([name, value]) => [value].flat().map((one) => [name, one]));
  // Fails for what cannot be sent, while the error log is still open.
  new Response(null, { status, headers: pairs });
  // A copy: the function may keep what it has given.
  const bytes = typeof body === 'string' ? new TextEncoder().encode(body) : Uint8Array.prototype.slice.call(body);
  return { status, headers: pairs, body: bytes.buffer };
}

/** Where the function ends its process it ends this thread; the server is told. */
function guardThread(executions) {
  for (const [owner, exit] of [[process, process.exit], [globalThis.Deno, globalThis.Deno?.exit]]) {
    if (owner === undefined) continue;
    owner.exit = (code) => {
      postMessage({ exit: code ?? process.exitCode ?? 0 });
      exit.call(owner, code);
    };
  }
  for (const event of ['uncaughtException', 'unhandledRejection']) {
    process.on(event, (error) => executions.failCurrent(error));
  }
}

addEventListener('message', async ({ data: { settings } }) => {
  const executions = new Executions(settings);
  guardThread(executions);
  const { main, failure } = await load(settings.codeDir, settings.entrypoint);
  addEventListener('message', ({ data }) => (data.close ? executions.close(data.key) : executions.run(data, main)));
  postMessage(failure === undefined ? { isReady: true } : { failure });
}, { once: true });
