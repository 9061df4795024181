// What a function returned, ready to send.
#pragma once

#include "../RuntimeOutput.h"
#include "http.h"

#include <string_view>

namespace openruntimes {

/// An answer of plain text.
Answer plain(int status, std::string_view body = "");

/// Fails with std::invalid_argument for what cannot be sent.
Answer render(runtime::RuntimeOutput output);

}
