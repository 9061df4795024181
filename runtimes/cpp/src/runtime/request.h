// The HTTP request as the function sees it: path and query raw, header names lower-cased.
#pragma once

#include "../RuntimeRequest.h"
#include "http.h"
#include "settings.h"

#include <string_view>

namespace openruntimes {

constexpr std::string_view control = "x-open-runtimes-";

runtime::RuntimeRequest newRequest(const Message& message, Bytes body, const Settings& settings);

}
