// Serves what a framework has built: `server.mjs FRAMEWORK`, in the folder of the built site. Its static files come first,
// with the cache header; the rest is the framework's own handler.

import http from 'node:http';
import { createRequire } from 'node:module';
import path from 'node:path';
import { pathToFileURL } from 'node:url';
import sirv from '/usr/local/lib/node_modules/sirv/build.mjs';
import { fromFetch } from './fetch.mjs';

const load = (file) => import(pathToFileURL(path.resolve(file)).href);
/** As nitro's presets for node name it. */
const nitro = async () => {
  const { listener, middleware, handler } = await load('server/index.mjs');
  return listener ?? middleware ?? handler;
};

/** Where each framework has its static files, and how its handler is got: `(request, response, next)`. */
const FRAMEWORKS = {
  astro: ['client', async () => (await load('server/entry.mjs')).handler],
  sveltekit: ['client', async () => (await load('handler.js')).handler],
  'next-js': ['public', next],
  nuxt: ['public', nitro],
  remix: ['build/client', remix],
  angular: ['browser', async () => (await load('server/server.mjs')).reqHandler],
  analog: ['public', nitro],
  'tanstack-start': ['client', async () => fromFetch((await load('server/server.js')).default.fetch)],
  'tanstack-start-listener': ['public', nitro],
};

async function next() {
  const app = fromSite('next')({ dev: false, dir: process.cwd() });
  await app.prepare();
  const handle = app.getRequestHandler();
  return (request, response) => handle(request, response);
}

async function remix() {
  const { createRequestHandler } = fromSite('@remix-run/server-runtime');
  return fromFetch(createRequestHandler(await load('build/server/index.js'), 'production'));
}

/** A package of the site's own. */
function fromSite(name) {
  return createRequire(path.resolve('package.json'))(name);
}

const [assets, handlerOf] = FRAMEWORKS[process.argv[2]] ?? [];
if (handlerOf === undefined) throw new Error(`Unknown framework: ${process.argv[2]}. Known: ${Object.keys(FRAMEWORKS).join(', ')}.`);
const handler = await handlerOf();
if (typeof handler !== 'function') throw new Error(`The build of ${process.argv[2]} has no request handler.`);
const cacheHeader = process.env.OPEN_RUNTIMES_CACHE_HEADER || 'CDN-Cache-Control';
const serveAsset = sirv(assets, {
  etag: true,
  setHeaders: (response) => response.setHeader(cacheHeader, 'public, max-age=36000'),
});

const server = http.createServer((request, response) => {
  const notFound = () => response.writeHead(404, { 'content-type': 'text/plain' }).end('Not Found');
  serveAsset(request, response, () => handler(request, response, notFound));
});
const { HOST = '0.0.0.0', PORT = '3000' } = process.env;
server.listen(Number(PORT), HOST, () => console.log(`${process.argv[2]} server started on http://${HOST}:${PORT}`));
for (const signal of ['SIGTERM', 'SIGINT']) {
  process.on(signal, () => {
    server.close(() => process.exit(0));
    server.closeIdleConnections();
    setTimeout(() => process.exit(0), 5_000).unref();
  });
}
