// How a function makes its response.
#pragma once

#include "RuntimeOutput.h"

#include <string>
#include <utility>

namespace runtime {

/// Makes responses and sends nothing: the one that is returned counts.
struct RuntimeResponse {
    /// Answers with bytes.
    RuntimeOutput binary(std::vector<std::byte> bytes, int statusCode = 200,
                         Json::Value headers = Json::objectValue) const {
        return {std::move(bytes), statusCode, std::move(headers)};
    }

    /// Answers with a text.
    RuntimeOutput text(const std::string& body, int statusCode = 200,
                       Json::Value headers = Json::objectValue) const {
        const auto* bytes = reinterpret_cast<const std::byte*>(body.data());
        return binary({bytes, bytes + body.size()}, statusCode, std::move(headers));
    }

    /// The old name of text.
    RuntimeOutput send(const std::string& body, int statusCode = 200,
                       Json::Value headers = Json::objectValue) const {
        return text(body, statusCode, std::move(headers));
    }

    /// Answers with a value as JSON.
    RuntimeOutput json(const Json::Value& value, int statusCode = 200,
                       Json::Value headers = Json::objectValue) const;

    /// Answers with status 204 and nothing.
    RuntimeOutput empty() const { return text("", 204); }

    /// Sends the caller elsewhere.
    RuntimeOutput redirect(const std::string& url, int statusCode = 301,
                           Json::Value headers = Json::objectValue) const {
        headers["location"] = url;
        return text("", statusCode, std::move(headers));
    }
};

}
