// The one header for C++ users: `#include <torchquant/torchquant.h>` with the CMake target TorchQuant::torchquant.
#pragma once

// Tensors and TorchScript modules, so that a program that loads and runs a model needs no other include.
#include <ATen/Parallel.h>  // at::set_num_threads
#include <torch/script.h>

#include "archive/archive.h"
#include "archive/receipt.h"
#include "convert/convert.h"
#include "convert/layer_pairs.h"
#include "convert/sensitivity.h"
#include "nn/fake_quantize.h"
#include "nn/layers.h"
#include "nn/trace.h"
#include "observers/observers.h"
#include "ops/ops.h"
#include "runtime/device.h"
#include "runtime/load.h"
#include "runtime/measure.h"
#include "runtime/packed_weights.h"
#include "runtime/tensor_file.h"
