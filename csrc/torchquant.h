// The one header for C++ users: `#include <torchquant/torchquant.h>` with the CMake target TorchQuant::torchquant.
#pragma once
