// The integer convolution engine for AVX2: gathers the inputs of a tile as int16, multiplies them with weights widened
// when they were packed, and finishes from accumulators in memory. Reached through kernels/integer_conv.h. Compiled
// without instruction-set flags: only the kernels that it calls have them.
#if defined(__x86_64__)

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "kernels/aligned_buffer.h"
#include "kernels/cpu/conv_panels.h"
#include "kernels/cpu/conv_tiling.h"
#include "kernels/cpu/finish_tile.h"
#include "kernels/cpu/int16_tile.h"
#include "kernels/cpu/integer_conv_engines.h"

namespace torchquant::kernels::avx2 {
namespace {

constexpr int64_t kHalves = kPanelChannels / kTileChannels;

// The weights of one phase: [panel][half][pair][16 channels][2 inputs], inputs in the order of taps, then channels.
// Depthwise: [16 channels][pair of taps][2][16].
struct PhasePanels {
  int64_t pairs;
  AlignedBuffer<int16_t> weight;
};

AlignedBuffer<int16_t> zeros(int64_t n) {
  AlignedBuffer<int16_t> buffer = make_aligned<int16_t>(n);
  std::memset(buffer.get(), 0, n * sizeof(int16_t));
  return buffer;
}

PhasePanels pack_phase(const ConvSpec& spec, const ConvPhase& phase, const std::vector<Panel>& panels,
                       const ConvWeight& weight) {
  const int64_t inputs = group_inputs(spec);
  const auto taps = static_cast<int64_t>(phase.taps.size());
  const int64_t pairs = (taps * inputs + 1) / 2;
  const int64_t half_size = pairs * 2 * kTileChannels;
  PhasePanels packed{pairs, zeros(static_cast<int64_t>(panels.size()) * kHalves * half_size)};
  for (size_t p = 0; p < panels.size(); ++p) {
    for (int64_t n = 0; n < panels[p].channels; ++n) {
      const ChannelWeights source = channel_weights(spec, weight, panels[p].out_channel + n);
      int16_t* target = packed.weight.get() + (static_cast<int64_t>(p) * kHalves + n / kTileChannels) * half_size;
      for (int64_t k = 0; k < taps * inputs; ++k) {
        const ConvTap& tap = phase.taps[k / inputs];
        target[(k / 2 * kTileChannels + n % kTileChannels) * 2 + k % 2] =
            source.data[tap.ky * weight.strides[2] + tap.kx * weight.strides[3] + k % inputs * source.step];
      }
    }
  }
  return packed;
}

PhasePanels pack_depthwise(const ConvSpec& spec, const ConvPhase& phase, const ConvWeight& weight) {
  const auto taps = static_cast<int64_t>(phase.taps.size());
  const int64_t pairs = (taps + 1) / 2;
  const int64_t blocks = (spec.out_channels + kTileChannels - 1) / kTileChannels;
  PhasePanels packed{pairs, zeros(blocks * pairs * 32)};
  for (int64_t i = 0; i < blocks * pairs * 32; ++i) {
    const int64_t channel = i / (pairs * 32) * kTileChannels + depthwise_pair_channel(i % 32);
    const int64_t t = i / 32 % pairs * 2 + depthwise_pair_tap(i % 32);
    if (channel >= spec.out_channels || t >= taps) continue;
    const ConvTap& tap = phase.taps[t];
    packed.weight[i] =
        weight.data[channel * weight.strides[0] + tap.ky * weight.strides[2] + tap.kx * weight.strides[3]];
  }
  return packed;
}

class Weight final : public PackedConv {
 public:
  Weight(const ConvSpec& spec, const ConvWeight& weight)
      : spec_(spec),
        panels_(is_depthwise(spec) ? depthwise_panels(spec) : list_panels(spec)),
        phases_(conv_phases(spec)) {
    for (const ConvPhase& phase : phases_) {
      packed_.push_back(is_depthwise(spec) ? pack_depthwise(spec, phase, weight)
                                           : pack_phase(spec, phase, panels_, weight));
    }
  }

  int64_t bytes() const override {
    int64_t total = 0;
    for (const PhasePanels& packed : packed_) {
      total += static_cast<int64_t>(panels_.size()) * packed.pairs * 2 * kPanelChannels *
               static_cast<int64_t>(sizeof(int16_t));
    }
    return total;
  }
  const char* kernel() const override { return "avx2"; }
  Border input_border(const ImageLayout& in, const ImageLayout& out) const override {
    return conv_border(phases_, in, out);
  }
  std::shared_ptr<const ConvPlan> plan(const ConvProblem& problem) const override;

  const ConvSpec& spec() const { return spec_; }
  const std::vector<Panel>& panels() const { return panels_; }
  const std::vector<ConvPhase>& phases() const { return phases_; }
  const std::vector<PhasePanels>& packed() const { return packed_; }

