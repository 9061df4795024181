#include "json.h"

#include "../RuntimeContext.h"

#include <memory>

namespace openruntimes {

std::string writeJson(const Json::Value& value) {
    static const auto& builder = *[] {
        auto* settings = new Json::StreamWriterBuilder;
        (*settings)["indentation"] = "";
        (*settings)["emitUTF8"] = true;
        return settings;
    }();
    return Json::writeString(builder, value);
}

std::optional<Json::Value> parseJson(std::string_view text) {
    Json::CharReaderBuilder builder;
    Json::CharReaderBuilder::strictMode(&builder.settings_);
    builder["strictRoot"] = false;
    builder["rejectDupKeys"] = false;
    const std::unique_ptr<Json::CharReader> reader(builder.newCharReader());
    Json::Value value;
    try {
        if (reader->parse(text.data(), text.data() + text.size(), &value, nullptr)) {
            return value;
        }
    } catch (const Json::Exception&) {
        // It is nested too deeply.
    }
    return std::nullopt;
}

}

namespace runtime {

std::string toText(const Json::Value& value) {
    return value.isString() ? value.asString() : openruntimes::writeJson(value);
}

RuntimeOutput RuntimeResponse::json(const Json::Value& value, int statusCode, Json::Value headers) const {
    headers["content-type"] = "application/json";
    return text(openruntimes::writeJson(value), statusCode, std::move(headers));
}

}
