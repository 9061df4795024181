// One request from its first line to its answer, in the protocol's order:
// special paths, authentication, timeout, log, body, function, response.

import fs from 'node:fs';
import { logId } from './logger.js';
import { isEqualSecret } from './request.js';

const BODY_LIMIT = 20 * 1024 * 1024;
// What a caller may go on sending beyond that until it is answered.
const DISCARD_LIMIT = 64 * 1024 * 1024;
const MAX_TIMEOUT_S = 2_147_483;

const UNAUTHORIZED = 'Unauthorized. Provide correct "x-open-runtimes-secret" header.';
const BAD_TIMEOUT = 'Header "x-open-runtimes-timeout" must be an integer greater than 0.';
const PLAIN = ['content-type', 'text/plain; charset=utf-8'];

/** All executions of this process. */
export class Executions {
  constructor(settings, thread) {
    this.settings = settings;
    this.thread = thread;
    this.nActive = 0;
  }

  /** A web `Request` to a `Response`. */
  async handle(request) {
    const { headers } = request;
    const target = targetOf(request.url);
    const path = target.split('?', 1)[0];
    if (path === '/__opr/health') return answer(200, [PLAIN], 'OK');
    if (path === '/__opr/timings') return answer(200, [PLAIN], this.timings());

    const { secret, isDevelopment } = this.settings;
    if (secret !== '' && !isEqualSecret(headers.get('x-open-runtimes-secret') ?? '', secret)) {
      return answer(401, [PLAIN], UNAUTHORIZED);
    }
    const seconds = parseTimeout(headers.get('x-open-runtimes-timeout') ?? '');
    if (seconds === undefined) return answer(500, [PLAIN], BAD_TIMEOUT);

    this.nActive += 1;
    try {
      const message = messageOf(request, target, this.settings);
      const id = logId(message.headers, isDevelopment);
      const body = await readBody(request);
      const output =
        body === undefined
          ? { status: 413, headers: [PLAIN], body: null }
          : await this.thread.run({ id, message, body }, seconds);
      return answer(output.status, [...output.headers, ['x-open-runtimes-log-id', id]], output.body);
    } finally {
      this.nActive -= 1;
    }
  }

  timings() {
    try {
      return fs.readFileSync(this.settings.timingsFile);
    } catch {
      return '';
    }
  }
}

/** Path and query, as far as the web's URLs keep them as they were sent. */
function targetOf(url) {
  const authority = url.indexOf('://') + 3;
  return authority < 3 ? url : url.slice(url.indexOf('/', authority));
}

/** What the thread's `Request` is made of: names are lower-cased, repeats joined. */
function messageOf({ method, headers }, target, { ownCredential }) {
  const message = { method, url: target, headers: Object.fromEntries(headers), rawHeaders: [] };
  const { authorization } = message.headers;
  // The client's credential, where it came beside the caller's own.
  if (ownCredential !== undefined && authorization?.startsWith(`${ownCredential}, `)) {
    message.headers.authorization = ownCredential;
    message.rawHeaders = ['authorization', authorization.slice(ownCredential.length + 2)];
  }
  return message;
}

/** The whole body; undefined where it is beyond the limit, and nothing of it is kept then. */
async function readBody(request) {
  if (!request.body) return new ArrayBuffer(0);
  if (Number(request.headers.get('content-length') ?? Infinity) <= BODY_LIMIT) return request.arrayBuffer();
  const chunks = [];
  let size = 0;
  for await (const chunk of request.body) {
    size += chunk.byteLength;
    if (size > DISCARD_LIMIT) return undefined;
    if (size > BODY_LIMIT) chunks.length = 0;
    else chunks.push(chunk);
  }
  return size > BODY_LIMIT ? undefined : new Blob(chunks).arrayBuffer();
}

/** Whole seconds; 0 where none are asked for; undefined where the text is no positive integer. */
function parseTimeout(text) {
  if (text === '') return 0;
  const seconds = /^[0-9]+$/.test(text) ? Number(text) : 0;
  return seconds > 0 ? Math.min(seconds, MAX_TIMEOUT_S) : undefined;
}

function answer(status, headers, body) {
  return new Response(status === 204 || status === 304 ? null : body, { status, headers });
}
