// The HTTP server of the bun runtime: the sandbox's main process.

import { serve } from './runtime/serve.mjs';
import { settings } from './runtime/settings.js';

serve(settings(process.env, 'index.ts'));
