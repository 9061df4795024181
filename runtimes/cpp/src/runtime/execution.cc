#include "execution.h"

#include "request.h"
#include "response.h"

#include <charconv>
#include <cstdio>
#include <cstdlib>
#include <cxxabi.h>
#include <fstream>
#include <future>
#include <iterator>
#include <thread>
#include <typeinfo>

namespace openruntimes {

namespace {

constexpr std::uint64_t maxTimeoutS = 2'147'483;
constexpr std::string_view unauthorized = "Unauthorized. Provide correct \"x-open-runtimes-secret\" header.";
constexpr std::string_view badTimeout = "Header \"x-open-runtimes-timeout\" must be an integer greater than 0.";
constexpr const char* timedOut = "Execution timed out.";

/// Takes as long for every text of the same length.
bool isEqual(std::string_view given, std::string_view secret) {
    if (given.size() != secret.size()) {
        return false;
    }
    volatile unsigned char difference = 0;
    for (std::size_t i = 0; i < given.size(); i++) {
        difference = difference | static_cast<unsigned char>(given[i] ^ secret[i]);
    }
    return difference == 0;
}

/// Whole seconds; 0 where the text is no positive integer.
std::chrono::seconds parseTimeout(std::string_view text) {
    if (text.find_first_not_of("0123456789") != std::string_view::npos) {
        return {};
    }
    std::uint64_t seconds = 0;
    const auto parsed = std::from_chars(text.data(), text.data() + text.size(), seconds);
    // Digits that do not fit are many seconds.
    const bool isFar = parsed.ec == std::errc::result_out_of_range || seconds > maxTimeoutS;
    return std::chrono::seconds(isFar ? maxTimeoutS : seconds);
}

std::string readFile(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
}

/// The name of the type that is being caught.
std::string exceptionType() {
    const auto* type = abi::__cxa_current_exception_type();
    if (type == nullptr) {
        return "exception";
    }
    int status = 0;
    const std::unique_ptr<char, decltype(&std::free)> name(
        abi::__cxa_demangle(type->name(), nullptr, nullptr, &status), &std::free);
    return status == 0 ? name.get() : type->name();
}

}

Executions::Executions(Settings settings, Function main, Native& native)
    : settings_(std::move(settings)), main_(main), native_(native) {}

void Executions::handle(Connection& connection, Message& message) {
    const auto path = message.target.substr(0, message.target.find('?'));
    if (path == "/__opr/health") {
        return connection.answer(message, plain(200, "OK"));
    }
    if (path == "/__opr/timings") {
        return connection.answer(message, plain(200, readFile(settings_.timingsFile)));
    }
    if (!settings_.secret.empty() && !isEqual(message.header("x-open-runtimes-secret"), settings_.secret)) {
        return connection.answer(message, plain(401, unauthorized));
    }
    Timeout timeout;
    if (const auto text = message.header("x-open-runtimes-timeout"); !text.empty()) {
        timeout = parseTimeout(text);
        if (timeout->count() == 0) {
            return connection.answer(message, plain(500, badTimeout));
        }
    }
    struct Active {
        std::atomic<int>& count;
        explicit Active(std::atomic<int>& count) : count(count) { count++; }
        ~Active() { count--; }
    } const active(nActive_);
    const auto log =
        std::make_shared<ExecutionLog>(settings_.logsDir, logId(message.headers, settings_.isDevelopment));
    auto answer = execute(connection, message, log, timeout);
    log->close();
    answer.headers.emplace_back("x-open-runtimes-log-id", log->id);
    connection.answer(message, answer);
}

Answer Executions::execute(Connection& connection, Message& message, const std::shared_ptr<ExecutionLog>& log,
                           Timeout timeout) {
    try {
        auto request = newRequest(message, connection.readBody(message), settings_);
        native_.begin(log);
        auto answer = run(std::move(request), log, timeout);
        native_.end(log);
        return answer;
    } catch (const BodyTooLarge&) {
        return plain(413);
    } catch (const BadMessage& bad) {
        message.keepsAlive = false;
        return plain(bad.status);
    } catch (const std::exception& error) {
        log->error(error.what());
        return plain(500);
    }
}

/// Answers in the function's place when its time is over. A thread cannot be ended: the function's goes on, unheard.
Answer Executions::run(runtime::RuntimeRequest request, const std::shared_ptr<ExecutionLog>& log, Timeout timeout) {
    std::promise<Answer> promise;
    auto finished = promise.get_future();
    try {
        runtime::RuntimeContext context(std::move(request), log);
        std::thread([this, log, context = std::move(context), promise = std::move(promise)]() mutable {
            Native::enter(log);
            promise.set_value(call(context, *log));
        }).detach();
        if (timeout && finished.wait_for(*timeout) == std::future_status::timeout) {
            log->error(timedOut);
            return plain(500);
        }
        return finished.get();
    } catch (const std::future_error&) {
        log->error("The function has ended its thread.");
    } catch (const std::exception& error) {
        log->error(std::string("Cannot start the function: ") + error.what());
    }
    return plain(500);
}

/// Runs the function; what it throws is its error.
Answer Executions::call(runtime::RuntimeContext& context, ExecutionLog& log) const {
    const auto tell = [&](std::string_view reason) {
        log.error(exceptionType() + " in " + settings_.entrypoint + ": " + std::string(reason));
        return plain(500);
    };
    try {
        auto answer = render(main_(context));
        // What has been printed without a line's end.
        std::fflush(stdout);
        return answer;
    } catch (const abi::__forced_unwind&) {
        throw;
    } catch (const std::exception& error) {
        return tell(error.what());
    } catch (const std::string& text) {
        return tell(text);
    } catch (const char* text) {
        return tell(text);
    } catch (...) {
        return tell("no text");
    }
}

}
