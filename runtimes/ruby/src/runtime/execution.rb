# frozen_string_literal: true

# One request from its first line to its answer, in the protocol's order:
# special paths, authentication, timeout, log, body, function, response.

require_relative "http"
require_relative "logger"
require_relative "native"
require_relative "request"
require_relative "response"

module Runtime
  MAX_TIMEOUT_S = 2_147_483
  UNAUTHORIZED = 'Unauthorized. Provide correct "x-open-runtimes-secret" header.'
  BAD_TIMEOUT = 'Header "x-open-runtimes-timeout" must be an integer greater than 0.'
  NO_RETURN = "Return statement missing. return context.res.empty() if no response is expected."
  TIMED_OUT = "Execution timed out."
  PLAIN = ["content-type", "text/plain; charset=utf-8"].freeze

  # What a function is called with.
  class Context
    attr_reader :req, :res

    def initialize(req, res, logger)
      @req = req
      @res = res
      @logger = logger
    end

    def log(*messages)
      @logger.log(*messages)
    end

    def error(*messages)
      @logger.error(*messages)
    end
  end

  # All executions of this process.
  class Executions
    attr_writer :function

    def initialize(settings)
      @settings = settings
      @active = {}.compare_by_identity
      @lock = Mutex.new
    end

    def handle(message, connection)
      path = message.target.partition("?").first
      return answer(message, connection, 200, "OK") if path == "/__opr/health"
      return answer(message, connection, 200, timings) if path == "/__opr/timings"

      secret = @settings.secret
      given = message.headers.fetch("x-open-runtimes-secret", "")
      return answer(message, connection, 401, UNAUTHORIZED) unless secret.empty? || Runtime.equal_secret?(given, secret)

      seconds = parse_timeout(message.headers.fetch("x-open-runtimes-timeout", ""))
      return answer(message, connection, 500, BAD_TIMEOUT) if seconds.nil?

      run(Execution.new(@settings, message, connection, seconds))
    end

    def active?
      !@active.empty?
    end

    # Saves what executions have logged so far: the process ends.
    def flush
      @active.keys.each { |execution| execution.logger.flush }
    end

    private

    def run(execution)
      @lock.synchronize { @active[execution] = true }
      execution.run(@function)
    ensure
      @lock.synchronize { @active.delete(execution) }
    end

    def timings
      File.binread(@settings.timings_file)
    rescue SystemCallError
      ""
    end

    # Whole seconds; 0 where none are asked for; nil where the text is no positive integer.
    def parse_timeout(text)
      return 0 if text.empty?

      seconds = text.match?(/\A[0-9]+\z/) ? [text.to_i, MAX_TIMEOUT_S].min : 0
      seconds.positive? ? seconds : nil
    end

    # An answer of the runtime itself, outside any execution.
    def answer(message, connection, status, body)
      head = Runtime.encode_head(status, [PLAIN, ["content-length", body.bytesize.to_s]])
      connection.transmit(message.method == "HEAD" ? head : head + body.b)
    end
  end

  # One execution. The connection's thread waits for the function's, and answers in its place when its time is over.
  class Execution
    attr_reader :logger

    def initialize(settings, message, connection, seconds)
      @settings = settings
      @message = message
      @connection = connection
      @seconds = seconds
      @logger = Logger.new(settings.logs_dir, Runtime.log_id(message.headers, settings.is_development))
    end

    def run(function)
      body = @connection.read_body(@message)
      return fail(503, function.failure) if function.failure

      runner = Thread.new { call(function.main, body) }
      runner.report_on_exception = false
      finished = runner.join(@seconds.zero? ? nil : @seconds)
      runner.kill unless finished
      finished ? respond(*runner.value) : fail(500, TIMED_OUT)
    rescue BodyTooLarge
      fail(413)
    end

    private

    # On a thread of its own, which ends with it or is ended.
    def call(main, body)
      Captured.current = @logger
      context = Context.new(Request.new(@message, body, @settings), FunctionResponse.new, @logger)
      output = main.call(context)
      if output.nil?
        @logger.error(NO_RETURN)
        return [500, [PLAIN], ""]
      end
      rendered = Runtime.render(output)
      # Fails for what cannot be sent, while the error log is still open.
      Runtime.encode_head(rendered[0], rendered[1])
      rendered
    rescue Exception => error # Also `exit`: it would end all other executions.
      @logger.error(error)
      [500, [PLAIN], ""]
    end

    def fail(status, error = nil)
      @logger.error(error) if error
      respond(status, [PLAIN], "")
    end

    def respond(status, headers, body)
      @logger.close
      is_bodiless = [204, 304].include?(status)
      headers = [*headers, ["x-open-runtimes-log-id", @logger.id]]
      headers << ["content-length", body.bytesize.to_s] unless is_bodiless
      headers << ["connection", "close"] unless @message.keeps_alive
      head = Runtime.encode_head(status, headers)
      @connection.transmit(is_bodiless || @message.method == "HEAD" ? head : head + body)
    end
  end
end
