// One request from its head to its answer, in the protocol's order: special paths, authentication, timeout, log, body,
// function, response.
#pragma once

#include "../RuntimeContext.h"
#include "http.h"
#include "logger.h"
#include "native.h"
#include "settings.h"

#include <atomic>
#include <chrono>
#include <memory>
#include <optional>

namespace openruntimes {

/// The `main` of a function's Handler.
using Function = runtime::RuntimeOutput (*)(runtime::RuntimeContext&);

/// All executions of this process.
class Executions {
public:
    Executions(Settings settings, Function main, Native& native);
    void handle(Connection& connection, Message& message);
    bool areIdle() const { return nActive_ == 0; }

private:
    Settings settings_;
    Function main_;
    Native& native_;
    std::atomic<int> nActive_ = 0;

    using Timeout = std::optional<std::chrono::seconds>;
    Answer execute(Connection& connection, Message& message, const std::shared_ptr<ExecutionLog>& log, Timeout timeout);
    Answer run(runtime::RuntimeRequest request, const std::shared_ptr<ExecutionLog>& log, Timeout timeout);
    Answer call(runtime::RuntimeContext& context, ExecutionLog& log) const;
};

}
