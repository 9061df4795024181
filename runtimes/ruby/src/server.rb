# frozen_string_literal: true

# The HTTP server of the ruby runtime: the sandbox's main process.

require_relative "runtime/serve"
require_relative "runtime/settings"

Runtime.serve(Runtime::Settings.from_environment(ENV))
