// The depthwise half of the AVX512-VNNI convolution engine: one filter per channel, channels in lanes. Reached through
// integer_conv_vnni.cpp.
#if defined(__x86_64__)

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <utility>
#include <vector>

#include "kernels/aligned_buffer.h"
#include "kernels/cpu/conv_tiling.h"
#include "kernels/cpu/finish_tile.h"
#include "kernels/cpu/vnni_codes.h"
#include "kernels/cpu/vnni_depthwise.h"
#include "kernels/cpu/vnni_engine.h"

namespace torchquant::kernels::avx512_vnni {
namespace {

// Weights for one kernel, block after block of 64 channels.
struct DepthwisePanels {
  const DepthwiseKernel* kernel;
  int64_t block_bytes;
  AlignedBuffer<int8_t> weight;
};

// Quads of one kernel row, and the outputs that each serves.
struct RowShape {
  int64_t quads;
  int64_t outputs;
  int64_t stride;
  int64_t taps;

  template <typename Fn>
  void for_each(Fn&& fn) const {
    for (int64_t q = 0; q < quads; ++q) {
      for (int64_t t = 0; t < outputs; ++t) {
        if (quad_serves(q, t, taps, stride)) fn(q, t);
      }
    }
  }
};

RowShape row_shape(const DepthwiseKernel& kernel, int64_t taps) {
  const int64_t span = (kernel.together - 1) * kernel.stride + taps;
  return {(span + 3) / 4, kernel.together, kernel.stride, taps};
}

DepthwisePanels pack_panels(const DepthwiseKernel& kernel, const ConvSpec& spec, const ConvWeight& weight) {
  const RowShape shape = row_shape(kernel, spec.width.kernel);
  int64_t pairs = 0;
  shape.for_each([&](int64_t, int64_t) { ++pairs; });
  const int64_t blocks = (spec.out_channels + kDepthwiseChannels - 1) / kDepthwiseChannels;
  const int64_t block_bytes = spec.height.kernel * pairs * kQuadBytes;
  DepthwisePanels panels{&kernel, block_bytes, make_aligned<int8_t>(blocks * block_bytes)};
  std::memset(panels.weight.get(), 0, blocks * block_bytes);
  int8_t* target = panels.weight.get();
  for (int64_t block = 0; block < blocks; ++block) {
    for (int64_t ky = 0; ky < spec.height.kernel; ++ky) {
      shape.for_each([&](int64_t quad, int64_t output) {
        for (int64_t i = 0; i < kQuadBytes; ++i) {
          const int64_t channel = block * kDepthwiseChannels + depthwise_channel(i / 64, i % 64 / 4);
          const int64_t kx = 4 * quad + i % 4 - output * shape.stride;
          if (channel < spec.out_channels && kx >= 0 && kx < spec.width.kernel) {
            target[i] = weight.data[channel * weight.strides[0] + ky * weight.strides[2] + kx * weight.strides[3]];
          }
        }
        target += kQuadBytes;
      });
    }
  }
  return panels;
}

class DepthwiseWeight final : public PackedConv {
 public:
  DepthwiseWeight(const ConvSpec& spec, const ConvWeight& weight)
      : spec_(spec),
        geometry_(conv_phases(spec)),
        any_{pack_panels(any_depthwise_kernel(false), spec, weight)},
        fast_{pack_panels(fast_kernel(spec), spec, weight)},
        sum_(spec.out_channels),
        magnitude_(spec.out_channels) {
    for (int64_t c = 0; c < spec.out_channels; ++c) {
      for (int64_t ky = 0; ky < spec.height.kernel; ++ky) {
        for (int64_t kx = 0; kx < spec.width.kernel; ++kx) {
          const int8_t w = weight.data[c * weight.strides[0] + ky * weight.strides[2] + kx * weight.strides[3]];
          sum_[c] += w;
          magnitude_[c] += std::abs(w);
        }
      }
    }
  }

  int64_t bytes() const override {
    return blocks() * (any_.block_bytes + fast_.block_bytes) + spec_.out_channels * 2 * sizeof(int32_t);
  }
  const char* kernel() const override { return "avx512_vnni"; }
  Border input_border(const ImageLayout& in, const ImageLayout& out) const override {
    return conv_border(geometry_, in, out);
  }
  std::shared_ptr<const ConvPlan> plan(const ConvProblem& problem) const override;

  const ConvSpec& spec() const { return spec_; }
  int64_t blocks() const { return (spec_.out_channels + kDepthwiseChannels - 1) / kDepthwiseChannels; }
  const DepthwisePanels& any() const { return any_; }
  const DepthwisePanels& fast() const { return fast_; }
  const std::vector<int32_t>& sum() const { return sum_; }
  const std::vector<int32_t>& magnitude() const { return magnitude_; }

