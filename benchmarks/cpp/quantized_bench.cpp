// Time of the integer kernels that are not matrix products, by instruction set, on one thread and on two, beside a copy
// of the same bytes: `of_copy` is the rate as a share of memcpy's. Each result is checked against the reference first.
//
// The images are those of ResNet-50's first layers; they fit the second- or third-level cache, as in a network.
#include <benchmark/benchmark.h>
#include <omp.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "kernels/quantized_kernels.h"
#include "support/rng.h"

namespace torchquant::test {
namespace {

using kernels::ElementType;
using kernels::ImageLayout;
using kernels::IndexRange;
using kernels::QuantizedKernels;

constexpr kernels::QRange kRange{0.0f, 255.0f};
constexpr kernels::OutputSpec kOutput{
    ElementType::kUInt8, 100.0f, kRange, {numerics::Activation::kNone, {}, 1.0f, 1.0f}};

// A kernel on prepared inputs: `parts` units of work, of which run() does some.
struct Work {
  std::string name;
  int64_t parts;
  int64_t bytes;  // read and written
  std::vector<uint8_t> in[2];
  std::vector<uint8_t> out;
  std::function<void(Work&, const QuantizedKernels&, IndexRange)> run;
};

std::vector<uint8_t> codes(int64_t n, uint64_t seed) {
  Random random(seed);
  std::vector<uint8_t> result(n);
  for (uint8_t& code : result) code = static_cast<uint8_t>(random.integer(0, 255));
  return result;
}

std::vector<uint8_t> floats(int64_t n, uint64_t seed) {
  const std::vector<float> values = bell_values(n, 1.0f, seed);
  std::vector<uint8_t> bytes(n * sizeof(float));
  memcpy(bytes.data(), values.data(), bytes.size());
  return bytes;
}

Work quantize_image() {
  constexpr int64_t kSize = 224, kChannels = 3, kPitch = (kSize + 6) * kChannels;
  Work work{"quantize_image/224x224x3",
            kSize,
            kSize * kSize * kChannels * 5,
            {floats(kSize * kSize * kChannels, 1), {}},
            std::vector<uint8_t>((kSize + 6) * kPitch),
            nullptr};
  work.run = [](Work& w, const QuantizedKernels& table, IndexRange rows) {
    table.quantize_image({kChannels,
                          reinterpret_cast<const float*>(w.in[0].data()),
                          {kSize * kSize * kChannels, kSize * kSize, kSize, 1},
                          numerics::make_qparams(0.02f, 114.0f, kRange),
                          kRange,
                          w.out.data() + 3 * kPitch + 3 * kChannels,
                          {kSize, kSize, kChannels, kPitch, 0}},
                         rows);
  };
  return work;
}

Work dequantize_image() {
  constexpr int64_t kSize = 56, kChannels = 256, kCount = kSize * kSize * kChannels;
  Work work{"dequantize_image/56x56x256",     kSize,  kCount * 5, {codes(kCount, 1), {}},
            std::vector<uint8_t>(kCount * 4), nullptr};
  work.run = [](Work& w, const QuantizedKernels& table, IndexRange rows) {
    table.dequantize_image({kChannels,
                            w.in[0].data(),
                            ElementType::kUInt8,
                            kernels::dense_image(kSize, kSize, kChannels),
                            numerics::make_qparams(0.02f, 114.0f, kRange),
                            reinterpret_cast<float*>(w.out.data()),
                            {kCount, kSize * kSize, kSize, 1}},
                           rows);
  };
  return work;
}

Work copy_image() {
  constexpr int64_t kSize = 56, kChannels = 64, kCount = kSize * kSize * kChannels;
  Work work{"copy_image/56x56x64 into 256",   kSize,  kCount * 2, {codes(kCount, 1), {}},
            std::vector<uint8_t>(4 * kCount), nullptr};
  work.run = [](Work& w, const QuantizedKernels& table, IndexRange rows) {
    table.copy_image({kChannels, w.in[0].data(), kernels::dense_image(kSize, kSize, kChannels), nullptr, nullptr,
                      w.out.data(), kernels::dense_image(kSize, kSize, 4 * kChannels)},
                     rows);
  };
  return work;
}

Work max_pool() {
  constexpr int64_t kSize = 112, kChannels = 64, kOut = kSize / 2;
  Work work{"max_pool/3x3s2 112x112x64",
            kOut * kOut,
            kSize * kSize * kChannels * 5 / 4,
            {codes(kSize * kSize * kChannels, 1), {}},
            std::vector<uint8_t>(kOut * kOut * kChannels),
            nullptr};
  work.run = [](Work& w, const QuantizedKernels& table, IndexRange pixels) {
    table.max_pool({kChannels,
                    {3, 2, 1, 1},
                    {3, 2, 1, 1},
                    w.in[0].data(),
                    kernels::dense_image(kSize, kSize, kChannels),
                    ElementType::kUInt8,
                    0,
                    w.out.data(),
                    kernels::dense_image(kOut, kOut, kChannels)},
                   pixels);
  };
  return work;
}

Work avg_pool(int64_t out_size) {
  constexpr int64_t kSize = 56, kChannels = 256;
  static const auto windows = [](int64_t out) {
    std::vector<kernels::PoolWindow> result;
    for (int64_t o = 0; o < out; ++o) result.push_back({o * kSize / out, (o + 1) * kSize / out, kSize / out});
    return result;
  };
  Work work{"avg_pool/56x56x256 to " + std::to_string(out_size),
            out_size * out_size,
            kSize * kSize * kChannels,
            {codes(kSize * kSize * kChannels, 1), {}},
            std::vector<uint8_t>(out_size * out_size * kChannels),
            nullptr};
  work.run = [out_size, axis = windows(out_size)](Work& w, const QuantizedKernels& table, IndexRange pixels) {
    table.avg_pool(
        {kChannels, axis.data(), axis.data(), 0, w.in[0].data(), kernels::dense_image(kSize, kSize, kChannels),
         ElementType::kUInt8, 114, 0.8f, kOutput, w.out.data(), kernels::dense_image(out_size, out_size, kChannels)},
        pixels);
  };
  return work;
}

Work resize_linear() {
  constexpr int64_t kSize = 65, kChannels = 64, kOut = 130;
  static const auto taps = [] {
    std::vector<numerics::LinearTap> result;
    for (int64_t o = 0; o < kOut; ++o) result.push_back(numerics::linear_tap(kSize, kOut, o, 0.5f, false));
    return result;
  }();
  Work work{"resize_linear/65x65x64 to 130",
            kOut,
            (kSize * kSize + kOut * kOut) * kChannels,
            {codes(kSize * kSize * kChannels, 1), {}},
            std::vector<uint8_t>(kOut * kOut * kChannels),
            nullptr};
  work.run = [](Work& w, const QuantizedKernels& table, IndexRange rows) {
    table.resize_linear(
        {kChannels, w.in[0].data(), ElementType::kUInt8, kernels::dense_image(kSize, kSize, kChannels), 114,
         taps.data(), taps.data(), 0.8f, kOutput, w.out.data(), kernels::dense_image(kOut, kOut, kChannels)},
        rows);
  };
  return work;
}

constexpr int64_t kElements = 56 * 56 * 256;

Work add() {
  Work work{
      "add",  kElements, 3 * kElements, {codes(kElements, 1), codes(kElements, 2)}, std::vector<uint8_t>(kElements),
      nullptr};
  work.run = [](Work& w, const QuantizedKernels& table, IndexRange range) {
    table.add({{w.in[0].data(), ElementType::kUInt8, 100},
               {w.in[1].data(), ElementType::kUInt8, 90},
               0.7f,
               0.6f,
               kOutput,
               w.out.data()},
              range);
  };
  return work;
}

Work mul() {
  Work work = add();
  work.name = "mul";
  work.run = [](Work& w, const QuantizedKernels& table, IndexRange range) {
    table.mul({{w.in[0].data(), ElementType::kUInt8, 100},
               {w.in[1].data(), ElementType::kUInt8, 90},
               0.01f,
               kOutput,
               w.out.data()},
              range);
  };
  return work;
}

Work lookup() {
  Work work{"lookup", kElements, 2 * kElements, {codes(kElements, 1), codes(256, 3)}, std::vector<uint8_t>(kElements),
            nullptr};
  work.run = [](Work& w, const QuantizedKernels& table, IndexRange range) {
    table.lookup({w.in[0].data(), ElementType::kUInt8, w.in[1].data(), 1, w.out.data()}, range);
  };
  return work;
}

// fn(begin, end) on equal parts of [0, parts), one a thread.
template <typename Fn>
void parallel(int threads, int64_t parts, Fn&& fn) {
#pragma omp parallel num_threads(threads)
  {
    const int64_t thread = omp_get_thread_num();
    fn(parts * thread / threads, parts * (thread + 1) / threads);
  }
}

// Seconds that a copy takes which reads and writes `bytes` in all, in the best of a few tries.
double copy_seconds(int threads, int64_t bytes) {
  const std::vector<uint8_t> from(bytes / 2, 1);
  std::vector<uint8_t> to(bytes / 2);
  double best = 1e9;
  for (int i = 0; i < 50; ++i) {
    const auto start = std::chrono::steady_clock::now();
    parallel(threads, static_cast<int64_t>(to.size()), [&](int64_t begin, int64_t end) {
      memcpy(to.data() + begin, from.data() + begin, static_cast<size_t>(end - begin));
    });
    benchmark::DoNotOptimize(to.data());
    best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  return best;
}

void bench(benchmark::State& state, Work work, kernels::Isa isa, int threads) {
  work.run(work, kernels::quantized_kernels(kernels::Isa::kReference), {0, work.parts});
  const std::vector<uint8_t> want = work.out;
  std::fill(work.out.begin(), work.out.end(), 0);
  const QuantizedKernels& table = kernels::quantized_kernels(isa);
  const double copy = copy_seconds(threads, work.bytes);
  double best = 1e9;
  for (auto _ : state) {
    const auto start = std::chrono::steady_clock::now();
    parallel(threads, work.parts, [&](int64_t begin, int64_t end) { work.run(work, table, {begin, end}); });
    best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  if (work.out != want) return state.SkipWithError("differs from the reference");
  state.SetBytesProcessed(state.iterations() * work.bytes);
  state.counters["best_us"] = best * 1e6;
  state.counters["of_copy"] = copy / best;
}

const bool kRegistered = [] {
  for (const Work& work : {quantize_image(), dequantize_image(), copy_image(), max_pool(), avg_pool(1), avg_pool(28),
                           resize_linear(), add(), mul(), lookup()}) {
    for (const kernels::Isa isa : kernels::available_isas()) {
      for (const int threads : {1, 2}) {
        const std::string name = work.name + "/" + kernels::isa_name(isa) + "/" + std::to_string(threads) +
                                 (threads == 1 ? " thread" : " threads");
        benchmark::RegisterBenchmark(name.c_str(), bench, work, isa, threads)->UseRealTime();
      }
    }
  }
  return true;
}();

}  // namespace
}  // namespace torchquant::test
