// What a function prints with `console` goes to the log of the execution it was printed in.

'use strict';

const METHODS = ['log', 'info', 'debug', 'warn', 'error'];

/** Redirects `console`, for good; outside an execution it prints to the process's output as ever. */
function captureConsole(current) {
  for (const method of METHODS) {
    const print = console[method];
    console[method] = (...messages) => {
      const logger = current.getStore()?.logger;
      if (logger?.isOpen) logger.native(messages);
      else print.apply(console, messages);
    };
  }
}

module.exports = { captureConsole };
