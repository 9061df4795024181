// `context.req`: the HTTP request as the function sees it.

'use strict';

const CONTROL = 'x-open-runtimes-';

/** The request of one execution; bodies are decoded when they are asked for. */
class Request {
  #body;
  #text;

  constructor(message, body, settings) {
    const target = originForm(message.url);
    const mark = target.indexOf('?');
    const { headers } = message;
    const scheme = headers['x-forwarded-proto'] || 'http';
    const { host, port } = authority(headers.host ?? '', scheme);

    this.method = message.method;
    this.scheme = scheme;
    this.host = host;
    this.port = port;
    this.path = mark < 0 ? target : target.slice(0, mark);
    this.queryString = mark < 0 ? '' : target.slice(mark + 1);
    this.query = parseQuery(this.queryString);
    this.headers = functionHeaders(message, settings);
    const shownPort = port === defaultPort(scheme) ? '' : `:${port}`;
    this.url = `${scheme}://${host}${shownPort}${this.path}${this.queryString && `?${this.queryString}`}`;
    this.#body = body;
  }

  get bodyBinary() {
    return this.#body;
  }

  get bodyText() {
    return (this.#text ??= this.#body.toString('utf8'));
  }

  get bodyJson() {
    return JSON.parse(this.bodyText);
  }

  get body() {
    const type = this.headers['content-type'] ?? 'text/plain';
    if (!type.toLowerCase().startsWith('application/json')) return this.bodyText;
    return this.#body.length === 0 ? {} : this.bodyJson;
  }

  /** The old name of `bodyText`. */
  get bodyRaw() {
    return this.bodyText;
  }
}

/** `/path?query` also where a proxy sent the absolute form. */
function originForm(url) {
  if (url.startsWith('/') || !url.includes('://')) return url;
  const slash = url.indexOf('/', url.indexOf('://') + 3);
  return slash < 0 ? '/' : url.slice(slash);
}

function defaultPort(scheme) {
  return scheme === 'https' ? 443 : 80;
}

function authority(header, scheme) {
  const colon = header.indexOf(':', header.startsWith('[') ? header.indexOf(']') + 1 : 0);
  if (colon < 0) return { host: header, port: defaultPort(scheme) };
  const port = Number.parseInt(header.slice(colon + 1), 10);
  return { host: header.slice(0, colon), port: Number.isNaN(port) ? defaultPort(scheme) : port };
}

/** Raw text, split at `&` and at the first `=`; the last of equal keys wins. */
function parseQuery(text) {
  const query = {};
  if (text === '') return query;
  for (const item of text.split('&')) {
    const equals = item.indexOf('=');
    const key = equals < 0 ? item : item.slice(0, equals);
    if (key !== '') define(query, key, equals < 0 ? '' : item.slice(equals + 1));
  }
  return query;
}

/** Without the runtime's own headers and the caller's own credential, below the enforced ones. */
function functionHeaders(message, { ownCredential, enforcedHeaders }) {
  const headers = {};
  for (const name in message.headers) {
    if (name.startsWith(CONTROL)) continue;
    const value = message.headers[name];
    define(headers, name, Array.isArray(value) ? value.join(', ') : value);
  }
  if (headers.authorization === ownCredential && ownCredential !== undefined) {
    delete headers.authorization;
    const client = otherAuthorization(message.rawHeaders, ownCredential);
    if (client !== undefined) headers.authorization = client;
  }
  for (const name in enforcedHeaders) headers[name] = enforcedHeaders[name];
  return headers;
}

/** The client's credential that came beside the caller's own. */
function otherAuthorization(rawHeaders, own) {
  for (let i = 0; i < rawHeaders.length; i += 2) {
    if (rawHeaders[i].toLowerCase() === 'authorization' && rawHeaders[i + 1] !== own) return rawHeaders[i + 1];
  }
  return undefined;
}

/** Sets a key of a caller's choice; `__proto__` is a key like any other. */
function define(object, key, value) {
  if (key !== '__proto__') object[key] = value;
  else Object.defineProperty(object, key, { value, enumerable: true, configurable: true, writable: true });
}

/** Takes the same time wherever the texts differ. */
function isEqualSecret(given, secret) {
  let difference = given.length ^ secret.length;
  for (let i = 0; i < secret.length; i += 1) difference |= given.charCodeAt(i) ^ secret.charCodeAt(i);
  return difference === 0;
}

module.exports = { Request, isEqualSecret };
