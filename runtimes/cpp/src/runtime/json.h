// Values as JSON text and back.
#pragma once

#include <json/json.h>
#include <optional>
#include <string>
#include <string_view>

namespace openruntimes {

/// Without spaces between tokens.
std::string writeJson(const Json::Value& value);

/// Nothing where the text is no JSON.
std::optional<Json::Value> parseJson(std::string_view text);

}
