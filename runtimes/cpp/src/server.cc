// The HTTP server of the cpp runtime, with the function in it: the sandbox's main process.

#include "RuntimeContext.h"
#include "runtime/serve.h"

// Includes the function's file; the build makes it.
#include "entrypoint.h"

int main() {
    return openruntimes::serve(openruntimes::Settings::fromEnvironment(), runtime::Handler::main);
}
