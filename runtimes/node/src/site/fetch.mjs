// Between node's HTTP and handlers that take a web `Request` and give a `Response`.

import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';

/** A node request handler of a fetch handler. */
export function fromFetch(handler) {
  return async (request, response) => {
    const answer = await handler(toRequest(request, response));
    response.statusCode = answer.status;
    for (const [name, value] of answer.headers) response.appendHeader(name, value);
    if (answer.body === null) response.end();
    else await pipeline(Readable.fromWeb(answer.body), response).catch(() => response.destroy());
  };
}

function toRequest(request, response) {
  const scheme = request.headers['x-forwarded-proto'] || 'http';
  const url = new URL(request.url, `${scheme}://${request.headers.host || 'localhost'}`);
  const headers = new Headers();
  for (let i = 0; i < request.rawHeaders.length; i += 2) headers.append(request.rawHeaders[i], request.rawHeaders[i + 1]);
  const gone = new AbortController();
  response.once('close', () => response.writableFinished || gone.abort());
  const hasBody = request.method !== 'GET' && request.method !== 'HEAD';
  const body = hasBody ? Readable.toWeb(request) : undefined;
  return new Request(url, { method: request.method, headers, body, duplex: 'half', signal: gone.signal });
}
