// Bun's own HTTP server.

// The caller decides when a connection ends: seconds, the most that Bun takes.
const IDLE_S = 255;
// The protocol's own limit is kept by who reads the body.
const BODY_LIMIT = 2 ** 40;

/** Serves `handle` on a port; the answer stops it and resolves when all requests have been answered. */
export function listen(port, handle) {
  const server = Bun.serve({
    port,
    hostname: '0.0.0.0',
    fetch: handle,
    idleTimeout: IDLE_S,
    maxRequestBodySize: BODY_LIMIT,
    reusePort: false,
    development: false,
  });
  return () => server.stop();
}
