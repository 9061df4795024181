// Owns the listening socket, the signals and the life of the process; what a request means is `execution.mjs`'s matter.

import fs from 'node:fs';
import process from 'node:process';
import { Executions } from './execution.mjs';
import { listen } from './listen.mjs';
import { FunctionThread } from './thread.mjs';

// How long a stopping server waits for executions that are under way.
const DRAIN_MS = 5_000;

/** Binds, announces readiness, and serves until a signal; the function is loaded meanwhile. */
export function serve(settings) {
  const thread = new FunctionThread(settings);
  const executions = new Executions(settings, thread);
  let stop;
  try {
    stop = listen(settings.port, (request) => executions.handle(request));
  } catch (error) {
    process.stderr.write(`HTTP server failed: ${error.message}\n`);
    process.exit(1);
  }
  fs.writeSync(1, 'HTTP server successfully started!\n');
  noteStartup(settings);
  for (const signal of ['SIGTERM', 'SIGINT']) process.on(signal, () => drain(executions, stop));
}

/** Ends the process at once, or when what is under way has been answered. */
function drain(executions, stop) {
  const exit = () => process.exit(0);
  if (executions.nActive === 0) exit();
  setTimeout(exit, DRAIN_MS);
  stop().then(exit);
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
