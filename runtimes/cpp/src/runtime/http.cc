#include "http.h"

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <format>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

namespace openruntimes {

namespace {

constexpr std::size_t headLimit = 128 << 10;
constexpr std::size_t bodyLimit = 20 << 20;
/// What a caller may go on sending after an early answer until its connection is cut.
constexpr std::size_t discardLimit = 64 << 20;
/// How long a connection may be idle, or stall in the middle.
constexpr timeval patience{.tv_sec = 60, .tv_usec = 0};
constexpr std::size_t readSize = 64 << 10;
/// An answer up to this size leaves in one piece.
constexpr std::size_t copyLimit = 64 << 10;

constexpr std::string_view digits = "0123456789";
constexpr std::string_view hexDigits = "0123456789abcdefABCDEF";
constexpr std::string_view tokens =
    "!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

std::string_view trim(std::string_view text) {
    const auto start = text.find_first_not_of(" \t");
    return start == std::string_view::npos ? "" : text.substr(start, text.find_last_not_of(" \t") + 1 - start);
}

/// A number of so many digits at most.
std::size_t parseNumber(std::string_view text, std::size_t nDigits, int base) {
    const auto allowed = base == 10 ? digits : hexDigits;
    if (text.empty() || text.size() > nDigits || text.find_first_not_of(allowed) != std::string_view::npos) {
        throw BadMessage{400};
    }
    std::size_t number = 0;
    std::from_chars(text.data(), text.data() + text.size(), number, base);
    return number;
}

void addHeader(Message& message, std::string_view line) {
    const auto colon = line.find(':');
    if (colon == std::string_view::npos || !isToken(line.substr(0, colon)) ||
        line.find_first_of("\r\n") != std::string_view::npos) {
        throw BadMessage{400};
    }
    const auto name = toLower(line.substr(0, colon));
    const std::string value(trim(line.substr(colon + 1)));
    if (name == "authorization") {
        message.authorizations.push_back(value);
    }
    const auto [known, isNew] = message.headers.emplace(name, value);
    if (isNew || name == "host" || name == "content-type" || name == "authorization") {
        return;
    }
    if (name != "content-length") {
        known->second += (name == "cookie" ? "; " : ", ") + value;
    } else if (known->second != value) {
        throw BadMessage{400};
    }
}

/// Where the body ends, and whether another request may follow.
void frame(Message& message, bool isCurrent) {
    const bool hasLength = message.headers.contains("content-length");
    message.length = hasLength ? parseNumber(message.header("content-length"), 18, 10) : 0;
    message.isChunked = message.headers.contains("transfer-encoding");
    const bool isKnown = toLower(message.header("transfer-encoding")) == "chunked";
    if (message.isChunked && (!isKnown || hasLength || !isCurrent)) {
        throw BadMessage{400};
    }
    const auto options = toLower(message.header("connection"));
    message.keepsAlive = !options.contains("close") && (isCurrent || options.contains("keep-alive"));
    message.isRead = message.length == 0 && !message.isChunked;
}

Message parseHead(std::string_view head) {
    const auto nextLine = [&] {
        const auto end = std::min(head.find("\r\n"), head.size());
        const auto line = head.substr(0, end);
        head.remove_prefix(std::min(end + 2, head.size()));
        return line;
    };
    const auto first = nextLine();
    const auto methodEnd = first.find(' ');
    const auto targetEnd = first.rfind(' ');
    if (methodEnd == std::string_view::npos || targetEnd <= methodEnd + 1) {
        throw BadMessage{400};
    }
    Message message;
    message.method = first.substr(0, methodEnd);
    message.target = first.substr(methodEnd + 1, targetEnd - methodEnd - 1);
    const auto version = first.substr(targetEnd + 1);
    const bool isKnown = version == "HTTP/1.1" || version == "HTTP/1.0";
    const bool isOneWord = message.target.find_first_of(" \r\n") == std::string::npos;
    if (!isKnown || !isOneWord || !isToken(message.method)) {
        throw BadMessage{400};
    }
    while (!head.empty()) {
        addHeader(message, nextLine());
    }
    frame(message, version == "HTTP/1.1");
    return message;
}

std::string_view reason(int status) {
    switch (status) {
    case 200: return "OK";
    case 204: return "No Content";
    case 301: return "Moved Permanently";
    case 302: return "Found";
    case 304: return "Not Modified";
    case 400: return "Bad Request";
    case 401: return "Unauthorized";
    case 404: return "Not Found";
    case 413: return "Content Too Large";
    case 431: return "Request Header Fields Too Large";
    case 500: return "Internal Server Error";
    default: return "";
    }
}

}

std::string_view Message::header(const std::string& name) const {
    const auto found = headers.find(name);
    return found == headers.end() ? std::string_view() : found->second;
}

bool Message::isInvited() const { return toLower(header("expect")) == "100-continue"; }

Connection::Connection(int socket) : socket_(socket) {
    const int yes = 1;
    // An answer leaves at once.
    setsockopt(socket, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    setsockopt(socket, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    setsockopt(socket, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
}

Connection::~Connection() { close(socket_); }

void Connection::serve(const Handler& handle) {
    try {
        while (true) {
            auto message = readHead();
            handle(*this, message);
            // The rest of the body is read first, so that the caller comes to read the answer.
            if (!message.keepsAlive || !discardBody(message)) {
                return;
            }
        }
    } catch (const BadMessage& bad) {
        try {
            transmit(std::format("HTTP/1.1 {} {}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n", bad.status,
                                 reason(bad.status)));
        } catch (const Closed&) {
        }
    } catch (const Closed&) {
    }
}

Bytes Connection::readBody(Message& message) {
    if (message.isRead) {
        return {};
    }
    if (message.length > bodyLimit) {
        throw BodyTooLarge{};
    }
    if (message.isInvited()) {
        transmit("HTTP/1.1 100 Continue\r\n\r\n");
    }
    if (message.isChunked) {
        return readChunked(message, bodyLimit);
    }
    message.isRead = true;
    return readExactly(message.length);
}

void Connection::answer(const Message& message, const Answer& answer) {
    auto data = std::format("HTTP/1.1 {} {}\r\n", answer.status, reason(answer.status));
    for (const auto& [name, value] : answer.headers) {
        data.append(name).append(": ").append(value).append("\r\n");
    }
    const bool isBodiless = answer.status == 204 || answer.status == 304;
    if (!isBodiless) {
        data += std::format("content-length: {}\r\n", answer.body.size());
    }
    data += message.keepsAlive ? "\r\n" : "connection: close\r\n\r\n";
    const std::string_view body(reinterpret_cast<const char*>(answer.body.data()), answer.body.size());
    if (isBodiless || message.method == "HEAD") {
        transmit(data);
    } else if (body.size() <= copyLimit) {
        transmit(data.append(body));
    } else {
        transmit(data);
        transmit(body);
    }
}

Message Connection::readHead() {
    std::size_t seen = 0;
    while (true) {
        // RFC 9112, 2.2: an empty line before a request line is skipped.
        while (buffer_.starts_with("\r\n")) {
            buffer_.erase(0, 2);
        }
        if (const auto end = buffer_.find("\r\n\r\n", seen); end != std::string::npos) {
            const auto head = buffer_.substr(0, end);
            buffer_.erase(0, end + 4);
            if (head.contains('\0')) {
                throw BadMessage{400};
            }
            return parseHead(head);
        }
        seen = buffer_.size() < 3 ? 0 : buffer_.size() - 3;
        receive();
    }
}

/// Some more input, within the limit of a head.
void Connection::receive() {
    const auto before = buffer_.size();
    if (before > headLimit) {
        throw BadMessage{431};
    }
    ssize_t size = 0;
    buffer_.resize_and_overwrite(before + readSize, [&](char* data, std::size_t) {
        do {
            size = recv(socket_, data + before, readSize, 0);
        } while (size < 0 && errno == EINTR);
        return before + (size < 0 ? 0 : static_cast<std::size_t>(size));
    });
    if (size <= 0) {
        throw Closed{};
    }
}

Bytes Connection::readExactly(std::size_t length) {
    Bytes body(length);
    auto there = std::min(buffer_.size(), length);
    std::memcpy(body.data(), buffer_.data(), there);
    buffer_.erase(0, there);
    while (there < length) {
        const auto size = recv(socket_, body.data() + there, length - there, 0);
        if (size == 0 || (size < 0 && errno != EINTR)) {
            throw Closed{};
        }
        there += size < 0 ? 0 : static_cast<std::size_t>(size);
    }
    return body;
}

void Connection::skip(std::size_t length) {
    while (true) {
        const auto there = std::min(buffer_.size(), length);
        buffer_.erase(0, there);
        length -= there;
        if (length == 0) {
            return;
        }
        receive();
    }
}

std::string Connection::readLine() {
    auto end = buffer_.find("\r\n");
    for (; end == std::string::npos; end = buffer_.find("\r\n")) {
        receive();
    }
    auto line = buffer_.substr(0, end);
    buffer_.erase(0, end + 2);
    return line;
}

/// Reads on to the next request; false where that is too far. A caller that waits to be invited sends nothing.
bool Connection::discardBody(Message& message) {
    if (message.isRead) {
        return true;
    }
    if (message.isInvited() || message.length > discardLimit) {
        return false;
    }
    try {
        if (message.isChunked) {
            readChunked(message, 0);
        } else {
            skip(message.length);
        }
        return true;
    } catch (const BodyTooLarge&) {
        return message.isRead;
    }
}

/// The body; what lies beyond `limit` is read and thrown away, up to a limit of its own.
Bytes Connection::readChunked(Message& message, std::size_t limit) {
    Bytes body;
    std::size_t total = 0;
    while (true) {
        const auto line = readLine();
        const auto size = parseNumber(trim(std::string_view(line).substr(0, line.find(';'))), 8, 16);
        if (size == 0) {
            break;
        }
        total += size;
        if (total <= limit) {
            const auto chunk = readExactly(size);
            body.insert(body.end(), chunk.begin(), chunk.end());
        } else if (total <= discardLimit) {
            body = {};
            skip(size);
        } else {
            message.keepsAlive = false;
            throw BodyTooLarge{};
        }
        if (!readLine().empty()) {
            throw BadMessage{400};
        }
    }
    while (!readLine().empty()) {
    }
    message.isRead = true;
    if (total > limit) {
        throw BodyTooLarge{};
    }
    return body;
}

void Connection::transmit(std::string_view data) {
    while (!data.empty()) {
        const auto size = send(socket_, data.data(), data.size(), MSG_NOSIGNAL);
        if (size < 0 && errno != EINTR) {
            throw Closed{};
        }
        data.remove_prefix(size < 0 ? 0 : static_cast<std::size_t>(size));
    }
}

std::string toLower(std::string_view text) {
    std::string lower(text);
    for (char& letter : lower) {
        letter = letter >= 'A' && letter <= 'Z' ? static_cast<char>(letter + ('a' - 'A')) : letter;
    }
    return lower;
}

bool isToken(std::string_view text) {
    return !text.empty() && text.find_first_not_of(tokens) == std::string_view::npos;
}

}
