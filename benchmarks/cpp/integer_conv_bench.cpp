// Speed of the integer convolution engine on the layers of ResNet-50 and BERT-base, on depthwise and grouped ones, and
// on linear layers of 4096 x 4096: multiply-adds per second, and their share of what the VNNI instruction reaches on
// this machine in the same run ("of_peak"). ResNet50 runs all 54 layers in a row with weights of their own, as cold as
// in a network, and shares each layer's tasks among threads. benchmarks/kernels.py runs it and keeps the result.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "kernels/integer_conv.h"
#include "support/rng.h"

namespace torchquant::test {
namespace {

using kernels::ConvSpec;
using kernels::ElementType;
using kernels::Isa;

// A layer as a table of shapes names it; `side` is that of the output.
struct Shape {
  std::string name;
  int64_t times;  // in ResNet-50
  int64_t kernel;
  int64_t stride;
  int64_t in_channels;
  int64_t out_channels;
  int64_t height;
  int64_t width;
  bool residual = false;
  int64_t groups = 1;
  int64_t pixel_gap = 0;  // bytes between the inputs of two pixels
};

const std::vector<Shape>& resnet50_shapes() {
  static const std::vector<Shape> shapes = {
      {"conv1 7x7s2 3>64 @112", 1, 7, 2, 3, 64, 112, 112},
      {"1x1 64>64 @56", 1, 1, 1, 64, 64, 56, 56},
      {"3x3 64 @56", 3, 3, 1, 64, 64, 56, 56},
      {"1x1 64>256 @56", 1, 1, 1, 64, 256, 56, 56},
      {"1x1+res 64>256 @56", 3, 1, 1, 64, 256, 56, 56, true},
      {"1x1 256>64 @56", 2, 1, 1, 256, 64, 56, 56},
      {"1x1 256>128 @56", 1, 1, 1, 256, 128, 56, 56},
      {"3x3s2 128 @28", 1, 3, 2, 128, 128, 28, 28},
      {"1x1s2 256>512 @28", 1, 1, 2, 256, 512, 28, 28},
      {"1x1+res 128>512 @28", 4, 1, 1, 128, 512, 28, 28, true},
      {"1x1 512>128 @28", 3, 1, 1, 512, 128, 28, 28},
      {"3x3 128 @28", 3, 3, 1, 128, 128, 28, 28},
      {"1x1 512>256 @28", 1, 1, 1, 512, 256, 28, 28},
      {"3x3s2 256 @14", 1, 3, 2, 256, 256, 14, 14},
      {"1x1s2 512>1024 @14", 1, 1, 2, 512, 1024, 14, 14},
      {"1x1+res 256>1024 @14", 6, 1, 1, 256, 1024, 14, 14, true},
      {"1x1 1024>256 @14", 5, 1, 1, 1024, 256, 14, 14},
      {"3x3 256 @14", 5, 3, 1, 256, 256, 14, 14},
      {"1x1 1024>512 @14", 1, 1, 1, 1024, 512, 14, 14},
      {"3x3s2 512 @7", 1, 3, 2, 512, 512, 7, 7},
      {"1x1s2 1024>2048 @7", 1, 1, 2, 1024, 2048, 7, 7},
      {"1x1+res 512>2048 @7", 3, 1, 1, 512, 2048, 7, 7, true},
      {"1x1 2048>512 @7", 2, 1, 1, 2048, 512, 7, 7},
      {"3x3 512 @7", 2, 3, 1, 512, 512, 7, 7},
      {"fc 2048>1000", 1, 1, 1, 2048, 1000, 1, 1},
  };
  return shapes;
}

const std::vector<Shape>& other_shapes() {
  static const std::vector<Shape> shapes = {
      {"BERT 768>2304, 128 tokens", 0, 1, 1, 768, 2304, 1, 128},
      {"BERT 768>768, 128 tokens", 0, 1, 1, 768, 768, 1, 128},
      {"BERT 768>3072, 128 tokens", 0, 1, 1, 768, 3072, 1, 128},
      {"BERT 3072>768, 128 tokens", 0, 1, 1, 3072, 768, 1, 128},
      {"linear 4096>4096, 1 row", 0, 1, 1, 4096, 4096, 1, 1},
      {"linear 4096>4096, 16 rows", 0, 1, 1, 4096, 4096, 1, 16},
      {"linear 4096>4096, 16 rows an odd number of lines apart", 0, 1, 1, 4096, 4096, 1, 16, false, 1, 64},
      {"linear 4096>4096, 128 rows", 0, 1, 1, 4096, 4096, 1, 128},
      {"linear 4096>4096, 128 rows an odd number of lines apart", 0, 1, 1, 4096, 4096, 1, 128, false, 1, 64},
      {"linear 4096>4096, 512 rows", 0, 1, 1, 4096, 4096, 1, 512},
      {"linear 4096>4096, 512 rows an odd number of lines apart", 0, 1, 1, 4096, 4096, 1, 512, false, 1, 64},
      {"depthwise 3x3 32 @112", 0, 3, 1, 32, 32, 112, 112, false, 32},
      {"depthwise 3x3 144 @56", 0, 3, 1, 144, 144, 56, 56, false, 144},
      {"depthwise 3x3s2 144 @28", 0, 3, 2, 144, 144, 28, 28, false, 144},
      {"depthwise 3x3 384 @14", 0, 3, 1, 384, 384, 14, 14, false, 384},
      {"depthwise 5x5 672 @14", 0, 5, 1, 672, 672, 14, 14, false, 672},
      {"depthwise 5x5s2 672 @7", 0, 5, 2, 672, 672, 7, 7, false, 672},
      {"depthwise 7x7 96 @56", 0, 7, 1, 96, 96, 56, 56, false, 96},
      {"grouped 3x3 128, 32 groups @56", 0, 3, 1, 128, 128, 56, 56, false, 32},
      {"grouped 3x3 512, 32 groups @14", 0, 3, 1, 512, 512, 14, 14, false, 32},
      {"MobileNetV2 1x1 16>96 @112", 0, 1, 1, 16, 96, 112, 112},
      {"MobileNetV2 1x1 96>24 @56", 0, 1, 1, 96, 24, 56, 56},
      {"MobileNetV2 1x1 960>160 @7", 0, 1, 1, 960, 160, 7, 7},
      {"MobileNetV2 conv1 3x3s2 3>32", 0, 3, 2, 3, 32, 112, 112},
  };
  return shapes;
}

bool has(Isa isa) {
  const auto isas = kernels::available_isas();
  return std::find(isas.begin(), isas.end(), isa) != isas.end();
}

// `products`: of one instruction.
template <typename Dots>
double products_per_second(int64_t products, Dots twelve_dots) {
  constexpr int64_t kRounds = 100000;
  double best = 0.0;
  for (int trial = 0; trial < 5; ++trial) {
    const auto start = std::chrono::steady_clock::now();
    for (int64_t i = 0; i < kRounds; ++i) twelve_dots();
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    best = std::max(best, static_cast<double>(kRounds * 12 * products) / seconds.count());
  }
  return best;
}

// What one thread reaches with the bare instruction, in multiply-adds per second: that of the instruction set itself,
// or of the machine where the set has none; 0 where the machine has none.
double vnni_peak(Isa isa) {
#if defined(__x86_64__)
#define TQ_TWELVE(DOT) DOT(0) DOT(1) DOT(2) DOT(3) DOT(4) DOT(5) DOT(6) DOT(7) DOT(8) DOT(9) DOT(10) DOT(11)
#define TQ_CLOBBERED "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11"
#define TQ_DOT256(n) "%{vex%} vpdpbusd %%ymm14, %%ymm15, %%ymm" #n "\n"
#define TQ_DOT512(n) "vpdpbusd %%zmm30, %%zmm31, %%zmm" #n "\n"
  if (isa == Isa::kAvxVnni) return products_per_second(32, [] { asm volatile(TQ_TWELVE(TQ_DOT256)::: TQ_CLOBBERED); });
  if (has(Isa::kAvx512Vnni)) return products_per_second(64, [] { asm volatile(TQ_TWELVE(TQ_DOT512)::: TQ_CLOBBERED); });
#undef TQ_DOT512
#undef TQ_DOT256
#undef TQ_CLOBBERED
#undef TQ_TWELVE
#endif
  return 0.0;
}

// Where layers keep their images. The layers of a network take turns with the same three, as in an arena: what one has
// written the next reads.
class Images {
 public:
  uint8_t* at(int64_t index, int64_t bytes) {
    std::vector<uint8_t>& buffer = buffers_[index % 3];
    if (bytes > kBytes) throw std::length_error("an image is larger than the buffers");
    buffer.reserve(kBytes);  // so that it stays where it is
    while (static_cast<int64_t>(buffer.size()) < bytes) {
      buffer.push_back(static_cast<uint8_t>(random_.integer(0, 255)));
    }
    return buffer.data();
  }

