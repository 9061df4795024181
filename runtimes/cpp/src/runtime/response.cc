#include "response.h"

#include "request.h"

#include <algorithm>
#include <array>
#include <stdexcept>

namespace openruntimes {

namespace {

constexpr std::string_view plainType = "text/plain; charset=utf-8";
/// The framing of the message is the server's.
constexpr std::array<std::string_view, 6> framing = {"content-length", "transfer-encoding", "connection",
                                                     "keep-alive",     "upgrade",           "trailer"};

std::string withCharset(const std::string& value) {
    const auto lower = toLower(value);
    if (lower.starts_with("multipart/") || lower.contains("charset=")) {
        return value;
    }
    return lower + "; charset=utf-8";
}

/// The lines of a header: of an array each, of cookies those of the text.
std::vector<std::string> linesOf(const std::string& name, const Json::Value& value) {
    std::vector<std::string> lines;
    if (value.isArray()) {
        for (const auto& one : value) {
            lines.push_back(one.asString());
        }
        return lines;
    }
    auto text = value.asString();
    for (auto end = text.find('\n'); name == "set-cookie" && end != std::string::npos; end = text.find('\n')) {
        lines.push_back(text.substr(0, end));
        text.erase(0, end + 1);
    }
    lines.push_back(text);
    return lines;
}

}

Answer plain(int status, std::string_view body) {
    const auto* bytes = reinterpret_cast<const std::byte*>(body.data());
    return {status, {{"content-type", std::string(plainType)}}, Bytes(bytes, bytes + body.size())};
}

Answer render(runtime::RuntimeOutput output) {
    if (output.statusCode < 200 || output.statusCode > 999) {
        throw std::invalid_argument("Invalid status code: " + std::to_string(output.statusCode));
    }
    Answer answer{output.statusCode, {}, std::move(output.body)};
    std::string contentType(plainType);
    for (const auto& given : output.headers.getMemberNames()) {
        const auto name = toLower(given);
        if (name.starts_with(control) || std::ranges::contains(framing, name)) {
            continue;
        }
        if (!isToken(name)) {
            throw std::invalid_argument("Invalid header name: " + name);
        }
        for (const auto& line : linesOf(name, output.headers[given])) {
            if (line.find_first_of(std::string_view("\r\n\0", 3)) != std::string::npos) {
                throw std::invalid_argument("Invalid value of header " + name + ".");
            }
            if (name == "content-type") {
                contentType = withCharset(line);
            } else {
                answer.headers.emplace_back(name, line);
            }
        }
    }
    answer.headers.emplace_back("content-type", contentType);
    return answer;
}

}