 private:
  // A depthwise panel reads the channels that it writes.
  static std::vector<Panel> depthwise_panels(const ConvSpec& spec) {
    std::vector<Panel> panels;
    for (int64_t c = 0; c < spec.out_channels; c += kPanelChannels) {
      panels.push_back({c, c, std::min(kPanelChannels, spec.out_channels - c)});
    }
    return panels;
  }

  ConvSpec spec_;
  std::vector<Panel> panels_;
  std::vector<ConvPhase> phases_;
  std::vector<PhasePanels> packed_;  // of each phase
};

struct PlannedPhase {
  TiledPhase tiled;
  Segments segments;
  std::vector<int64_t> offsets;  // of segments; depthwise: of taps, an even number
};

class Plan final : public ConvPlan {
 public:
  Plan(std::shared_ptr<const Weight> weight, const ConvProblem& problem)
      : weight_(std::move(weight)),
        problem_(problem),
        multiplier_(spread_channels(problem.epilogue.multiplier, weight_->panels())),
        bias_(spread_channels(problem.epilogue.bias, weight_->panels())),
        out_size_(problem.epilogue.output.type == ElementType::kFloat32 ? 4 : 1),
        depthwise_(is_depthwise(weight_->spec())) {
    for (const ConvPhase& phase : weight_->phases()) add_phase(phase);
  }

  Border input_border() const override { return weight_->input_border(problem_.in, problem_.out); }
  int64_t tasks() const override { return static_cast<int64_t>(parts_.size()); }

  using ConvPlan::run;
  void run(const ConvOperands& operands, IndexRange tasks) const override {
    const Images images{static_cast<const uint8_t*>(operands.x), static_cast<uint8_t*>(operands.out),
                        static_cast<const uint8_t*>(operands.residual), operands.row_scale};
    for (int64_t task = tasks.begin; task < tasks.end; ++task) run_part(images, parts_[task]);
  }

 private:
  struct Images {
    const uint8_t* x;
    uint8_t* out;
    const uint8_t* residual;
    const float* row_scale;
  };
  struct TilePlace {
    const PixelTile* tile;
    int64_t image;
  };

  void add_phase(const ConvPhase& phase) {
    const ConvSpec& spec = weight_->spec();
    const bool rows = !depthwise_ && rows_are_contiguous(spec) && problem_.in.pixel_pitch == spec.in_channels;
    const Segments segments = rows ? row_segments(spec) : tap_segments(spec, phase);
    PlannedPhase planned{tile_phase(phase, problem_, 2 * kTilePixels), segments,
                         segment_offsets(segments, phase, problem_.in)};
    if (depthwise_ && planned.offsets.size() % 2 != 0) planned.offsets.push_back(planned.offsets.back());
    const auto panels = static_cast<int64_t>(weight_->panels().size());
    const int64_t depth = segments.count * segments.bytes;
    const PhaseWork work{planned.tiled.count(), panels, depth, 2 * panels * depth * kPanelChannels,
                         problem_.batch * problem_.in.height * problem_.in.width * spec.in_channels};
    if (work.tiles > 0) append_parts(static_cast<int64_t>(phases_.size()), work, problem_.threads, parts_);
    phases_.push_back(std::move(planned));
  }

  void run_part(const Images& images, const ConvPart& part) const {
    const PlannedPhase& phase = phases_[part.phase];
    const PhasePanels& packed = weight_->packed()[part.phase];
    const auto each = static_cast<int64_t>(phase.tiled.tiles.size());
    alignas(64) int32_t accumulators[2 * kTilePixels * kPanelChannels] = {};
    for (int64_t t = part.tiles.begin; t < part.tiles.end; ++t) {
      const TilePlace place{&phase.tiled.tiles[t % each], t / each};
      for (int64_t p = part.panels.begin; p < part.panels.end; ++p) {
        if (depthwise_) {
          multiply_depthwise(images, phase, packed, place, p, accumulators);
        } else {
          const int64_t group = weight_->panels()[p].in_channel;
          const bool again = p > part.panels.begin && weight_->panels()[p - 1].in_channel == group;
          int16_t* inputs = scratch(2 * kTilePixels * 2 * packed.pairs);
          if (!again) gather(images, phase, packed, place, group, inputs);
          multiply(packed, place, p, inputs, accumulators);
        }
        finish(images, phase, place, weight_->panels()[p], p, accumulators);
      }
    }
  }

  // A thread keeps the buffer that its largest layer needed, so that later runs allocate nothing.
  static int16_t* scratch(int64_t n) {
    thread_local std::vector<int16_t> buffer;
    if (static_cast<int64_t>(buffer.size()) < n) buffer.resize(n);
    return buffer.data();
  }

