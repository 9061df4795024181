// The safe timeout. A timer of the event loop ends an execution that waits; a watchdog thread ends one that blocks the loop.
//
// Both sides share a table of slots, one an execution, so that neither a message nor a system call is paid per execution.
// A slot goes FREE -> deadline -> FREE, or, where the watchdog answers, deadline -> TAKEN -> FREE.

'use strict';

const path = require('node:path');
const { Worker } = require('node:worker_threads');

const SLOTS = 1024;
const ID_BYTES = 128;
const FREE = 0;
const TAKEN = 1;
// Indices of the head: how often the watchdog was woken, whether it sleeps for good, when it looks again.
const WAKES = 0;
const ASLEEP = 1;
const NEXT_LOOK = 2;
const HEAD = 4;

// How the watchdog reaches `Timeouts.expire` on the main thread.
const EXPIRE = "globalThis[Symbol.for('open-runtimes.expire')]()";

/** What an execution failed with that took too long. */
class TimeoutError extends Error {
  constructor() {
    super('Execution timed out.');
  }
}

/** Milliseconds of the monotonic clock, the same in all threads; wraps around, so compare differences. */
function now() {
  const [seconds, nanoseconds] = process.hrtime();
  return (seconds * 1000 + nanoseconds / 1e6) | 0;
}

/** The deadlines of this process. */
class Timeouts {
  constructor(logsDir) {
    this.logsDir = logsDir;
    this.free = [];
    this.expiries = new Array(SLOTS);
    this.worker = undefined;
  }

  /** Calls `expire` after `seconds`. The answer's `clear` must be called once and tells whether the watchdog has answered. */
  start(seconds, socket, logId, expire) {
    if (!this.worker) this.watch();
    const slot = this.free.pop();
    if (slot !== undefined) {
      this.expiries[slot] = expire;
      this.fill(slot, seconds * 1000, socket._handle?.fd ?? -1, logId);
    }
    return new Timeout(this, slot, setTimeout(expire, seconds * 1000));
  }

  fill(slot, milliseconds, fd, logId) {
    const { deadlines, fds, ids, head } = this;
    fds[slot] = fd;
    let index = slot * ID_BYTES;
    for (let i = 0; i < logId.length; i += 1) ids[index++] = logId.charCodeAt(i);
    if (logId.length < ID_BYTES) ids[index] = 0;
    let deadline = (now() + milliseconds) | 0;
    if (deadline === FREE || deadline === TAKEN) deadline = 2;
    Atomics.store(deadlines, slot, deadline);
    if (Atomics.load(head, ASLEEP) === 1 || ((Atomics.load(head, NEXT_LOOK) - deadline) | 0) > 0) {
      Atomics.add(head, WAKES, 1);
      Atomics.notify(head, WAKES);
    }
  }

  /** Ends all executions whose time is over. The watchdog calls this while the event loop is blocked. */
  expire() {
    const time = now();
    for (let slot = 0; slot < SLOTS; slot += 1) {
      const deadline = Atomics.load(this.deadlines, slot);
      if (deadline !== FREE && deadline !== TAKEN && ((deadline - time) | 0) <= 0) this.expiries[slot]();
    }
  }

  /** Starts the watchdog: with the first execution that has a deadline. */
  watch() {
    const shared = new SharedArrayBuffer(4 * (HEAD + 2 * SLOTS) + ID_BYTES * SLOTS);
    Object.assign(this, table(shared));
    for (let slot = SLOTS - 1; slot >= 0; slot -= 1) this.free.push(slot);
    Object.defineProperty(globalThis, Symbol.for('open-runtimes.expire'), { value: () => this.expire() });
    this.worker = new Worker(path.join(__dirname, 'watchdog.js'), {
      workerData: { shared, logsDir: this.logsDir },
      env: {},
      execArgv: [],
      resourceLimits: { maxYoungGenerationSizeMb: 1, maxOldGenerationSizeMb: 16, stackSizeMb: 1 },
    });
    this.worker.on('error', () => {});
    this.worker.unref();
  }
}

/** The deadline of one execution. */
class Timeout {
  constructor(timeouts, slot, timer) {
    this.timeouts = timeouts;
    this.slot = slot;
    this.timer = timer;
  }

  clear() {
    clearTimeout(this.timer);
    if (this.slot === undefined) return false;
    const before = Atomics.exchange(this.timeouts.deadlines, this.slot, FREE);
    this.timeouts.expiries[this.slot] = undefined;
    this.timeouts.free.push(this.slot);
    return before === TAKEN;
  }
}

/** The parts of the shared table. */
function table(shared) {
  return {
    head: new Int32Array(shared, 0, HEAD),
    deadlines: new Int32Array(shared, 4 * HEAD, SLOTS),
    fds: new Int32Array(shared, 4 * (HEAD + SLOTS), SLOTS),
    ids: new Uint8Array(shared, 4 * (HEAD + 2 * SLOTS), ID_BYTES * SLOTS),
  };
}

module.exports = {
  Timeouts,
  TimeoutError,
  EXPIRE,
  now,
  table,
  SLOTS,
  ID_BYTES,
  FREE,
  TAKEN,
  WAKES,
  ASLEEP,
  NEXT_LOOK,
};
