// The HTTP server of the deno runtime: the sandbox's main process.

import process from 'node:process';
import { serve } from './runtime/serve.mjs';
import { settings } from './runtime/settings.js';

serve(settings(process.env, 'mod.ts'));
