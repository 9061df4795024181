# frozen_string_literal: true

# `context.res`, and how what a function returns becomes status, headers and bytes.

module Runtime
  # The framing of the message is the server's.
  FRAMING = %w[content-length transfer-encoding connection keep-alive upgrade trailer].freeze

  # Each method makes an output and sends nothing: the one that is returned counts.
  class FunctionResponse
    def text(body, status_code = 200, headers = {})
      binary(body.to_s, status_code, headers)
    end

    def json(object, status_code = 200, headers = {})
      others = headers.reject { |name, _| name.to_s.casecmp?("content-type") }
      binary(Runtime.to_json(object), status_code, { **others, "content-type" => "application/json" })
    end

    def binary(bytes, status_code = 200, headers = {})
      { body: bytes, statusCode: status_code, headers: headers }
    end

    def empty
      binary("", 204)
    end

    def redirect(url, status_code = 301, headers = {})
      others = headers.reject { |name, _| name.to_s.casecmp?("location") }
      binary("", status_code, { **others, "location" => url })
    end

    # The old form of `text` and `binary`.
    def send(body, status_code = 200, headers = {})
      binary(body, status_code, headers)
    end
  end

  module_function

  # `[status, headers, body]` ready to send; headers are pairs.
  def render(output)
    raise TypeError, "The function must return an output of context.res, not #{output.class}." unless output.respond_to?(:to_h)

    output = output.to_h.transform_keys(&:to_s)
    status = Integer(output["statusCode"] || 200)
    raise RangeError, "Invalid status code: #{status}" unless status.between?(200, 999)

    [status, render_headers(output["headers"] || {}), to_bytes(output["body"])]
  end

  def render_headers(given)
    headers = []
    content_type = nil
    given.each do |name, value|
      name = name.to_s.downcase
      next if name.start_with?(CONTROL) || FRAMING.include?(name) || value.nil?

      if name == "content-type"
        content_type = value.to_s
      else
        Array(value).each { |one| headers << [name, one.to_s] }
      end
    end
    headers << ["content-type", with_charset(content_type)]
  end

  def with_charset(value)
    return "text/plain; charset=utf-8" if value.nil?

    lower = value.downcase
    lower.start_with?("multipart/") || lower.include?("charset=") ? value : "#{lower}; charset=utf-8"
  end

  # Bytes of any body a function may give.
  def to_bytes(body)
    case body
    when String then body.b
    when Hash then to_json(body).b
    when Array then body.all? { |byte| byte.is_a?(Integer) && byte.between?(0, 255) } ? body.pack("C*") : to_json(body).b
    else body.respond_to?(:read) ? body.read.b : body.to_s.b
    end
  end

  def to_json(value)
    require "json"
    JSON.generate(value)
  end
end
