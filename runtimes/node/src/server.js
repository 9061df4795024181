// The HTTP server of the node runtime: the sandbox's main process.
//
// It binds first, then loads the function, so that a caller who connects at once waits for the module and nothing else.

'use strict';

const { serve } = require('./runtime/serve');
const { settings } = require('./runtime/settings');

serve(settings(process.env));
