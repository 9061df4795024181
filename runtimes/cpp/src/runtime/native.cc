#include "native.h"

#include <array>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <fcntl.h>
#include <iostream>
#include <poll.h>
#include <streambuf>
#include <system_error>
#include <thread>
#include <unistd.h>

namespace openruntimes {

namespace {

/// As much as a pipe holds.
constexpr std::size_t pipeSize = 64 << 10;

Native* native = nullptr;
thread_local std::shared_ptr<ExecutionLog> current;

int check(int result) {
    if (result < 0) {
        throw std::system_error(errno, std::generic_category(), "cannot redirect the output");
    }
    return result;
}

void writeAll(int descriptor, std::string_view text) {
    while (!text.empty()) {
        const auto written = write(descriptor, text.data(), text.size());
        if (written < 0 && errno != EINTR) {
            return;
        }
        text.remove_prefix(written < 0 ? 0 : static_cast<std::size_t>(written));
    }
}

/// Stands for the buffer of a standard stream, and holds nothing back.
class Captured : public std::streambuf {
    int descriptor_;

protected:
    std::streamsize xsputn(const char* text, std::streamsize size) override {
        const std::string_view view(text, static_cast<std::size_t>(size));
        if (current) {
            current->native(view);
        } else {
            writeAll(descriptor_, view);
        }
        return size;
    }

    int_type overflow(int_type character) override {
        if (!traits_type::eq_int_type(character, traits_type::eof())) {
            const char text = traits_type::to_char_type(character);
            xsputn(&text, 1);
        }
        return traits_type::not_eof(character);
    }

public:
    explicit Captured(int descriptor) : descriptor_(descriptor) {}
};

}

Native& Native::captureOutput() {
    native = new Native;
    std::thread([] { native->follow(); }).detach();
    for (auto [stream, descriptor] : {std::pair<std::ostream*, int>(&std::cout, 1), {&std::cerr, 2}, {&std::clog, 2}}) {
        stream->flush();
        stream->rdbuf(new Captured(descriptor));
    }
    // What C's library prints comes by lines, as on a terminal.
    std::setvbuf(stdout, nullptr, _IOLBF, 0);
    std::atexit([] {
        std::fflush(stdout);
        native->flush();
    });
    // Why the process ends is told outside.
    std::set_terminate([] {
        dup2(native->output_, 2);
        __gnu_cxx::__verbose_terminate_handler();
    });
    // abort(3) ends the process when this returns.
    std::signal(SIGABRT, [](int) { native->lastWords(); });
    return *native;
}

Native::Native() {
    std::array<int, 2> ends{};
    check(pipe2(ends.data(), O_CLOEXEC));
    // Only the end that is read here does not wait: who prints to a full pipe does.
    check(fcntl(ends[0], F_SETFL, O_NONBLOCK));
    reader_ = ends[0];
    output_ = check(fcntl(1, F_DUPFD_CLOEXEC, 3));
    check(dup2(ends[1], 1));
    check(dup2(ends[1], 2));
    close(ends[1]);
}

void Native::begin(const std::shared_ptr<ExecutionLog>& log) {
    const std::lock_guard guard(lock_);
    deliver();
    active_.push_back(log);
}

void Native::end(const std::shared_ptr<ExecutionLog>& log) {
    const std::lock_guard guard(lock_);
    deliver();
    std::erase(active_, log);
}

void Native::enter(const std::shared_ptr<ExecutionLog>& log) { current = log; }

void Native::flush() {
    const std::lock_guard guard(lock_);
    deliver();
    for (const auto& log : active_) {
        log->flush();
    }
}

void Native::lastWords() const {
    std::array<char, 1024> buffer;
    ssize_t size = 0;
    while ((size = read(reader_, buffer.data(), buffer.size())) > 0) {
        writeAll(output_, {buffer.data(), static_cast<std::size_t>(size)});
    }
}

/// Takes what is in the pipe once, and no more: output may never end.
void Native::deliver() {
    std::array<char, pipeSize> buffer;
    const auto size = read(reader_, buffer.data(), buffer.size());
    if (size <= 0) {
        return;
    }
    const std::string_view text(buffer.data(), static_cast<std::size_t>(size));
    if (active_.size() == 1) {
        active_.front()->native(text);
    } else {
        writeAll(output_, text);
    }
}

/// Delivers output as it comes.
void Native::follow() {
    while (true) {
        pollfd wait{reader_, POLLIN, 0};
        poll(&wait, 1, -1);
        const std::lock_guard guard(lock_);
        deliver();
    }
}

}
