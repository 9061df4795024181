// The two log files of an execution. They are written when there is something to write, at the latest before the response
// leaves, so that a silent function costs no file; failing to write them never fails the execution.
#pragma once

#include "../RuntimeContext.h"
#include "settings.h"

#include <mutex>
#include <string>
#include <string_view>

namespace openruntimes {

/// Callers read 5 MiB of a file and say so when there is more: what lies further back would only fill the disk.
constexpr std::size_t fileLimit = (5 << 20) + (64 << 10);

/// Buffered text of one log file.
class LogFile {
public:
    explicit LogFile(std::string path) : path_(std::move(path)) {}
    void write(std::string_view text);
    void flush();

private:
    std::string path_;
    std::string buffer_;
    std::size_t room_ = fileLimit;
};

/// The log of one execution; after `close` nothing is written any more. An empty id means that its caller wants none.
class ExecutionLog : public runtime::Logger {
public:
    const std::string id;

    ExecutionLog(const std::string& directory, std::string id);
    void log(const std::string& text) override;
    void error(const std::string& text) override;
    /// Takes what the function printed by other means than its context.
    void native(std::string_view text);
    void flush();
    void close();

private:
    std::mutex lock_;
    bool isOpen_;
    LogFile logs_;
    LogFile errors_;
    bool hasNative_ = false;
    bool isMidLine_ = false;

    void endLine();
    void save();
};

/// The id asked for where it is a safe file name, else one of the runtime's own; empty where logging is off.
std::string logId(const Headers& headers, bool isDevelopment);

}
