# frozen_string_literal: true

# What a function prints goes to the log of the execution it was printed in.

module Runtime
  # Stands for `$stdout` or `$stderr`; outside an execution it is that stream.
  class Captured
    # The log of the execution that the running code belongs to. Threads and fibers that it starts inherit it.
    def self.current
      Fiber[:open_runtimes_logger]
    end

    def self.current=(logger)
      Fiber[:open_runtimes_logger] = logger
    end

    def initialize(stream)
      @stream = stream
    end

    def write(*texts)
      logger = Captured.current
      return @stream.write(*texts) if logger.nil?

      texts.sum do |text|
        logger.native(text.to_s)
        text.to_s.bytesize
      end
    end

    def <<(text)
      write(text)
      self
    end

    def print(*texts)
      write(*texts)
      nil
    end

    def printf(*arguments)
      write(Kernel.format(*arguments)) unless arguments.empty?
    end

    def puts(*values)
      write(Captured.lines(values))
      nil
    end

    # As IO#puts writes them.
    def self.lines(values)
      return "\n" if values.empty?

      values.map { |value| value.is_a?(Array) ? (value.empty? ? "" : lines(value)) : value.to_s }
            .map { |text| text.end_with?("\n") ? text : "#{text}\n" }.join
    end

    def p(*values)
      values.each { |value| puts(value.inspect) }
    end

    def flush
      self
    end

    def respond_to_missing?(name, include_all = false)
      @stream.respond_to?(name, include_all)
    end

    def method_missing(...)
      @stream.public_send(...)
    end
  end

  # Redirects both streams, for good; lines leave at once, since a pipe reads them.
  def self.capture_output
    [$stdout, $stderr].each { |stream| stream.sync = true }
    $stdout = Captured.new($stdout)
    $stderr = Captured.new($stderr)
  end
end
