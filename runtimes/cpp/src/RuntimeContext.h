// What a function is called with.
#pragma once

#include "RuntimeRequest.h"
#include "RuntimeResponse.h"

#include <array>
#include <charconv>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>

namespace runtime {

/// Takes what a function logs; the server has one for each execution.
class Logger {
public:
    virtual ~Logger() = default;
    virtual void log(const std::string& text) = 0;
    virtual void error(const std::string& text) = 0;
};

/// A value as a record: texts and numbers as they are, others as JSON.
std::string toText(const Json::Value& value);

/// One execution, as its function sees it.
class RuntimeContext {
public:
    RuntimeRequest req;
    RuntimeResponse res;

    RuntimeContext(RuntimeRequest request, std::shared_ptr<Logger> logger)
        : req(std::move(request)), logger_(std::move(logger)) {}

    /// Writes one record, the texts of the messages joined by spaces.
    template <typename... Messages> void log(const Messages&... messages) const {
        logger_->log(join(messages...));
    }

    /// Writes one record to the error log.
    template <typename... Messages> void error(const Messages&... messages) const {
        logger_->error(join(messages...));
    }

private:
    std::shared_ptr<Logger> logger_;

    template <typename First, typename... Others>
    static std::string join(const First& first, const Others&... others) {
        std::string text = textOf(first);
        ((text += " ", text += textOf(others)), ...);
        return text;
    }

    template <typename Message> static std::string textOf(const Message& message) {
        if constexpr (std::is_convertible_v<const Message&, std::string>) {
            return message;
        } else if constexpr (std::is_arithmetic_v<Message> && !std::is_same_v<Message, bool>) {
            std::array<char, 64> digits;
            return {digits.data(), std::to_chars(digits.data(), digits.data() + digits.size(), message).ptr};
        } else {
            return toText(Json::Value(message));
        }
    }
};

}
