// The two log files of an execution. They are written when there is something to write, at the latest before the response
// leaves, so that a silent function costs no file; failing to write them never fails the execution.

'use strict';

const fs = require('node:fs');

const RECORD_LIMIT = 8_000;
const TRUNCATED = `... Log truncated due to size limit (${RECORD_LIMIT} characters)`;
const NATIVE_NOTICE = 'Native logs detected. Use context.log() or context.error() for better experience.';
const BUFFER_LIMIT = 64 * 1024;
// Callers read 5 MiB of a file and say so when there is more: what lies further back would only fill the disk.
const FILE_LIMIT = 5 * 1024 * 1024 + 64 * 1024;
const LOG_ID = /^[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}$/;

/** Buffered records of one log file. */
class LogFile {
  constructor(path) {
    this.path = path;
    this.text = '';
    this.room = FILE_LIMIT;
  }

  write(record) {
    if (this.room <= 0) return;
    this.text += `${record}\n`;
    if (this.text.length > BUFFER_LIMIT) this.flush();
  }

  flush() {
    if (this.text === '') return;
    const { text } = this;
    this.text = '';
    this.room -= text.length;
    try {
      fs.appendFileSync(this.path, text);
    } catch {
      this.room = 0;
    }
  }
}

/** The log of one execution; after `close` nothing is written any more. */
class Logger {
  constructor(directory, id) {
    this.id = id;
    this.isOpen = true;
    this.isNative = false;
    this.logs = new LogFile(`${directory}/${id}_logs.log`);
    this.errors = new LogFile(`${directory}/${id}_errors.log`);
  }

  log(...messages) {
    if (this.isOpen) this.logs.write(format(messages));
  }

  error(...messages) {
    if (this.isOpen) this.errors.write(format(messages));
  }

  /** What the function printed by other means than its context. */
  native(messages) {
    if (!this.isNative) this.logs.write(NATIVE_NOTICE);
    this.isNative = true;
    this.logs.write(format(messages));
  }

  flush() {
    this.logs.flush();
    this.errors.flush();
  }

  close() {
    this.isOpen = false;
    this.flush();
  }
}

/** The log of an execution whose caller wants none. */
const NO_LOG = { id: '', isOpen: true, log() {}, error() {}, native() {}, flush() {}, close() {} };

/** The id asked for where it is a safe file name, else one of the runtime's own; empty where logging is off. */
function logId(headers, isDevelopment) {
  if ((headers['x-open-runtimes-logging'] || 'enabled') !== 'enabled') return '';
  const wanted = headers['x-open-runtimes-log-id'];
  if (wanted && LOG_ID.test(wanted)) return wanted;
  return isDevelopment && !wanted ? 'dev' : generateId();
}

/** Seconds (8 hex digits), fraction of a second (5), random (7). */
function generateId() {
  const now = Date.now();
  const hex = (value, digits) => Math.floor(value).toString(16).padStart(digits, '0');
  return hex(now / 1000, 8) + hex((now % 1000) * 1000, 5) + hex(Math.random() * 0x10000000, 7);
}

function format(messages) {
  const text = messages.length === 1 ? toText(messages[0]) : messages.map(toText).join(' ');
  return text.length > RECORD_LIMIT ? text.slice(0, RECORD_LIMIT) + TRUNCATED : text;
}

function toText(value) {
  if (typeof value === 'string') return value;
  try {
    if (value instanceof Error) return describe(value);
    if (value === null || typeof value !== 'object') return String(value);
    const text = JSON.stringify(value, replace);
    if (text === undefined) return String(value);
    return text.startsWith('"') ? JSON.parse(text) : text;
  } catch {
    return inspect(value);
  }
}

/** The stack, which names the message and the file; and what it was caused by. */
function describe(error) {
  const stack = typeof error.stack === 'string' && error.stack !== '' ? error.stack : String(error);
  const text = stack.includes(error.message) ? stack : `${error.name}: ${error.message}\n${stack}`;
  return error.cause instanceof Error ? `${text}\nCaused by: ${describe(error.cause)}` : text;
}

/** Gives JSON what it has no form for. */
function replace(key, value) {
  const original = this[key];
  if (typeof value === 'bigint') return value.toString();
  if (typeof value === 'number' && !Number.isFinite(value)) return String(value);
  if (original instanceof Set) return [...original];
  if (original instanceof Map) return [...original];
  if (original instanceof Error) return describe(original);
  if (ArrayBuffer.isView(original) && !(original instanceof DataView)) return Array.from(original);
  return value;
}

/** The last resort for what JSON cannot say, such as an object that contains itself. */
function inspect(value) {
  try {
    return require('node:util').inspect(value);
  } catch {
    return '[unprintable]';
  }
}

module.exports = { Logger, NO_LOG, logId };
