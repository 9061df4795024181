// Deno's own HTTP server.

/** Serves `handle` on a port; the answer stops it and resolves when all requests have been answered. */
export function listen(port, handle) {
  const server = Deno.serve({ port, hostname: '0.0.0.0', onListen() {} }, handle);
  return () => server.shutdown();
}
