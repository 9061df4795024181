// What the server is told by its environment, read once at start. The paths and the port are the protocol's own.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>

namespace openruntimes {

using Headers = std::map<std::string, std::string>;

struct Settings {
    std::uint16_t port = 3000;
    std::string logsDir = "/mnt/logs";
    std::string timingsFile = "/mnt/telemetry/timings.txt";
    /// When the start lifecycle began, in seconds since 1970, where it told.
    std::optional<double> startupBegan;
    std::string entrypoint;
    std::string secret;
    /// The caller's credential with that secret, which is not the function's to see.
    std::string ownCredential;
    bool isDevelopment = false;
    Headers enforcedHeaders;

    static Settings fromEnvironment();
};

}
