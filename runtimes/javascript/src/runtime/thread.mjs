// The thread that runs the function, as the server sees it. A function that blocks its thread beyond its time loses it:
// the server goes on, answers, and starts another one.

import { Logger, NO_LOG } from './logger.js';

const TIMED_OUT = 'Execution timed out.';
const FAILED = { headers: [['content-type', 'text/plain; charset=utf-8']], body: null };
// How long the thread may take to hear that an execution is over until it counts as blocked.
const GRACE_MS = 100;

/** One execution that has not been answered. */
class Pending {
  constructor(call, settle) {
    this.call = call;
    this.settle = settle;
    this.timer = undefined;
  }
}

export class FunctionThread {
  constructor(settings) {
    this.settings = settings;
    this.pending = new Map();
    this.nextKey = 0;
    this.start();
  }

  /** Calls the function; its output as `{ status, headers, body }`. The time counts from when it has been loaded. */
  run(call, seconds) {
    if (this.failure !== undefined) return Promise.resolve(this.fail(503, call, this.failure));
    return new Promise((resolve) => {
      const key = this.nextKey++;
      this.pending.set(key, new Pending({ ...call, seconds }, resolve));
      if (this.isReady) this.dispatch(key);
    });
  }

  start() {
    this.isReady = false;
    const worker = new Worker(new URL('./worker.mjs', import.meta.url), { type: 'module' });
    this.worker = worker;
    const ifCurrent = (handle) => (event) => worker === this.worker && handle(event);
    worker.addEventListener('message', ifCurrent(({ data }) => this.receive(data)));
    worker.addEventListener('close', ifCurrent(() => this.lost('has ended')));
    worker.addEventListener('error', (event) => {
      event.preventDefault();
      if (worker === this.worker) this.lost(`has failed: ${event.message}`);
    });
    worker.postMessage({ settings: this.settings });
  }

  receive({ key, output, failure, isReady, isClosed, exit }) {
    if (failure !== undefined) {
      this.failure = failure;
      for (const waiting of [...this.pending.keys()]) this.settle(waiting, (call) => this.fail(503, call, failure));
    } else if (isReady) {
      this.isReady = true;
      for (const waiting of this.pending.keys()) this.dispatch(waiting);
    } else if (exit !== undefined) {
      this.lost(`has ended with status ${exit}`);
    } else if (isClosed) {
      this.settle(key, (call) => this.fail(500, call, TIMED_OUT));
    } else {
      this.settle(key, () => output);
    }
  }

  dispatch(key) {
    const pending = this.pending.get(key);
    const { seconds, ...call } = pending.call;
    if (seconds > 0) pending.timer = setTimeout(() => this.expire(key), seconds * 1000);
    this.worker.postMessage({ key, ...call }, [call.body]);
  }

  /** Lets the thread end the execution, or ends the thread. */
  expire(key) {
    this.worker.postMessage({ key, close: true });
    const pending = this.pending.get(key);
    pending.timer = setTimeout(() => {
      this.settle(key, (call) => this.fail(500, call, TIMED_OUT));
      this.lost('was ended, since another execution blocked it');
    }, GRACE_MS);
  }

  /** The thread is no more, and with it all that it was busy with. */
  lost(how) {
    const wasReady = this.isReady;
    this.worker.terminate();
    if (wasReady) this.start();
    else this.failure = `Failed to load module: its thread ${how}.`;
    const status = wasReady ? 500 : 503;
    for (const key of [...this.pending.keys()]) {
      this.settle(key, (call) => this.fail(status, call, this.failure ?? `The function's thread ${how}.`));
    }
  }

  settle(key, output) {
    const pending = this.pending.get(key);
    if (pending === undefined) return;
    this.pending.delete(key);
    clearTimeout(pending.timer);
    pending.settle(output(pending.call));
  }

  /** The output in the function's place; `error` goes to the error log. */
  fail(status, { id }, error) {
    const logger = id === '' ? NO_LOG : new Logger(this.settings.logsDir, id);
    logger.error(error);
    logger.close();
    return { status, ...FAILED };
  }
}
