// Runs a loaded module and measures its latency. Called by C++ programs and by `torchquant bench`.
#pragma once

#include <cstdint>
#include <vector>

#include "ATen/core/ivalue.h"
#include "export.h"
#include "torch/csrc/jit/api/module.h"

namespace torchquant {

struct MeasureOptions {
  int64_t warm_up_runs = 10;  // not counted: the first runs pack weights and let TorchScript optimise
  int64_t runs = 100;
};

// Wall-clock time of one call, over all counted runs.
struct Latency {
  int64_t runs = 0;
  double p50_ms = 0, p95_ms = 0, p99_ms = 0, mean_ms = 0, min_ms = 0;
};

// forward() without autograd; waits for the device, so that the result is there on return. Throws c10::Error for an
// input that is on another device than the module's buffers, as warm_up and time_runs do.
TQ_API c10::IValue run(torch::jit::Module& module, const std::vector<c10::IValue>& inputs);

TQ_API void warm_up(torch::jit::Module& module, const std::vector<c10::IValue>& inputs, int64_t runs = 10);

// Warms up, then times each run by itself, in milliseconds. Throws c10::Error if options.runs is not positive.
TQ_API std::vector<double> time_runs(torch::jit::Module& module, const std::vector<c10::IValue>& inputs,
                                     MeasureOptions options = {});

// Of at least one time; those of several bursts may be put together.
TQ_API Latency summarize(std::vector<double> times_ms);

// summarize(time_runs(...)).
TQ_API Latency measure(torch::jit::Module& module, const std::vector<c10::IValue>& inputs, MeasureOptions options = {});

}  // namespace torchquant
