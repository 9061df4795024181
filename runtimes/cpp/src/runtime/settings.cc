#include "settings.h"

#include "http.h"
#include "json.h"

#include <cstdlib>
#include <string_view>

namespace openruntimes {

namespace {

std::string variable(const char* name) {
    const char* value = std::getenv(name);
    return value == nullptr ? "" : value;
}

/// RFC 4648, section 4.
std::string base64(std::string_view bytes) {
    constexpr std::string_view digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    std::string text;
    for (std::size_t start = 0; start < bytes.size(); start += 3) {
        const auto group = bytes.substr(start, 3);
        std::uint32_t bits = 0;
        for (std::size_t i = 0; i < 3; i++) {
            bits = bits << 8 | (i < group.size() ? static_cast<unsigned char>(group[i]) : 0);
        }
        for (std::size_t i = 0; i < 4; i++) {
            text += i > group.size() ? '=' : digits[bits >> (18 - 6 * i) & 63];
        }
    }
    return text;
}

/// Lower-cased names with text values; anything that is no JSON object means none.
Headers parseEnforcedHeaders(std::string_view text) {
    Headers headers;
    const auto parsed = parseJson(text);
    if (parsed && parsed->isObject()) {
        for (const auto& name : parsed->getMemberNames()) {
            const auto& value = (*parsed)[name];
            headers[toLower(name)] = value.isString() ? value.asString() : writeJson(value);
        }
    }
    return headers;
}

}

Settings Settings::fromEnvironment() {
    Settings settings;
    const auto began = variable("OPEN_RUNTIMES_STARTUP_BEGAN");
    char* end = nullptr;
    const double seconds = std::strtod(began.c_str(), &end);
    if (end != began.c_str() && *end == '\0') {
        settings.startupBegan = seconds;
    }
    settings.entrypoint = variable("OPEN_RUNTIMES_ENTRYPOINT");
    settings.secret = variable("OPEN_RUNTIMES_SECRET");
    settings.ownCredential = "Basic " + base64("opr:" + settings.secret);
    settings.isDevelopment = variable("OPEN_RUNTIMES_ENV") == "development";
    settings.enforcedHeaders = parseEnforcedHeaders(variable("OPEN_RUNTIMES_HEADERS"));
    return settings;
}

}
