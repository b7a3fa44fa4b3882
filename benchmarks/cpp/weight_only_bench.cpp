// Rate at which the weight-only products read their weights, on two threads, by instruction set, bits, group size and
// rows: `GB_s`, and `of_read`, its share of what a plain read of the same bytes reaches in the same run. The layers
// take turns, so that the weights come from memory, as in a decoder.
//
// Both are timed in turn and per thread, by the thread's own clock: a process that takes a core away for a while then
// costs neither. What is reported is the median of the turns.
#include <benchmark/benchmark.h>
#include <omp.h>
#include <time.h>

#include <algorithm>
#include <string>
#include <vector>

#include "kernels/quantized_kernels.h"
#include "support/rng.h"

namespace torchquant::test {
namespace {

using kernels::IndexRange;

constexpr int64_t kLayers = 16, kChannels = 4096, kDepth = 4096;
constexpr int kThreads = 2;

struct Layers {
  explicit Layers(const kernels::WeightOnlyShape& shape) : shape(shape), layout(shape) {
    const std::vector<uint8_t> codes(kChannels * kDepth * shape.bits / 8, 0x2b);
    const std::vector<float> scale(kChannels * layout.groups, 0.01f);
    for (int64_t i = 0; i < kLayers; ++i) {
      packed.emplace_back(layout.blocks * layout.block_bytes + 64);
      kernels::pack_weight_only(shape, codes.data(), scale.data(), nullptr, {0, layout.blocks},
                                packed[i].data() + offset(i));
    }
  }
  // Aligned to 64, as the kernels ask.
  const uint8_t* data(int64_t layer) const { return packed[layer].data() + offset(layer); }
  int64_t offset(int64_t layer) const {
    return static_cast<int64_t>(-reinterpret_cast<uintptr_t>(packed[layer].data()) % 64);
  }

  kernels::WeightOnlyShape shape;
  kernels::WeightOnlyLayout layout;
  std::vector<std::vector<uint8_t>> packed;
};

double thread_seconds() {
  timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

// Bytes of weights per second that fn(layer, blocks) goes through, over all threads and layers.
template <typename Fn>
double rate(const Layers& layers, Fn&& fn) {
  double total = 0.0;
#pragma omp parallel num_threads(kThreads) reduction(+ : total)
  {
    const int64_t thread = omp_get_thread_num(), blocks = layers.layout.blocks;
    const IndexRange own{blocks * thread / kThreads, blocks * (thread + 1) / kThreads};
    const double start = thread_seconds();
    for (int64_t layer = 0; layer < kLayers; ++layer) fn(layer, own);
    total +=
        static_cast<double>(kLayers * (own.end - own.begin) * layers.layout.block_bytes) / (thread_seconds() - start);
  }
  return total;
}

double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + static_cast<int64_t>(values.size() / 2), values.end());
  return values[values.size() / 2];
}

// Sums 64-bit words; four chains keep the additions out of the way.
void read(const uint8_t* bytes, int64_t size) {
  uint64_t sums[4] = {};
  const auto* words = reinterpret_cast<const uint64_t*>(bytes);
  for (int64_t i = 0; i + 4 <= size / 8; i += 4) {
    for (int j = 0; j < 4; ++j) sums[j] += words[i + j];
  }
  benchmark::DoNotOptimize(sums);
}

void bench(benchmark::State& state, kernels::Isa isa, int32_t bits, int64_t group_size, int64_t rows) {
  Layers layers({kChannels, kDepth, group_size, bits, bits == 4 ? -8 : -127, false});
  const auto kernel = kernels::quantized_kernels(isa).linear_weight_only_packed;
  const std::vector<float> x = bell_values(rows * kDepth, 1.0f, 1);
  std::vector<float> out(rows * kChannels);
  std::vector<double> rates, shares;
  for (auto _ : state) {
    const double plain = rate(layers, [&](int64_t layer, IndexRange blocks) {
      read(layers.data(layer) + blocks.begin * layers.layout.block_bytes,
           (blocks.end - blocks.begin) * layers.layout.block_bytes);
    });
    rates.push_back(rate(layers, [&](int64_t layer, IndexRange blocks) {
      kernel({x.data(), rows, layers.shape, layers.data(layer), nullptr, numerics::no_activation(), out.data()},
             blocks);
    }));
    shares.push_back(rates.back() / plain);
  }
  const double codes_per_byte =
      static_cast<double>(kChannels * kDepth) / static_cast<double>(layers.layout.blocks * layers.layout.block_bytes);
  state.counters["GB_s"] = median(rates) * 1e-9;
  state.counters["of_read"] = median(shares);
  state.counters["GMAC_s"] = median(rates) * codes_per_byte * static_cast<double>(rows) * 1e-9;
}

const bool kRegistered = [] {
  for (const kernels::Isa isa : kernels::available_isas()) {
    if (kernels::quantized_kernels(isa).linear_weight_only_packed == nullptr) continue;
    for (const int32_t bits : {4, 8}) {
      for (const int64_t group_size : {int64_t{32}, int64_t{128}, kDepth}) {
        for (const int64_t rows : {1, 4, 16, 64}) {
          if (rows > 1 && group_size != 128) continue;
          const std::string name = std::string("weight_only/") + kernels::isa_name(isa) + "/int" +
                                   std::to_string(bits) + "/group " + std::to_string(group_size) + "/rows " +
                                   std::to_string(rows);
          benchmark::RegisterBenchmark(name.c_str(), bench, isa, bits, group_size, rows)->UseRealTime();
        }
      }
    }
  }
  return true;
}();

}  // namespace
}  // namespace torchquant::test
