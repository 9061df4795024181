// Run while the image is built: the server answers a request, on any port, and Deno keeps the code that it has compiled
// for it.

import process from 'node:process';

const { serve } = Deno;
Deno.writeTextFileSync('src/function/prime.ts', 'export default ({ res }: any) => res.json({});\n');
process.env.OPEN_RUNTIMES_ENTRYPOINT = 'prime.ts';
process.env.OPEN_RUNTIMES_SECRET = '';
Deno.serve = (options, handle) => serve({ ...options, port: 0, onListen: ask }, handle);
await import('./server.ts');

async function ask({ port }) {
  const answer = await fetch(`http://127.0.0.1:${port}/?name=you`);
  if (answer.status !== 200) Deno.exit(1);
  await answer.text();
  // Where nothing can be written, a database can be read that nobody has closed.
  process.kill(process.pid, 'SIGKILL');
}
