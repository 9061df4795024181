// Keeps of node_modules only what can be reached from the entry: `node helpers/trace.js DIR`.
// Exits with 2 where there is no entry to start from.

'use strict';

const fs = require('node:fs');
const path = require('node:path');

// Where frameworks put their server, the first that exists counts.
const FRAMEWORK_ENTRIES = [
  'server/entry.mjs',
  'server/server.mjs',
  'handler.js',
  'build/server/index.js',
  'server/server.js',
  'server/index.mjs',
];

/** `{ entry, isFramework }` of the project in `root`, or undefined. */
function findEntry(root, startCommand) {
  const named = /\b(?:node|bun|deno\s+run)\s+(?:-\S+\s+)*(\S+)/.exec(startCommand ?? '');
  if (named) {
    const entry = path.resolve(root, named[1]);
    if (isInside(root, entry) && fs.existsSync(entry)) return { entry, isFramework: false };
  }
  const known = FRAMEWORK_ENTRIES.map((file) => path.join(root, file)).find((file) => fs.existsSync(file));
  return known && { entry: known, isFramework: true };
}

/** Files to trace from: the entry, and for a framework what its server may load without naming it. */
function startingPoints(root, { entry, isFramework }) {
  if (!isFramework) return [entry];
  const files = ['server.mjs', 'server.js'].map((file) => path.join(root, file)).filter((file) => fs.existsSync(file));
  return [entry, ...files, ...dependencies(root)];
}

function dependencies(root) {
  try {
    const names = Object.keys(JSON.parse(fs.readFileSync(path.join(root, 'package.json'), 'utf8')).dependencies ?? {});
    const resolve = require('node:module').createRequire(path.join(root, 'package.json')).resolve;
    return names.flatMap((name) => {
      try {
        return [resolve(name)];
      } catch {
        return [];
      }
    });
  } catch {
    return [];
  }
}

/** Deletes each file and link below `directory` that is not in `kept`; true where nothing is left. */
function sweep(directory, kept) {
  let isEmpty = true;
  for (const item of fs.readdirSync(directory, { withFileTypes: true })) {
    const file = path.join(directory, item.name);
    if (item.isDirectory()) {
      if (sweep(file, kept)) fs.rmdirSync(file);
      else isEmpty = false;
    } else if (kept.has(file)) {
      isEmpty = false;
    } else {
      fs.unlinkSync(file);
    }
  }
  return isEmpty;
}

function isInside(root, file) {
  return file.startsWith(root + path.sep);
}

async function main() {
  const root = fs.realpathSync(process.argv[2]);
  const found = findEntry(root, process.env.OPEN_RUNTIMES_START_COMMAND);
  if (!found) process.exit(2);
  const { nodeFileTrace } = require(path.resolve(process.execPath, '../../lib/node_modules/@vercel/nft'));
  const { fileList } = await nodeFileTrace(startingPoints(root, found), { base: root, processCwd: root });
  if (fileList.size === 0) process.exit(3);
  sweep(path.join(root, 'node_modules'), new Set([...fileList].map((file) => path.join(root, file))));
}

main();
