import Glibc

func now() -> timespec {
    var now = timespec()
    clock_gettime(CLOCK_MONOTONIC, &now)
    return now
}

private func isBefore(_ left: timespec, _ right: timespec) -> Bool {
    (left.tv_sec, left.tv_nsec) < (right.tv_sec, right.tv_nsec)
}

/// The executions under way, and when the next one's time is over.
final class Active: @unchecked Sendable {
    private var executions: [ObjectIdentifier: Execution] = [:]
    private var lock = pthread_mutex_t()
    private var changed = pthread_cond_t()
    /// Until when `expired` sleeps. It may be earlier than needed, never later.
    private var alarm: timespec?

    init() {
        pthread_mutex_init(&lock, nil)
        var attributes = pthread_condattr_t()
        pthread_condattr_init(&attributes)
        pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC)
        pthread_cond_init(&changed, &attributes)
    }

    var all: [Execution] { locked { Array(executions.values) } }
    var only: Execution? { locked { executions.count == 1 ? executions.first?.value : nil } }
    var isEmpty: Bool { locked { executions.isEmpty } }

    func insert(_ execution: Execution) {
        locked {
            executions[ObjectIdentifier(execution)] = execution
            guard let deadline = execution.deadline else { return }
            if let alarm, !isBefore(deadline, alarm) { return }
            alarm = deadline
            pthread_cond_signal(&changed)
        }
    }

    func remove(_ execution: Execution) {
        locked { executions[ObjectIdentifier(execution)] = nil }
    }

    /// Waits for executions whose time is over. They are under way no more.
    func expired() -> [Execution] {
        locked {
            while var alarm, isBefore(now(), alarm) { pthread_cond_timedwait(&changed, &lock, &alarm) }
            if alarm == nil { pthread_cond_wait(&changed, &lock) }
            let now = now()
            let late = executions.values.filter { $0.deadline.map { !isBefore(now, $0) } ?? false }
            late.forEach { executions[ObjectIdentifier($0)] = nil }
            alarm = executions.values.compactMap(\.deadline).min(by: isBefore)
            return late
        }
    }

    private func locked<T>(_ act: () -> T) -> T {
        pthread_mutex_lock(&lock)
        defer { pthread_mutex_unlock(&lock) }
        return act()
    }
}
