// Owns the listening socket, the signals and the life of the process; what a request means is `execution`'s matter.
#pragma once

#include "execution.h"
#include "settings.h"

namespace openruntimes {

/// Binds, announces readiness, and serves until a signal. The result is the process's status.
int serve(Settings settings, Function main);

}
