import Glibc

/// Runs `body` on a thread of its own; false where there can be none.
@discardableResult
func startThread(_ body: @escaping () -> Void) -> Bool {
    let box = Unmanaged.passRetained(Box(body))
    var thread = pthread_t()
    let failed = pthread_create(&thread, nil, { raw in
        Unmanaged<Box>.fromOpaque(raw!).takeRetainedValue().body()
        return nil
    }, box.toOpaque())
    if failed != 0 {
        box.release()
        return false
    }
    pthread_detach(thread)
    return true
}

private final class Box {
    let body: () -> Void

    init(_ body: @escaping () -> Void) {
        self.body = body
    }
}

/// A thread of the server as the executor of a function's task: the function runs on the thread that read its request,
/// whatever it awaits, so that one that blocks holds up nobody else, and what it prints can be told from what others do.
final class ThreadExecutor: TaskExecutor, @unchecked Sendable {
    private var jobs: [UnownedJob] = []
    private var lock = pthread_mutex_t()
    private var changed = pthread_cond_t()
    private var isOver = false

    init() {
        pthread_mutex_init(&lock, nil)
        pthread_cond_init(&changed, nil)
    }

    deinit {
        pthread_cond_destroy(&changed)
        pthread_mutex_destroy(&lock)
    }

    func enqueue(_ job: consuming ExecutorJob) {
        let job = UnownedJob(job)
        pthread_mutex_lock(&lock)
        jobs.append(job)
        pthread_cond_signal(&changed)
        pthread_mutex_unlock(&lock)
    }

    /// Runs `body` to its end on the calling thread.
    func run(_ body: @escaping @Sendable () async -> Void) {
        isOver = false
        Task(executorPreference: self) {
            await body()
            self.isOver = true
        }
        while !isOver || !jobs.isEmpty {
            next().runSynchronously(on: asUnownedTaskExecutor())
        }
    }

    private func next() -> UnownedJob {
        pthread_mutex_lock(&lock)
        defer { pthread_mutex_unlock(&lock) }
        while jobs.isEmpty { pthread_cond_wait(&changed, &lock) }
        return jobs.removeFirst()
    }
}
