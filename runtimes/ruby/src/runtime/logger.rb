# frozen_string_literal: true

# The two log files of an execution. They are written when there is something to write, at the latest before the response
# leaves, so that a silent function costs no file; failing to write them never fails the execution.

module Runtime
  RECORD_LIMIT = 8_000
  TRUNCATED = "... Log truncated due to size limit (#{RECORD_LIMIT} characters)"
  NATIVE_NOTICE = "Native logs detected. Use context.log() or context.error() for better experience.\n"
  BUFFER_LIMIT = 64 * 1024
  # Callers read 5 MiB of a file and say so when there is more: what lies further back would only fill the disk.
  FILE_LIMIT = 5 * 1024 * 1024 + 64 * 1024
  LOG_ID = /\A[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}\z/

  # Buffered text of one log file.
  class LogFile
    def initialize(path)
      @path = path
      @buffer = +"".b
      @room = FILE_LIMIT
    end

    def write(text)
      return unless @room.positive?

      @buffer << text.byteslice(0, @room).b
      flush if @buffer.bytesize > BUFFER_LIMIT
    end

    def flush
      return if @buffer.empty?

      @room -= @buffer.bytesize
      File.open(@path, "ab") { |file| file.syswrite(@buffer) }
      @buffer.clear
    rescue SystemCallError
      @room = 0
    end
  end

  # The log of one execution; after `close` nothing is written any more. An empty id means that its caller wants none.
  class Logger
    attr_reader :id

    def initialize(directory, id)
      @id = id
      @is_open = !id.empty?
      @ends_line = true
      @lock = Mutex.new
      @logs = LogFile.new("#{directory}/#{id}_logs.log")
      @errors = LogFile.new("#{directory}/#{id}_errors.log")
    end

    def log(*messages)
      write do
        end_line
        @logs.write(Runtime.record(messages))
      end
    end

    def error(*messages)
      write { @errors.write(Runtime.record(messages)) }
    end

    # What the function printed by other means than its context.
    def native(text)
      return if text.empty?

      write do
        @logs.write(NATIVE_NOTICE) unless @is_native
        @logs.write(text)
        @is_native = true
        @ends_line = text.end_with?("\n")
      end
    end

    def flush
      write do
        end_line
        @logs.flush
        @errors.flush
      end
    end

    def close
      flush
      @is_open = false
    end

    private

    def write(&block)
      # An execution that has been ended holds no lock any more: its thread let go of it.
      @lock.synchronize(&block) if @is_open
    end

    def end_line
      @logs.write("\n") unless @ends_line
      @ends_line = true
    end
  end

  module_function

  # The id asked for where it is a safe file name, else one of the runtime's own; empty where logging is off.
  def log_id(headers, is_development)
    return "" unless ["", "enabled"].include?(headers.fetch("x-open-runtimes-logging", ""))

    wanted = headers.fetch("x-open-runtimes-log-id", "")
    return wanted if wanted.match?(LOG_ID)

    is_development && wanted.empty? ? "dev" : generate_id
  end

  # Seconds (8 hex digits), fraction of a second (5), random (7).
  def generate_id
    now = Process.clock_gettime(Process::CLOCK_REALTIME, :microsecond)
    format("%08x%05x%07x", now / 1_000_000, now % 1_000_000, Random.rand(0x10000000))
  end

  def record(messages)
    text = messages.map { |message| to_text(message) }.join(" ")
    text = text[0, RECORD_LIMIT] + TRUNCATED if text.length > RECORD_LIMIT
    "#{text}\n"
  end

  def to_text(value)
    case value
    when String then value.dup.force_encoding("UTF-8").scrub
    when Exception then describe(value)
    when Hash, Array then to_json(value)
    else value.respond_to?(:to_set) && value.respond_to?(:to_a) ? to_json(value.to_a) : value.to_s
    end
  rescue StandardError
    value.class.name.to_s
  end

  # The stack, which names the message and the file; and what it was caused by.
  def describe(error)
    error.full_message(highlight: false, order: :top).chomp.force_encoding("UTF-8").scrub
  end
end