 private:
  static constexpr int64_t kBytes = int64_t{9} << 18;
  std::vector<uint8_t> buffers_[3];
  Random random_{9};
};

// A planned layer with weights of its own.
class Layer {
 public:
  Layer(const Shape& shape, Isa isa, int threads, Images& images, int64_t position) {
    const int64_t padding = shape.kernel / 2;
    const ConvSpec spec{shape.in_channels,
                        shape.out_channels,
                        shape.groups,
                        false,
                        {shape.height == 1 ? 1 : shape.kernel, shape.stride, shape.height == 1 ? 0 : padding},
                        {shape.kernel, shape.stride, padding}};
    Random random(7);
    const int64_t depth = shape.in_channels / shape.groups * spec.height.kernel * spec.width.kernel;
    std::vector<int8_t> weight(shape.out_channels * depth);
    for (int8_t& w : weight) w = static_cast<int8_t>(random.integer(-127, 127));
    const int64_t taps = spec.height.kernel * spec.width.kernel;
    const auto packed = pack_conv(isa, spec, {weight.data(), {depth, taps, spec.width.kernel, 1}});
    const std::vector<float> multiplier(shape.out_channels, 1e-3f);
    const std::vector<float> bias(shape.out_channels, 100.0f);
    macs_ = static_cast<double>(shape.height * shape.width * shape.out_channels * depth);

    const kernels::ImageLayout out = kernels::dense_image(shape.height, shape.width, shape.out_channels);
    kernels::ImageLayout in = kernels::dense_image(shape.height == 1 ? 1 : shape.height * shape.stride,
                                                   shape.width * shape.stride, shape.in_channels + shape.pixel_gap);
    kernels::ConvProblem problem{1,
                                 in,
                                 out,
                                 std::nullopt,
                                 ElementType::kUInt8,
                                 0,
                                 {multiplier.data(),
                                  bias.data(),
                                  {nullptr, ElementType::kUInt8, 0, 0.4f},
                                  {ElementType::kUInt8, 0.0f, {0.0f, 255.0f}, numerics::no_activation()}},
                                 threads};
    if (shape.residual) problem.residual = out;
    const kernels::Border border = plan_conv(packed, problem)->input_border();
    in.row_pitch += (border.left + border.right) * in.pixel_pitch;
    in.image_pitch = in.row_pitch * (in.height + border.top + border.bottom);
    problem.in = in;
    plan_ = plan_conv(packed, problem);
    x_ = images.at(position, in.image_pitch + border.tail_bytes) + border.top * in.row_pitch +
         border.left * in.pixel_pitch;
    out_ = images.at(position + 1, out.image_pitch);
    if (shape.residual) residual_ = images.at(position + 2, out.image_pitch);
  }

