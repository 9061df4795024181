// Finds and loads the function. A failure is kept and told to every caller: the server stays up.

'use strict';

const fs = require('node:fs');
const path = require('node:path');

const NO_MAIN = "Function signature invalid. Did you forget to export a 'main' function?";
// What `require` reports for a module that has to be imported.
const IS_ESM = new Set(['ERR_REQUIRE_ESM', 'ERR_REQUIRE_ASYNC_MODULE']);

/** `{ main }`, or `{ failure }` with the text for the error log. */
async function load(codeDir, entrypoint) {
  const file = path.join(codeDir, entrypoint);
  if (!fs.existsSync(file)) return { failure: `Failed to load entrypoint, file ${entrypoint} does not exist.` };
  let loaded;
  try {
    loaded = await loadModule(file);
  } catch (error) {
    return { failure: explain(error, entrypoint) };
  }
  const main = loaded?.default?.default ?? loaded?.default ?? loaded;
  return typeof main === 'function' ? { main } : { failure: NO_MAIN };
}

function loadModule(file) {
  if (file.endsWith('.mjs')) return importModule(file);
  try {
    return require(file);
  } catch (error) {
    const isEsm = IS_ESM.has(error?.code) || /^(Cannot use import statement|Unexpected token 'export')/.test(error?.message);
    if (isEsm) return importModule(file);
    throw error;
  }
}

function importModule(file) {
  return import(require('node:url').pathToFileURL(file).href);
}

function explain(error, entrypoint) {
  const details = error?.stack ?? String(error);
  if (error instanceof SyntaxError) return `Syntax error in ${entrypoint}: ${error.message}\n${details}`;
  return `Failed to load module: ${error?.message ?? error}\n${details}`;
}

module.exports = { load };
