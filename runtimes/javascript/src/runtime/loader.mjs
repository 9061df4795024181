// Finds and loads the function. A failure is kept and told to every caller: the server stays up.

import fs from 'node:fs';
import path from 'node:path';
import { pathToFileURL } from 'node:url';

const NO_MAIN = "Function signature invalid. Did you forget to export a 'main' function?";

/** `{ main }`, or `{ failure }` with the text for the error log. */
export async function load(codeDir, entrypoint) {
  const file = path.join(codeDir, entrypoint);
  if (!fs.existsSync(file)) return { failure: `Failed to load entrypoint, file ${entrypoint} does not exist.` };
  try {
    const loaded = await import(pathToFileURL(file).href);
    const main = loaded.default?.default ?? loaded.default ?? loaded;
    return typeof main === 'function' ? { main } : { failure: NO_MAIN };
  } catch (error) {
    return { failure: explain(error, entrypoint) };
  }
}

function explain(error, entrypoint) {
  const details = error?.stack ?? String(error);
  if (error instanceof SyntaxError) return `Syntax error in ${entrypoint}: ${error.message}\n${details}`;
  return `Failed to load module: ${error?.message ?? error}\n${details}`;
}
