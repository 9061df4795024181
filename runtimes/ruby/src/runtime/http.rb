# frozen_string_literal: true

# HTTP/1.1 on one connection: heads and bodies in, answers out. Strict where two readers could disagree.

module Runtime
  HEAD_LIMIT = 128 * 1024
  BODY_LIMIT = 20 * 1024 * 1024
  # What a caller may go on sending after an early answer until its connection is cut.
  DISCARD_LIMIT = 64 * 1024 * 1024
  READ_SIZE = 256 * 1024
  # How long a thread stays with a connection for its next request, and with one that stalls in the middle.
  LINGER_S = 0.1
  STALL_S = 60
  REASONS = {
    200 => "OK", 204 => "No Content", 301 => "Moved Permanently", 302 => "Found", 304 => "Not Modified", 400 => "Bad Request",
    401 => "Unauthorized", 404 => "Not Found", 413 => "Content Too Large", 500 => "Internal Server Error",
    503 => "Service Unavailable"
  }.freeze
  TOKEN = /\A[!#$%&'*+.^_`|~0-9A-Za-z-]+\z/
  SINGLE = %w[host content-type authorization].freeze

  # A message that cannot be understood: `status` is the answer, after which the connection ends.
  class HttpError < StandardError
    attr_reader :status

    def initialize(status)
      super(status.to_s)
      @status = status
    end
  end

  # The body is beyond the limit; nothing of it is kept.
  class BodyTooLarge < StandardError; end

  # The other side has gone, or stalls.
  class Closed < StandardError; end

  # A request's head. Header names are lower-cased; repeats are joined, but of `authorization`, which are all kept.
  Message = Struct.new(:method, :target, :headers, :authorizations, :length, :is_chunked, :keeps_alive, :is_read) do
    def invited?
      headers.fetch("expect", "").casecmp?("100-continue")
    end
  end

  # One accepted socket.
  class Connection
    attr_reader :socket

    def initialize(socket)
      @socket = socket
      @buffer = +"".b
    end

    def close
      @socket.close
    end

    # Lets `handle` answer request after request. True: idle, still open.
    def serve
      loop do
        message = read_head or return true
        yield message, self
        # The rest of the body is read first, so that the caller comes to read the answer.
        break unless !@socket.closed? && (message.is_read || discard_body(message)) && message.keeps_alive
      end
      close
      false
    rescue HttpError => error
      transmit(Runtime.encode_head(error.status, [["content-length", "0"], ["connection", "close"]]))
      close
    rescue Closed, SystemCallError, IOError
      close
    end

    # The whole body; BodyTooLarge as soon as that is known.
    def read_body(message)
      if message.is_read
        body = "".b
      else
        raise BodyTooLarge if message.length > BODY_LIMIT

        transmit("HTTP/1.1 100 Continue\r\n\r\n") if message.invited?
        body = message.is_chunked ? read_chunked(message, BODY_LIMIT) : read_exactly(message.length)
      end
      message.is_read = true
      body
    end

    def transmit(data)
      @socket.write(data)
    rescue SystemCallError, IOError
      # The caller has gone; the rest of this connection's life is short.
      close
    end

    private

    # The next request's head; nil where none begins for a while.
    def read_head
      while (head_end = @buffer.index("\r\n\r\n")).nil?
        raise HttpError, 431 if @buffer.bytesize > HEAD_LIMIT

        chunk = receive(@buffer.empty? ? LINGER_S : STALL_S)
        return nil if chunk.nil? && @buffer.empty?
        raise Closed if chunk.nil?

        @buffer << chunk
        # RFC 9112, 2.2: an empty line before a request line is skipped.
        @buffer.slice!(0, 2) if @buffer.start_with?("\r\n")
      end
      head = @buffer.slice!(0, head_end + 4)
      Runtime.parse_head(head[0, head_end])
    end

    # Some more bytes; nil where none come for so long.
    def receive(seconds)
      loop do
        chunk = @socket.read_nonblock(READ_SIZE, exception: false)
        raise Closed if chunk.nil?
        return chunk if chunk != :wait_readable
        return nil unless @socket.wait_readable(seconds)
      end
    end

    def receive_more
      @buffer << (receive(STALL_S) or raise Closed)
    end

    def read_exactly(length)
      receive_more while @buffer.bytesize < length
      @buffer.slice!(0, length)
    end

    def skip(length)
      loop do
        length -= @buffer.slice!(0, length).bytesize
        return if length.zero?

        receive_more
      end
    end

    def read_line
      while (line_end = @buffer.index("\r\n")).nil?
        raise HttpError, 431 if @buffer.bytesize > HEAD_LIMIT

        receive_more
      end
      @buffer.slice!(0, line_end + 2)[0, line_end]
    end

    # Reads on to the next request; false where that is too far. A caller that waits to be invited sends nothing.
    def discard_body(message)
      return false if message.invited? || message.length > DISCARD_LIMIT

      message.is_chunked ? read_chunked(message, 0) : skip(message.length)
      true
    rescue BodyTooLarge
      message.is_read
    end

    # The body; what lies beyond `limit` is read and thrown away, up to a limit of its own.
    def read_chunked(message, limit)
      body = +"".b
      total = 0
      while (size = read_chunk_size).positive?
        total += size
        if total <= limit
          body << read_exactly(size)
        elsif total <= DISCARD_LIMIT
          body.clear
          skip(size)
        else
          message.keeps_alive = false
          raise BodyTooLarge
        end
        raise HttpError, 400 unless read_line.empty?
      end
      nil until read_line.empty?
      message.is_read = true
      raise BodyTooLarge if total > limit

      body
    end

    def read_chunk_size
      text = read_line.split(";", 2).first.to_s.strip
      raise HttpError, 400 unless text.match?(/\A[0-9a-fA-F]{1,8}\z/)

      text.to_i(16)
    end
  end

  module_function

  # `headers` is a list of pairs. Raises ArgumentError for what cannot be sent.
  def encode_head(status, headers)
    head = +"HTTP/1.1 #{status} #{REASONS[status]}\r\n".b
    headers.each do |name, value|
      raise ArgumentError, "Invalid value of header #{name}." if value.b.match?(/[\r\n\0]/n)
      raise ArgumentError, "Invalid header name: #{name.inspect}." unless name.b.match?(TOKEN)

      head << name.b << ": " << value.b << "\r\n"
    end
    head << "\r\n"
  end

  def parse_head(head)
    request_line, *lines = head.split("\r\n", -1)
    words = request_line.to_s.split(" ", -1)
    is_understood = words.size == 3 && words[2].match?(%r{\AHTTP/1\.[01]\z}) && !words[1].empty? && words[0].match?(TOKEN)
    raise HttpError, 400 unless is_understood

    method, target, version = words.map { |word| word.force_encoding("UTF-8") }
    message = Message.new(method, target, {}, [])
    lines.each { |line| add_header(message, line) }
    frame(message, version)
    message
  end

  def add_header(message, line)
    name, value = line.split(":", 2)
    raise HttpError, 400 unless value && name.match?(TOKEN)

    headers = message.headers
    name = name.downcase.force_encoding("UTF-8")
    value = value.gsub(/\A[ \t]+|[ \t]+\z/, "").force_encoding("UTF-8")
    message.authorizations << value if name == "authorization"
    if !headers.key?(name)
      headers[name] = value
    elsif name == "content-length"
      raise HttpError, 400 if value != headers[name]
    elsif !SINGLE.include?(name)
      headers[name] += (name == "cookie" ? "; " : ", ") + value
    end
  end

  # Where the body ends, and whether another request may follow.
  def frame(message, version)
    headers = message.headers
    length = headers.fetch("content-length", "0")
    raise HttpError, 400 unless length.match?(/\A[0-9]{1,18}\z/)

    message.length = length.to_i
    coding = headers["transfer-encoding"]
    message.is_chunked = !coding.nil?
    is_bad = coding && (!coding.casecmp?("chunked") || headers.key?("content-length") || version == "HTTP/1.0")
    raise HttpError, 400 if is_bad

    options = headers.fetch("connection", "").downcase
    message.keeps_alive = !options.include?("close") && (version == "HTTP/1.1" || options.include?("keep-alive"))
    message.is_read = message.length.zero? && !message.is_chunked
  end
end