 private:
  static const DepthwiseKernel& fast_kernel(const ConvSpec& spec) {
    return spec.width.dilation == 1 ? depthwise_kernel(spec.width.kernel, spec.width.stride)
                                    : any_depthwise_kernel(false);
  }

  ConvSpec spec_;
  std::vector<ConvPhase> geometry_;
  DepthwisePanels any_;
  DepthwisePanels fast_;
  std::vector<int32_t> sum_;
  std::vector<int32_t> magnitude_;
};

// Per-channel values of every block, once in the order of the lanes and once in that of the channels.
template <typename T>
struct BlockValues {
  explicit BlockValues(int64_t blocks) : lanes(make_aligned<T>(blocks * kDepthwiseChannels)) {
    std::memset(lanes.get(), 0, blocks * kDepthwiseChannels * sizeof(T));
    channels.resize(blocks * kDepthwiseChannels);
  }

  void set(int64_t channels_count, const T* values) {
    std::copy_n(values, channels_count, channels.begin());
    for (size_t i = 0; i < channels.size(); ++i) {
      const auto lane = static_cast<int64_t>(i) % kDepthwiseChannels;
      lanes[i] = channels[i - lane + depthwise_channel(lane / 16, lane % 16)];
    }
  }

  AlignedBuffer<T> lanes;
  std::vector<T> channels;
};

class DepthwisePlan final : public ConvPlan {
 public:
  DepthwisePlan(std::shared_ptr<const DepthwiseWeight> weight, const ConvProblem& problem)
      : weight_(std::move(weight)),
        problem_(problem),
        signed_input_(problem.x_type == ElementType::kInt8),
        out_size_(problem.epilogue.output.type == ElementType::kFloat32 ? 4 : 1),
        panels_(&weight_->fast()),
        kernel_(panels_->kernel),
        multiplier_(weight_->blocks()),
        bias_(weight_->blocks()),
        start_(weight_->blocks()) {
    const int64_t channels = weight_->spec().out_channels;
    if (signed_input_ || problem.out.width < kernel_->together) {
      use(weight_->any(), any_depthwise_kernel(signed_input_));
    }
    multiplier_.set(channels, problem.epilogue.multiplier);
    bias_.set(channels, problem.epilogue.bias);
    std::vector<int32_t> start(channels);
    const int32_t zero_point = problem.x_zero_point + (signed_input_ ? 128 : 0);
    for (int64_t c = 0; c < channels; ++c) start[c] = -zero_point * weight_->sum()[c];
    start_.set(channels, start.data());
    direct_ = !problem.residual && is_byte_clamp(problem.epilogue.output) && largest_value() < kLargestDirectValue;
    if (direct_) codes_ = code_vectors(problem.epilogue.output);
    // A lane does a multiply-add where a tile does 32 times as many, and spends as much again on its output.
    const int64_t rows = problem.batch * problem.out.height;
    const int64_t row_work = problem.out.width * (weight_->spec().height.kernel * weight_->spec().width.kernel + 16);
    append_parts(0,
                 {rows, weight_->blocks(), row_work, weight_->blocks() * panels_->block_bytes,
                  problem.batch * problem.in.height * problem.in.width * channels},
                 problem.threads, parts_);
  }

  Border input_border() const override { return weight_->input_border(problem_.in, problem_.out); }
  int64_t tasks() const override { return static_cast<int64_t>(parts_.size()); }

  using ConvPlan::run;
  void run(const ConvOperands& operands, IndexRange tasks) const override {
    const Images images{static_cast<const uint8_t*>(operands.x), static_cast<uint8_t*>(operands.out),
                        static_cast<const uint8_t*>(operands.residual)};
    for (int64_t task = tasks.begin; task < tasks.end; ++task) {
      const ConvPart& part = parts_[task];
      for (int64_t block = part.panels.begin; block < part.panels.end; ++block) {
        for (int64_t row = part.tiles.begin; row < part.tiles.end; ++row) run_row(images, block, row);
      }
    }
  }

 private:
  struct Images {
    const uint8_t* x;
    uint8_t* out;
    const uint8_t* residual;
  };

  float largest_value() const {
    float largest = 0.0f;
    for (int64_t c = 0; c < weight_->spec().out_channels; ++c) {
      const float acc = largest_accumulator(weight_->magnitude()[c]);
      largest = std::max(largest, std::fabs(multiplier_.channels[c]) * acc + std::fabs(bias_.channels[c]));
    }
    return largest;
  }

