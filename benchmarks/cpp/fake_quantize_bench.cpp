// Time of every training kernel by instruction set and element type, on one thread, beside a plain copy. The calls are
// those of the agreement test; each is checked against the reference before it is timed.
//
// 131,072 elements stay in the second-level cache; 3,211,264 (16 images of 64 x 56 x 56) do not.
#include <benchmark/benchmark.h>

#include <cstring>
#include <string>

#include "kernels/fake_quantize.h"
#include "support/fake_quantize_run.h"

namespace torchquant::test {
namespace {

constexpr int64_t kSizes[] = {131072, 3211264};
constexpr FloatType kTypes[] = {FloatType::kFloat32, FloatType::kBFloat16, FloatType::kFloat16};

void set_rates(benchmark::State& state, int64_t n, int64_t bytes_per_element) {
  state.SetItemsProcessed(state.iterations() * n);
  state.SetBytesProcessed(state.iterations() * n * bytes_per_element);
}

// Values like those of training: a few in a thousand saturate, none is special.
KernelInputs bench_inputs(FloatType type, int64_t n) {
  KernelInputs inputs = make_kernel_inputs({0.03f, 3.0f, {-128, 127}}, type, n, 1);
  inputs.x = pack(bell_values(n, 1.3f, 2), type);
  inputs.grad = pack(bell_values(n, 1.0f, 3), type);
  return inputs;
}

KernelOutputs run(const KernelCall& call, const kernels::FakeQuantizeKernels& table, const KernelInputs& inputs) {
  KernelOutputs outputs{std::vector<uint8_t>(inputs.n * call.element_size(inputs.type)), 0, {}, {}, 0};
  call.run(table, inputs, &outputs);
  return outputs;
}

void bench_kernel(benchmark::State& state, const KernelCall& call, kernels::Isa isa, FloatType type, int64_t n) {
  const KernelInputs inputs = bench_inputs(type, n);
  const kernels::FakeQuantizeKernels& table = kernels::fake_quantize_kernels(isa);
  const KernelOutputs want = run(call, kernels::fake_quantize_kernels(kernels::Isa::kReference), inputs);
  KernelOutputs outputs = run(call, table, inputs);
  if (want.elements != outputs.elements || want.sums != outputs.sums || want.floats != outputs.floats) {
    return state.SkipWithError("differs from the reference");
  }
  for (auto _ : state) {
    call.run(table, inputs, &outputs);
    benchmark::ClobberMemory();
  }
  set_rates(state, n, call.traffic(type));
}

void bench_copy(benchmark::State& state, FloatType type, int64_t n) {
  const KernelInputs inputs = bench_inputs(type, n);
  std::vector<uint8_t> out(inputs.x.size());
  for (auto _ : state) {
    memcpy(out.data(), inputs.x.data(), out.size());
    benchmark::ClobberMemory();
  }
  set_rates(state, n, 2 * size_of(type));
}

const bool kRegistered = [] {
  for (int64_t n : kSizes) {
    for (FloatType type : kTypes) {
      const std::string suffix = std::string("/") + type_name(type) + "/" + std::to_string(n);
      benchmark::RegisterBenchmark(("copy" + suffix).c_str(), bench_copy, type, n);
      for (const KernelCall& call : kernel_calls()) {
        for (kernels::Isa isa : kernels::available_isas()) {
          const std::string name = std::string(call.name) + "/" + kernels::isa_name(isa) + suffix;
          benchmark::RegisterBenchmark(name.c_str(), bench_kernel, call, isa, type, n);
        }
      }
    }
  }
  return true;
}();

}  // namespace
}  // namespace torchquant::test
