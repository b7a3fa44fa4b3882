// The one header for C++ users: `#include <torchquant/torchquant.h>` with the CMake target TorchQuant::torchquant.
#pragma once

#include "archive/archive.h"
#include "archive/receipt.h"
#include "runtime/load.h"
#include "runtime/measure.h"
