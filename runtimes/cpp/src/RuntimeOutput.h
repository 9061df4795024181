// What a function returns.
#pragma once

#include <cstddef>
#include <json/json.h>
#include <vector>

namespace runtime {

/// A response. A header with several lines, as `set-cookie`, is an array, or a text with line ends between them.
struct RuntimeOutput {
    std::vector<std::byte> body;
    int statusCode = 200;
    Json::Value headers = Json::objectValue;
};

}
