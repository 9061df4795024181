# frozen_string_literal: true

# What the server is told by its environment, read once at start.

module Runtime
  # The paths and the port are the protocol's own.
  Settings = Struct.new(
    :port, :code_dir, :logs_dir, :timings_file, :startup_began, :secret,
    # The caller's credential with that secret, which is not the function's to see.
    :own_credential, :is_development, :entrypoint, :enforced_headers,
    keyword_init: true
  ) do
    def self.from_environment(env)
      secret = env.fetch("OPEN_RUNTIMES_SECRET", "")
      entrypoint = env.fetch("OPEN_RUNTIMES_ENTRYPOINT", "")
      new(
        port: 3000,
        code_dir: File.expand_path("../function", __dir__),
        logs_dir: "/mnt/logs",
        timings_file: "/mnt/telemetry/timings.txt",
        startup_began: Float(env["OPEN_RUNTIMES_STARTUP_BEGAN"] || "", exception: false),
        secret: secret,
        own_credential: secret.empty? ? nil : "Basic #{["opr:#{secret}"].pack("m0")}",
        is_development: env["OPEN_RUNTIMES_ENV"] == "development",
        entrypoint: entrypoint.empty? ? "index.rb" : entrypoint,
        enforced_headers: Runtime.parse_enforced_headers(env["OPEN_RUNTIMES_HEADERS"])
      )
    end
  end

  # Lower-cased names with text values; anything that is no JSON object means none.
  def self.parse_enforced_headers(text)
    return {} if text.nil? || text.empty? || text == "{}"

    require "json"
    parsed = JSON.parse(text)
    return {} unless parsed.is_a?(Hash)

    parsed.to_h { |name, value| [name.downcase, value.is_a?(String) ? value : JSON.generate(value)] }
  rescue JSON::ParserError
    {}
  end
end