  static int64_t run_pixels(const PixelTile& tile, int run) {
    const int64_t first = (tile.pixels + 1) / 2;
    return run == 0 ? first : tile.pixels - first;
  }

  void gather(const Images& images, const PlannedPhase& phase, const PhasePanels& packed, const TilePlace& place,
              int64_t channel, int16_t* inputs) const {
    for (int run = 0; run < 2; ++run) {
      for (int64_t i = 0; i < run_pixels(*place.tile, run); ++i) {
        const uint8_t* x = images.x + place.image * phase.tiled.in.image_pitch + place.tile->in[run] +
                           i * phase.tiled.in_step + channel;
        int16_t* target = inputs;
        for (const int64_t offset : phase.offsets) {
          widen(x + offset, problem_.x_type, phase.segments.bytes, problem_.x_zero_point, target);
          target += phase.segments.bytes;
        }
        inputs += 2 * packed.pairs;
        if (target < inputs) *target = 0;
      }
    }
  }

  void multiply(const PhasePanels& packed, const TilePlace& place, int64_t panel, const int16_t* inputs,
                int32_t* accumulators) const {
    const int64_t first = run_pixels(*place.tile, 0);
    for (int run = 0; run < 2; ++run) {
      const int64_t pixels = run_pixels(*place.tile, run);
      if (pixels == 0) continue;
      for (int64_t half = 0; half < kHalves; ++half) {
        compute_tile({inputs + run * first * 2 * packed.pairs, 2 * packed.pairs, pixels,
                      packed.weight.get() + (panel * kHalves + half) * packed.pairs * 2 * kTileChannels, packed.pairs,
                      accumulators + run * first * kPanelChannels + half * kTileChannels});
      }
    }
  }

  void multiply_depthwise(const Images& images, const PlannedPhase& phase, const PhasePanels& packed,
                          const TilePlace& place, int64_t panel, int32_t* accumulators) const {
    const Panel& channels = weight_->panels()[panel];
    for (int run = 0; run < 2; ++run) {
      const uint8_t* x =
          images.x + place.image * phase.tiled.in.image_pitch + place.tile->in[run] + channels.in_channel;
      for (int64_t i = 0; i < run_pixels(*place.tile, run); ++i) {
        for (int64_t half = 0; half * kTileChannels < channels.channels; ++half) {
          compute_depthwise({x + half * kTileChannels, problem_.x_type, phase.offsets.data(), packed.pairs,
                             channels.channels - half * kTileChannels, problem_.x_zero_point,
                             packed.weight.get() + (panel * kHalves + half) * packed.pairs * 32,
                             accumulators + half * kTileChannels});
        }
        x += phase.tiled.in_step;
        accumulators += kPanelChannels;
      }
    }
  }

  void finish(const Images& images, const PlannedPhase& phase, const TilePlace& place, const Panel& panel, int64_t p,
              const int32_t* accumulators) const {
    const TiledPhase& tiled = phase.tiled;
    for (int run = 0; run < 2; ++run) {
      const int64_t pixels = run_pixels(*place.tile, run);
      if (pixels == 0) continue;
      Residual residual = problem_.epilogue.residual;
      residual.data = nullptr;
      if (problem_.residual) {
        residual.data =
            images.residual + place.image * tiled.residual.image_pitch + place.tile->residual[run] + panel.out_channel;
      }
      const int64_t out = place.image * tiled.out.image_pitch + place.tile->out[run] + panel.out_channel;
      const float* row_scale =
          images.row_scale == nullptr ? nullptr : images.row_scale + place.tile->out[run] / tiled.out_step;
      finish_tile({accumulators, pixels, panel.channels, multiplier_.data() + p * kPanelChannels,
                   bias_.data() + p * kPanelChannels, row_scale, residual, tiled.residual_step,
                   &problem_.epilogue.output, images.out + out * out_size_, tiled.out_step * out_size_});
      accumulators += pixels * kPanelChannels;
    }
  }

  std::shared_ptr<const Weight> weight_;
  ConvProblem problem_;
  std::vector<float> multiplier_;
  std::vector<float> bias_;
  int64_t out_size_;
  bool depthwise_;
  std::vector<PlannedPhase> phases_;
  std::vector<ConvPart> parts_;
};

std::shared_ptr<const ConvPlan> Weight::plan(const ConvProblem& problem) const {
  return std::make_shared<Plan>(std::static_pointer_cast<const Weight>(shared_from_this()), problem);
}

}  // namespace

std::shared_ptr<const PackedConv> pack_conv(const ConvSpec& spec, const ConvWeight& weight) {
  return std::make_shared<Weight>(spec, weight);
}

}  // namespace torchquant::kernels::avx2

#endif  // defined(__x86_64__)