  void run(kernels::IndexRange tasks) const { plan_->run(x_, out_, residual_, tasks); }
  int64_t tasks() const { return plan_->tasks(); }
  double macs() const { return macs_; }

 private:
  double macs_ = 0;
  std::shared_ptr<const kernels::ConvPlan> plan_;
  const uint8_t* x_ = nullptr;
  uint8_t* out_ = nullptr;
  const uint8_t* residual_ = nullptr;
};

void report(benchmark::State& state, double macs, double peak) {
  const double total = macs * static_cast<double>(state.iterations());
  state.counters["GMAC/s"] = benchmark::Counter(total / 1e9, benchmark::Counter::kIsRate);
  if (peak > 0) state.counters["of_peak"] = benchmark::Counter(total / peak, benchmark::Counter::kIsRate);
}

void bench_layer(benchmark::State& state, const Shape& shape, Isa isa) {
  Images images;
  const Layer layer(shape, isa, 1, images, 0);
  const double peak = vnni_peak(isa);
  for (auto _ : state) layer.run({0, layer.tasks()});
  report(state, layer.macs(), peak);
}

// Threads that take tasks of one layer after the other; none goes on before all tasks of a layer are done.
void run_network(const std::vector<Layer>& layers, int threads, std::vector<std::atomic<int64_t>>& next,
                 std::vector<std::atomic<int64_t>>& done) {
  const auto work = [&] {
    for (size_t l = 0; l < layers.size(); ++l) {
      const int64_t tasks = layers[l].tasks();
      for (int64_t task; (task = next[l].fetch_add(1)) < tasks;) {
        layers[l].run({task, task + 1});
        done[l].fetch_add(1);
      }
      while (done[l].load() < tasks) {
      }
    }
  };
  std::vector<std::thread> helpers;
  for (int t = 1; t < threads; ++t) helpers.emplace_back(work);
  work();
  for (std::thread& helper : helpers) helper.join();
}

void bench_resnet50(benchmark::State& state, Isa isa, int threads) {
  Images images;
  std::vector<Layer> layers;
  double macs = 0;
  for (const Shape& shape : resnet50_shapes()) {
    for (int64_t i = 0; i < shape.times; ++i) {
      layers.emplace_back(shape, isa, threads, images, static_cast<int64_t>(layers.size()));
      macs += layers.back().macs();
    }
  }
  const double peak = vnni_peak(isa) * threads;
  for (auto _ : state) {
    std::vector<std::atomic<int64_t>> next(layers.size());
    std::vector<std::atomic<int64_t>> done(layers.size());
    run_network(layers, threads, next, done);
  }
  report(state, macs, peak);
}

const int kRegistered = [] {
  for (const Isa isa : kernels::available_isas()) {
    if (isa != Isa::kAvx2 && isa != Isa::kAvxVnni && isa != Isa::kAvx512Vnni) continue;
    const std::string name = kernels::isa_name(isa);
    for (const auto* shapes : {&resnet50_shapes(), &other_shapes()}) {
      for (const Shape& shape : *shapes) {
        benchmark::RegisterBenchmark((name + "/" + shape.name).c_str(), bench_layer, shape, isa)
            ->Unit(benchmark::kMicrosecond);
      }
    }
    for (const int threads : {1, 2}) {
      benchmark::RegisterBenchmark((name + "/ResNet50/threads:" + std::to_string(threads)).c_str(), bench_resnet50, isa,
                                   threads)
          ->Unit(benchmark::kMillisecond)
          ->UseRealTime();
    }
  }
  return 0;
}();

}  // namespace
}  // namespace torchquant::test
