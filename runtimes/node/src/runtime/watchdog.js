// The watchdog thread: acts when the event loop is blocked beyond the deadline of an execution.
//
// First it reaches into the blocked thread through the inspector's interface: there the overdue executions are answered
// as usual, and the JavaScript that runs is ended. Code that blocks outside JavaScript (a synchronous child process) cannot
// be interrupted: for it the thread writes the answer into the caller's connection itself.

'use strict';

const fs = require('node:fs');
const inspector = require('node:inspector');
const { workerData } = require('node:worker_threads');
const { now, table, EXPIRE, TimeoutError, SLOTS, ID_BYTES, FREE, TAKEN, WAKES, ASLEEP, NEXT_LOOK } = require('./timeout');

// How long after a deadline the loop's own timer may take to answer, and an interrupted loop after that.
const GRACE_MS = 50;
const INTERRUPTED_MS = 250;

const { head, deadlines, fds, ids } = table(workerData.shared);

/** Sleeps until an execution is overdue. */
async function watch() {
  for (;;) {
    const wakes = Atomics.load(head, WAKES);
    Atomics.store(head, ASLEEP, 1);
    const left = untilEarliest();
    if (left === Infinity) {
      Atomics.wait(head, WAKES, wakes);
    } else if (left + GRACE_MS > 0) {
      Atomics.store(head, NEXT_LOOK, (now() + left + GRACE_MS) | 0);
      Atomics.store(head, ASLEEP, 0);
      Atomics.wait(head, WAKES, wakes, left + GRACE_MS);
    } else {
      await rescue();
    }
  }
}

/** Milliseconds until the first deadline, below zero where it has passed. */
function untilEarliest() {
  const time = now();
  let earliest = Infinity;
  for (let slot = 0; slot < SLOTS; slot += 1) {
    const deadline = Atomics.load(deadlines, slot);
    if (deadline !== FREE && deadline !== TAKEN) earliest = Math.min(earliest, (deadline - time) | 0);
  }
  return earliest;
}

async function rescue() {
  interruptLoop();
  await new Promise((resolve) => setTimeout(resolve, INTERRUPTED_MS));
  const time = now();
  for (let slot = 0; slot < SLOTS; slot += 1) {
    const deadline = Atomics.load(deadlines, slot);
    if (deadline === FREE || deadline === TAKEN || ((deadline - time) | 0) > -GRACE_MS) continue;
    const fd = fds[slot];
    const id = idOf(slot);
    if (Atomics.compareExchange(deadlines, slot, deadline, TAKEN) === deadline) answer(fd, id);
  }
}

/** Answers what is overdue from within the blocked thread, then ends the JavaScript that runs there. */
function interruptLoop() {
  const session = new inspector.Session();
  try {
    session.connectToMainThread();
    session.post('Runtime.evaluate', { expression: EXPIRE, silent: true });
    session.post('Runtime.terminateExecution', () => session.disconnect());
  } catch {
    // Not to be had in this process; the answer above still is.
  }
}

function idOf(slot) {
  const bytes = ids.slice(slot * ID_BYTES, (slot + 1) * ID_BYTES);
  const end = bytes.indexOf(0);
  return Buffer.from(end < 0 ? bytes : bytes.subarray(0, end)).toString('latin1');
}

function answer(fd, id) {
  try {
    if (id !== '') fs.appendFileSync(`${workerData.logsDir}/${id}_errors.log`, `${new TimeoutError().message}\n`);
  } catch {
    // As everywhere: a log that cannot be written does not fail the execution.
  }
  const head = [
    'HTTP/1.1 500 Internal Server Error',
    'content-type: text/plain; charset=utf-8',
    `x-open-runtimes-log-id: ${id}`,
    'content-length: 0',
    'connection: close',
  ];
  try {
    if (fd >= 0) fs.writeSync(fd, `${head.join('\r\n')}\r\n\r\n`);
  } catch {
    // The caller has gone.
  }
}

watch();
