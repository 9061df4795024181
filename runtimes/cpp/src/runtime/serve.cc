#include "serve.h"

#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <fcntl.h>
#include <format>
#include <netinet/in.h>
#include <semaphore.h>
#include <sys/socket.h>
#include <system_error>
#include <thread>
#include <tuple>
#include <unistd.h>

namespace openruntimes {

namespace {

using namespace std::chrono_literals;

constexpr int backlog = 4096;
/// How long a stopping server waits for executions that are under way.
constexpr auto drainFor = 5s;
/// How often it looks whether they have ended, and how long it leaves others to finish where there is no room.
constexpr auto pause = 10ms;

sem_t stopped;

/// As PID 1 a signal without a handler is ignored.
void catchSignals() {
    sem_init(&stopped, 0, 0);
    struct sigaction action {};
    action.sa_handler = [](int) { sem_post(&stopped); };
    action.sa_flags = SA_RESTART;
    sigaction(SIGTERM, &action, nullptr);
    sigaction(SIGINT, &action, nullptr);
}

template <typename Address> int listenAt(int family, const Address& address) {
    const int listener = socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    const int yes = 1;
    const int no = 0;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    if (family == AF_INET6) {
        setsockopt(listener, IPPROTO_IPV6, IPV6_V6ONLY, &no, sizeof no);
    }
    const auto* generic = reinterpret_cast<const sockaddr*>(&address);
    if (bind(listener, generic, sizeof address) < 0 || listen(listener, backlog) < 0) {
        close(listener);
        return -1;
    }
    return listener;
}

/// All interfaces, both families where there are both.
int bindTo(std::uint16_t port) {
    sockaddr_in6 both{};
    both.sin6_family = AF_INET6;
    both.sin6_port = htons(port);
    if (const int listener = listenAt(AF_INET6, both); listener >= 0) {
        return listener;
    }
    sockaddr_in one{};
    one.sin_family = AF_INET;
    one.sin_port = htons(port);
    const int listener = listenAt(AF_INET, one);
    if (listener < 0) {
        throw std::system_error(errno, std::generic_category(), std::format("cannot listen on port {}", port));
    }
    return listener;
}

/// Every connection has a thread.
[[noreturn]] void acceptAll(int listener, Executions& executions) {
    const Connection::Handler handle = [&](Connection& connection, Message& message) {
        executions.handle(connection, message);
    };
    while (true) {
        const int socket = accept4(listener, nullptr, nullptr, SOCK_CLOEXEC);
        if (socket < 0) {
            std::this_thread::sleep_for(pause);
            continue;
        }
        auto connection = std::make_unique<Connection>(socket);
        try {
            std::thread([connection = std::move(connection), &handle] { connection->serve(handle); }).detach();
        } catch (const std::system_error&) {
            std::this_thread::sleep_for(pause);
        }
    }
}

/// The `startup` metric, where the start lifecycle told when it began. Timings are a help, not a need.
void noteStartup(const Settings& settings) {
    if (!settings.startupBegan) {
        return;
    }
    const std::chrono::duration<double> now = std::chrono::system_clock::now().time_since_epoch();
    const auto line = std::format("startup={:.3f}\n", now.count() - *settings.startupBegan);
    const int file = open(settings.timingsFile.c_str(), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0644);
    if (file >= 0) {
        std::ignore = write(file, line.data(), line.size());
        close(file);
    }
}

void drain(const Executions& executions) {
    const auto deadline = std::chrono::steady_clock::now() + drainFor;
    while (!executions.areIdle() && std::chrono::steady_clock::now() < deadline) {
        std::this_thread::sleep_for(pause);
    }
}

}

int serve(Settings settings, Function main) {
    catchSignals();
    try {
        const int listener = bindTo(settings.port);
        std::puts("HTTP server successfully started!");
        std::fflush(stdout);
        noteStartup(settings);
        auto& native = Native::captureOutput();
        auto& executions = *new Executions(std::move(settings), main, native);
        std::thread([listener, &executions] { acceptAll(listener, executions); }).detach();
        while (sem_wait(&stopped) < 0) {
        }
        drain(executions);
        native.flush();
        // Without destructors: threads may still run.
        std::_Exit(0);
    } catch (const std::exception& error) {
        std::fprintf(stderr, "HTTP server failed: %s\n", error.what());
        return 1;
    }
}

}
