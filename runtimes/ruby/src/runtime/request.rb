# frozen_string_literal: true

# `context.req`: the HTTP request as the function sees it.

module Runtime
  CONTROL = "x-open-runtimes-"

  # The request of one execution; bodies are decoded when they are asked for.
  class Request
    attr_reader :method, :scheme, :host, :port, :path, :query_string, :query, :headers, :url, :body_binary

    def initialize(message, body, settings)
      headers = message.headers
      scheme = headers.fetch("x-forwarded-proto", "")
      @method = message.method.upcase
      @scheme = scheme.empty? ? "http" : scheme
      @host, @port = authority(headers.fetch("host", ""))
      @path, mark, @query_string = origin_form(message.target).partition("?")
      @query = parse_query(@query_string)
      @headers = function_headers(message, settings)
      port = @port == default_port ? "" : ":#{@port}"
      @url = "#{@scheme}://#{@host}#{port}#{@path}#{mark unless @query_string.empty?}#{@query_string}"
      @body_binary = body
    end

    def body_text
      @body_binary.dup.force_encoding("UTF-8")
    end

    def body_json
      require "json"
      JSON.parse(body_text)
    end

    def body
      is_json = @headers.fetch("content-type", "text/plain").downcase.start_with?("application/json")
      return body_text unless is_json

      @body_binary.empty? ? {} : body_json
    end

    # The old name of `body_text`.
    alias body_raw body_text

    private

    # `/path?query` also where a proxy sent the absolute form.
    def origin_form(target)
      return target if target.start_with?("/") || !target.include?("://")

      slash = target.index("/", target.index("://") + 3)
      slash ? target[slash..] : "/"
    end

    def default_port
      @scheme == "https" ? 443 : 80
    end

    def authority(header)
      colon = header.index(":", header.start_with?("[") ? header.index("]").to_i : 0)
      return [header, default_port] if colon.nil?

      port = header[colon + 1, 9]
      [header[0, colon], port.match?(/\A[0-9]+\z/) ? port.to_i : default_port]
    end

    # Raw text, split at `&` and at the first `=`; the last of equal keys wins.
    def parse_query(text)
      text.split("&").each_with_object({}) do |item, query|
        key, _, value = item.partition("=")
        query[key] = value unless key.empty?
      end
    end

    # Without the runtime's own headers and the caller's own credential, below the enforced ones.
    def function_headers(message, settings)
      headers = message.headers.reject { |name, _| name.start_with?(CONTROL) }
      own = settings.own_credential
      if own && message.authorizations.first == own
        client = message.authorizations.find { |value| value != own }
        client ? headers["authorization"] = client : headers.delete("authorization")
      end
      headers.merge(settings.enforced_headers)
    end
  end

  # Takes the same time wherever the texts differ.
  def self.equal_secret?(given, secret)
    difference = given.bytesize ^ secret.bytesize
    secret.each_byte.with_index { |byte, i| difference |= byte ^ (given.getbyte(i) || 0) }
    difference.zero?
  end
end
