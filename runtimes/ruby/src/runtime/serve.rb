# frozen_string_literal: true

# Owns the listening socket, the signals and the life of the process; what a request means is `execution`'s matter.

require "io/wait"
require "socket"
require_relative "execution"
require_relative "loader"
require_relative "native"
require_relative "workers"

module Runtime
  BACKLOG = 4096
  # How long a stopping server waits for executions that are under way.
  DRAIN_S = 5.0

  # Binds, announces readiness, loads the function, and serves until a signal.
  def self.serve(settings)
    # As PID 1 a signal without a handler is ignored; until there is something to finish, one ends the process at once.
    %w[TERM INT].each { |signal| trap(signal) { exit!(0) } }
    listener = bind(settings.port)
    $stdout.syswrite("HTTP server successfully started!\n")
    note_startup(settings)
    capture_output
    executions = Executions.new(settings)
    executions.function = load(settings.code_dir, settings.entrypoint)
    Server.new(listener, executions).run
  rescue SystemCallError => error
    abort("HTTP server failed: #{error.message}")
  end

  # All interfaces, both families where there are both.
  def self.bind(port)
    listener = Socket.new(:INET6, :STREAM)
    listener.setsockopt(:IPV6, :V6ONLY, 0)
    listen(listener, Addrinfo.tcp("::", port))
  rescue Errno::EAFNOSUPPORT, Errno::EADDRNOTAVAIL
    listen(Socket.new(:INET, :STREAM), Addrinfo.tcp("0.0.0.0", port))
  end

  def self.listen(listener, address)
    listener.setsockopt(:SOCKET, :REUSEADDR, true)
    # Accepted sockets inherit it: an answer leaves at once.
    listener.setsockopt(:TCP, :NODELAY, true)
    listener.bind(address)
    listener.listen(BACKLOG)
    listener
  end

  # The `startup` metric, where the start lifecycle told when it began.
  def self.note_startup(settings)
    return if settings.startup_began.nil?

    line = format("startup=%.3f\n", Process.clock_gettime(Process::CLOCK_REALTIME) - settings.startup_began)
    File.write(settings.timings_file, line, mode: "a")
  rescue SystemCallError
    # Timings are a help, not a need.
  end

  # The loop of the main thread: accepts, and watches the connections that are idle.
  class Server
    def initialize(listener, executions)
      @listener = listener
      @executions = executions
      @idle = {}.compare_by_identity
      @returned = Queue.new
      # A signal, or a connection that has fallen idle, ends the wait.
      @woken, @wake = IO.pipe
      @workers = Workers.new { |connection| attend(connection) }
    end

    def run
      %w[TERM INT].each { |signal| trap(signal) { stop } }
      until over?
        ready, = IO.select([@woken, @listener, *@idle.keys], nil, nil, @drain_until ? 0.01 : nil)
        ready&.each { |io| react(io) }
        take_back
      end
      @executions.flush
      exit!(0)
    end

    private

    def react(io)
      case io
      when @woken then @woken.read_nonblock(4096, exception: false)
      when @listener then accept
      else @workers.submit(@idle.delete(io))
      end
    end

    # Connections that have fallen idle.
    def take_back
      until @returned.empty?
        connection = @returned.pop
        @idle[connection.socket] = connection
      end
    end

    def accept
      # Many at a time, but not for ever: an idle connection may have spoken meanwhile.
      64.times do
        socket, = @listener.accept_nonblock(exception: false)
        return if socket == :wait_readable || socket.nil?

        @workers.submit(Connection.new(socket))
      end
    rescue SystemCallError
      # Out of descriptors or memory: let others finish.
      sleep(0.01)
    end

    # Serves one connection, on a worker's thread, until it falls idle.
    def attend(connection)
      return unless connection.serve { |message, speaker| @executions.handle(message, speaker) }

      @returned << connection
      wake
    end

    def wake
      @wake.write_nonblock(".", exception: false)
    end

    def stop
      @drain_until ||= now + DRAIN_S
      wake
    end

    def over?
      @drain_until && (!@executions.active? || now > @drain_until)
    end

    def now
      Process.clock_gettime(Process::CLOCK_MONOTONIC)
    end
  end
end
