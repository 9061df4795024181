// The HTTP request as the function sees it.
#pragma once

#include <any>
#include <cstddef>
#include <json/json.h>
#include <string>
#include <vector>

namespace runtime {

/// One request. Header names are lower-cased; path and query are as they came.
struct RuntimeRequest {
    std::string method;
    std::string scheme;
    std::string host;
    int port = 80;
    std::string path;
    std::string queryString;
    Json::Value query = Json::objectValue;
    std::string url;
    Json::Value headers = Json::objectValue;
    std::vector<std::byte> bodyBinary;
    std::string bodyText;
    /// The old name of bodyText.
    std::string bodyRaw;
    /// The body parsed, whatever its content type; null where it is no JSON.
    Json::Value bodyJson;
    /// A Json::Value where the content type says so, an empty object where there is none to parse; else a std::string.
    std::any body;
};

}
