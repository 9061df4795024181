#include "logger.h"

#include <algorithm>
#include <chrono>
#include <fcntl.h>
#include <format>
#include <random>
#include <unistd.h>

namespace openruntimes {

namespace {

constexpr std::size_t recordLimit = 8'000;
constexpr std::string_view truncated = "... Log truncated due to size limit (8000 characters)";
constexpr std::string_view nativeNotice =
    "Native logs detected. Use context.log() or context.error() for better experience.\n";
constexpr std::size_t bufferLimit = 64 << 10;

std::string record(std::string_view text) {
    if (text.size() <= recordLimit) {
        return std::string(text) + '\n';
    }
    std::size_t end = recordLimit;
    // No character is cut in two.
    while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xc0) == 0x80) {
        end--;
    }
    return std::string(text.substr(0, end)).append(truncated) + '\n';
}

bool isSafe(std::string_view id) {
    constexpr std::string_view allowed = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-";
    return !id.empty() && id.size() <= 128 && id[0] != '.' &&
           id.find_first_not_of(allowed) == std::string_view::npos;
}

/// Seconds (8 hexadecimal digits), fraction of a second (5), random (7).
std::string generateId() {
    using namespace std::chrono;
    const auto now = duration_cast<microseconds>(system_clock::now().time_since_epoch()).count();
    const auto random = std::random_device{}() & 0x0fff'ffff;
    return std::format("{:08x}{:05x}{:07x}", now / 1'000'000, now % 1'000'000, random);
}

}

void LogFile::write(std::string_view text) {
    buffer_ += text.substr(0, room_ - buffer_.size());
    if (buffer_.size() > bufferLimit) {
        flush();
    }
}

void LogFile::flush() {
    if (buffer_.empty()) {
        return;
    }
    const int file = open(path_.c_str(), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0644);
    std::string_view rest = buffer_;
    while (file >= 0 && !rest.empty()) {
        const auto written = ::write(file, rest.data(), rest.size());
        if (written < 0) {
            break;
        }
        rest.remove_prefix(static_cast<std::size_t>(written));
    }
    room_ = rest.empty() ? room_ - buffer_.size() : 0;
    buffer_.clear();
    if (file >= 0) {
        ::close(file);
    }
}

ExecutionLog::ExecutionLog(const std::string& directory, std::string id)
    : id(std::move(id)), isOpen_(!this->id.empty()), logs_(directory + "/" + this->id + "_logs.log"),
      errors_(directory + "/" + this->id + "_errors.log") {}

void ExecutionLog::log(const std::string& text) {
    const std::lock_guard guard(lock_);
    if (isOpen_) {
        endLine();
        logs_.write(record(text));
    }
}

void ExecutionLog::error(const std::string& text) {
    const std::lock_guard guard(lock_);
    if (isOpen_) {
        errors_.write(record(text));
    }
}

void ExecutionLog::native(std::string_view text) {
    const std::lock_guard guard(lock_);
    if (!isOpen_ || text.empty()) {
        return;
    }
    if (!hasNative_) {
        endLine();
        logs_.write(nativeNotice);
    }
    hasNative_ = true;
    logs_.write(text);
    isMidLine_ = !text.ends_with('\n');
}

void ExecutionLog::flush() {
    const std::lock_guard guard(lock_);
    save();
}

void ExecutionLog::close() {
    const std::lock_guard guard(lock_);
    save();
    isOpen_ = false;
}

void ExecutionLog::endLine() {
    if (isMidLine_) {
        logs_.write("\n");
        isMidLine_ = false;
    }
}

void ExecutionLog::save() {
    if (isOpen_) {
        endLine();
        logs_.flush();
        errors_.flush();
    }
}

std::string logId(const Headers& headers, bool isDevelopment) {
    const auto header = [&](const char* name) {
        const auto found = headers.find(name);
        return found == headers.end() ? std::string() : found->second;
    };
    const auto logging = header("x-open-runtimes-logging");
    if (!logging.empty() && logging != "enabled") {
        return "";
    }
    const auto wanted = header("x-open-runtimes-log-id");
    if (isSafe(wanted)) {
        return wanted;
    }
    return isDevelopment && wanted.empty() ? "dev" : generateId();
}

}
