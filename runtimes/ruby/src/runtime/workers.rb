# frozen_string_literal: true

# Threads that serve connections: started when they are needed, kept for the next one.

module Runtime
  MAX_WORKERS = 256
  # How long a thread waits for another connection before it ends.
  IDLE_S = 30

  # Calls `attend` with each submitted connection on a thread; more than MAX_WORKERS wait.
  class Workers
    def initialize(&attend)
      @attend = attend
      @queue = Queue.new
      @lock = Mutex.new
      @n_workers = 0
    end

    def submit(connection)
      @queue << connection
      start if @queue.size > @queue.num_waiting && @n_workers < MAX_WORKERS
    end

    private

    def start
      Thread.new { run }
      @lock.synchronize { @n_workers += 1 }
    rescue ThreadError
      # The sandbox's limit of threads: those that run will come to it.
    end

    def run
      while (connection = @queue.pop(timeout: IDLE_S))
        begin
          @attend.call(connection)
        rescue StandardError => error
          connection.close
          warn error.full_message(highlight: false)
        end
      end
    ensure
      @lock.synchronize { @n_workers -= 1 }
    end
  end
end
