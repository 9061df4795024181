// `context.res`, and how what a function returns becomes status, headers and bytes.

'use strict';

const CONTROL = 'x-open-runtimes-';
// The framing of the message is the server's.
const FRAMING = new Set(['content-length', 'transfer-encoding', 'connection', 'keep-alive', 'upgrade', 'trailer']);

/** Each method makes an output and sends nothing: the one that is returned counts. */
class FunctionResponse {
  text(body, statusCode = 200, headers = {}) {
    return { body: Buffer.from(String(body), 'utf8'), statusCode, headers };
  }

  json(object, statusCode = 200, headers = {}) {
    return this.text(JSON.stringify(object), statusCode, {
      ...without(headers, 'content-type'),
      'content-type': 'application/json',
    });
  }

  binary(bytes, statusCode = 200, headers = {}) {
    return { body: bytes, statusCode, headers };
  }

  empty() {
    return { body: '', statusCode: 204, headers: {} };
  }

  redirect(url, statusCode = 301, headers = {}) {
    return { body: '', statusCode, headers: { ...without(headers, 'location'), location: url } };
  }

  /** The old form of `text` and `binary`. */
  send(body, statusCode = 200, headers = {}) {
    return { body, statusCode, headers };
  }
}

/** `{ status, headers, body }` ready to send, or a promise of it where the body has to be read first. */
function render(output) {
  const status = output.statusCode ?? 200;
  if (!Number.isInteger(Number(status)) || status < 200 || status > 999) {
    throw new RangeError(`Invalid status code: ${status}`);
  }
  const headers = renderHeaders(output.headers ?? {});
  const body = toBytes(output.body);
  if (typeof body.then !== 'function') return { status: Number(status), headers, body };
  return body.then((bytes) => ({ status: Number(status), headers, body: bytes }));
}

function renderHeaders(given) {
  const headers = {};
  const entries = typeof given.entries === 'function' ? given.entries() : Object.entries(given);
  for (const [name, value] of entries) {
    const key = name.toLowerCase();
    if (key.startsWith(CONTROL) || FRAMING.has(key) || value === undefined || value === null) continue;
    const text = Array.isArray(value) ? value.map(String) : String(value);
    // A `Headers` object gives each cookie as an entry of its own.
    headers[key] = key === 'set-cookie' && key in headers ? [].concat(headers[key], text) : text;
  }
  headers['content-type'] = contentType(headers['content-type']);
  return headers;
}

function contentType(value) {
  if (value === undefined) return 'text/plain; charset=utf-8';
  const text = String(value);
  const lower = text.toLowerCase();
  if (lower.startsWith('multipart/') || lower.includes('charset=')) return text;
  return `${lower}; charset=utf-8`;
}

/** Text or bytes of any body a function may give. */
function toBytes(body) {
  if (body === undefined || body === null) return '';
  if (typeof body === 'string' || Buffer.isBuffer(body)) return body;
  if (ArrayBuffer.isView(body)) return Buffer.from(body.buffer, body.byteOffset, body.byteLength);
  if (body instanceof ArrayBuffer || body instanceof SharedArrayBuffer) return Buffer.from(body);
  if (typeof body !== 'object') return String(body);
  if (typeof body.arrayBuffer === 'function') return body.arrayBuffer().then((bytes) => Buffer.from(bytes));
  if (typeof body[Symbol.asyncIterator] === 'function') return collect(body);
  return JSON.stringify(body);
}

async function collect(stream) {
  const chunks = [];
  for await (const chunk of stream) chunks.push(typeof chunk === 'string' ? Buffer.from(chunk) : chunk);
  return Buffer.concat(chunks);
}

function without(headers, unwanted) {
  return Object.fromEntries(Object.entries(headers).filter(([name]) => name.toLowerCase() !== unwanted));
}

module.exports = { FunctionResponse, render };
