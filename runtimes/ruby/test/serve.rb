# frozen_string_literal: true

# The server with paths of a test's choice: `ruby test/serve.rb PORT CODE_DIR STATE_DIR`.

require_relative "../src/runtime/serve"
require_relative "../src/runtime/settings"

port, code_dir, state_dir = ARGV
settings = Runtime::Settings.from_environment(ENV)
settings.port = port.to_i
settings.code_dir = File.realpath(code_dir)
settings.logs_dir = "#{state_dir}/logs"
settings.timings_file = "#{state_dir}/telemetry/timings.txt"
Runtime.serve(settings)