  int64_t block_channels(int64_t block) const {
    return std::min(kDepthwiseChannels, weight_->spec().out_channels - block * kDepthwiseChannels);
  }

  void run_row(const Images& images, int64_t block, int64_t row) const {
    const int64_t image = row / problem_.out.height;
    const int64_t y = row % problem_.out.height;
    const int64_t channel = block * kDepthwiseChannels;
    const ImageLayout& in = problem_.in;
    const ConvSpec& spec = weight_->spec();
    DepthwiseArgs args{};
    args.x = images.x + in.offset(image, y * spec.height.stride - spec.height.padding, -spec.width.padding) + channel;
    args.row_step = spec.height.dilation * in.row_pitch;
    args.tap_step = spec.width.dilation * in.pixel_pitch;
    args.x_step = spec.width.stride * in.pixel_pitch;
    args.rows = spec.height.kernel;
    args.taps = spec.width.kernel;
    args.weight = panels_->weight.get() + block * panels_->block_bytes;
    args.start = start_.lanes.get() + channel;
    args.multiplier = multiplier_.lanes.get() + channel;
    args.bias = bias_.lanes.get() + channel;
    args.codes = &codes_;
    args.mask = ~uint64_t{0} >> (kDepthwiseChannels - block_channels(block));
    args.pixels = problem_.out.width;
    args.out = images.out + (problem_.out.offset(image, y, 0) + channel) * out_size_;
    args.out_step = problem_.out.pixel_pitch * out_size_;
    if (direct_) return kernel_->codes(args);
    const uint8_t* residual = nullptr;
    if (problem_.residual) residual = images.residual + problem_.residual->offset(image, y, 0) + channel;
    run_indirect(args, residual, block);
  }

  // Through accumulators in memory, about kDepthwisePixels pixels at a time.
  void run_indirect(const DepthwiseArgs& row, const uint8_t* residual, int64_t block) const {
    alignas(64) int32_t accumulators[2 * kDepthwisePixels * 32];
    const int64_t parts = (row.pixels + kDepthwisePixels - 1) / kDepthwisePixels;
    for (int64_t part = 0; part < parts; ++part) {
      const int64_t first = row.pixels * part / parts;
      DepthwiseArgs args = row;
      args.x += first * args.x_step;
      args.pixels = row.pixels * (part + 1) / parts - first;
      args.accumulators = accumulators;
      kernel_->accumulators(args);
      const int64_t channels = block_channels(block);
      for (int64_t half = 0; half * 32 < channels; ++half) {
        finish(accumulators + half * kDepthwisePixels * 32, args.pixels, residual, first, block, half,
               row.out + first * row.out_step);
      }
    }
  }

  void finish(const int32_t* accumulators, int64_t pixels, const uint8_t* residual, int64_t first, int64_t block,
              int64_t half, uint8_t* out) const {
    const int64_t channel = block * kDepthwiseChannels + 32 * half;
    Residual added = problem_.epilogue.residual;
    added.data = nullptr;
    const int64_t residual_step = problem_.residual ? problem_.residual->pixel_pitch : 0;
    if (residual != nullptr) added.data = residual + first * residual_step + 32 * half;
    avx512::finish_tile({accumulators, pixels, std::min<int64_t>(32, weight_->spec().out_channels - channel),
                         multiplier_.channels.data() + channel, bias_.channels.data() + channel, nullptr, added,
                         residual_step, &problem_.epilogue.output, out + 32 * half * out_size_,
                         problem_.out.pixel_pitch * out_size_});
  }

  void use(const DepthwisePanels& panels, const DepthwiseKernel& kernel) {
    panels_ = &panels;
    kernel_ = &kernel;
  }

  std::shared_ptr<const DepthwiseWeight> weight_;
  ConvProblem problem_;
  bool signed_input_;
  int64_t out_size_;
  const DepthwisePanels* panels_;
  const DepthwiseKernel* kernel_;
  BlockValues<float> multiplier_;
  BlockValues<float> bias_;
  BlockValues<int32_t> start_;
  bool direct_ = false;  // codes straight from the kernel
  CodeVectors codes_{};
  std::vector<ConvPart> parts_;
};

std::shared_ptr<const ConvPlan> DepthwiseWeight::plan(const ConvProblem& problem) const {
  return std::make_shared<DepthwisePlan>(std::static_pointer_cast<const DepthwiseWeight>(shared_from_this()), problem);
}

}  // namespace

std::shared_ptr<const PackedConv> pack_depthwise(const ConvSpec& spec, const ConvWeight& weight) {
  return std::make_shared<DepthwiseWeight>(spec, weight);
}

}  // namespace torchquant::kernels::avx512_vnni

#endif  // defined(__x86_64__)
