// What the process prints. `std::cout`, `std::cerr` and `std::clog` go to the log of the execution on whose thread they are
// used. Descriptors 1 and 2 are a pipe that ends here, for what is printed by other means or by other threads: nothing tells
// who has printed, so that it is the execution's where only one is under way, and the process's own otherwise. Nobody finds
// the output of others in a log.
#pragma once

#include "logger.h"

#include <memory>
#include <mutex>
#include <vector>

namespace openruntimes {

class Native {
public:
    /// Redirects all of it, for good. There is one.
    static Native& captureOutput();

    void begin(const std::shared_ptr<ExecutionLog>& log);
    /// Returns when what the execution has printed is in its log.
    void end(const std::shared_ptr<ExecutionLog>& log);
    /// The calling thread is this execution's from here on.
    static void enter(const std::shared_ptr<ExecutionLog>& log);
    /// Saves what executions have logged so far: the process ends.
    void flush();
    /// What the process says when it ends is its own. Makes only calls of signal-safety(7).
    void lastWords() const;

private:
    int reader_ = -1;
    int output_ = -1;
    std::mutex lock_;
    std::vector<std::shared_ptr<ExecutionLog>> active_;

    Native();
    void deliver();
    [[noreturn]] void follow();
};

}
