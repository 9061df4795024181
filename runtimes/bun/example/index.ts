// Says hello and tells what it was asked: `curl http://localhost:3000/anything?name=you`.

export default async function ({ req, res, log }: any) {
  const name = req.query.name ?? 'world';
  log(`Said hello to ${name}.`);
  return res.json({
    message: `Hello, ${name}!`,
    method: req.method,
    path: req.path,
    runtime: `bun ${Bun.version}`,
  });
}
