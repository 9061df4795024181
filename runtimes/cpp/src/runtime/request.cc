#include "request.h"

#include "json.h"

#include <algorithm>
#include <charconv>
#include <tuple>

namespace openruntimes {

namespace {

/// `/path?query` also where a proxy sent the absolute form.
std::string originForm(const std::string& target) {
    const auto scheme = target.find("://");
    if (target.starts_with('/') || scheme == std::string::npos) {
        return target;
    }
    const auto path = target.find('/', scheme + 3);
    return path == std::string::npos ? "/" : target.substr(path);
}

std::pair<std::string, int> authority(std::string_view header, int defaultPort) {
    const auto bracket = header.starts_with('[') ? header.find(']') : 0;
    const auto colon = header.find(':', bracket == std::string_view::npos ? 0 : bracket);
    if (colon == std::string_view::npos) {
        return {std::string(header), defaultPort};
    }
    std::uint16_t port = 0;
    const auto text = header.substr(colon + 1);
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), port);
    const bool isNumber = error == std::errc() && end == text.data() + text.size();
    return {std::string(header.substr(0, colon)), isNumber ? port : defaultPort};
}

/// Raw text, split at `&` and at the first `=`; the last of equal keys wins.
Json::Value parseQuery(std::string_view text) {
    Json::Value query = Json::objectValue;
    while (!text.empty()) {
        const auto item = text.substr(0, text.find('&'));
        text.remove_prefix(std::min(item.size() + 1, text.size()));
        const auto equals = std::min(item.find('='), item.size());
        if (equals > 0) {
            const auto value = item.substr(std::min(equals + 1, item.size()));
            query[std::string(item.substr(0, equals))] = std::string(value);
        }
    }
    return query;
}

/// Leaves out the runtime's own headers and the caller's own credential; the enforced ones win.
Json::Value functionHeaders(const Message& message, const Settings& settings) {
    Json::Value headers = Json::objectValue;
    for (const auto& [name, value] : message.headers) {
        if (!name.starts_with(control) && name != "authorization") {
            headers[name] = value;
        }
    }
    for (const auto& credential : message.authorizations) {
        if (credential != settings.ownCredential && !headers.isMember("authorization")) {
            headers["authorization"] = credential;
        }
    }
    for (const auto& [name, value] : settings.enforcedHeaders) {
        headers[name] = value;
    }
    return headers;
}

}

runtime::RuntimeRequest newRequest(const Message& message, Bytes body, const Settings& settings) {
    runtime::RuntimeRequest request;
    request.method = message.method;
    for (char& letter : request.method) {
        letter = letter >= 'a' && letter <= 'z' ? static_cast<char>(letter - ('a' - 'A')) : letter;
    }
    const bool isForwarded = message.headers.contains("x-forwarded-proto");
    request.scheme = isForwarded ? message.header("x-forwarded-proto") : "http";
    const int defaultPort = request.scheme == "https" ? 443 : 80;
    std::tie(request.host, request.port) = authority(message.header("host"), defaultPort);
    const auto target = originForm(message.target);
    const auto mark = std::min(target.find('?'), target.size());
    request.path = target.substr(0, mark);
    request.queryString = target.substr(std::min(mark + 1, target.size()));
    request.query = parseQuery(request.queryString);
    request.url = request.scheme + "://" + request.host;
    if (request.port != defaultPort) {
        request.url += ":" + std::to_string(request.port);
    }
    request.url += request.path;
    if (!request.queryString.empty()) {
        request.url += "?" + request.queryString;
    }
    request.headers = functionHeaders(message, settings);

    request.bodyText.assign(reinterpret_cast<const char*>(body.data()), body.size());
    request.bodyRaw = request.bodyText;
    request.bodyBinary = std::move(body);
    request.bodyJson = parseJson(request.bodyText).value_or(Json::Value());
    if (!toLower(message.header("content-type")).starts_with("application/json")) {
        request.body = request.bodyText;
    } else {
        request.body = request.bodyJson.isNull() ? Json::Value(Json::objectValue) : request.bodyJson;
    }
    return request;
}

}
