// What takes longest to compile of the server and of most functions.
#pragma once

#include "RuntimeContext.h"
#include "runtime/serve.h"

#include <algorithm>
#include <any>
#include <chrono>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <map>
#include <memory>
#include <numeric>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>
