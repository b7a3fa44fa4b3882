// The integer convolution engine for AVX512-VNNI and AVX-VNNI: packs weights into panels, plans a layer as tiles x
// panels and drives the tile kernels. Reached through kernels/integer_conv.h. Compiled without instruction-set flags:
// only the kernels that it calls have them.
#if defined(__x86_64__)

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "kernels/cpu/finish_tile.h"
#include "kernels/cpu/integer_conv_engines.h"
#include "kernels/cpu/vnni_codes.h"
#include "kernels/cpu/vnni_engine.h"
#include "kernels/cpu/vnni_panels.h"
#include "kernels/cpu/vnni_tile.h"

namespace torchquant::kernels::avx512_vnni {
namespace {

// What the engine takes from an instruction set.
struct Kernels {
  const char* name;  // as receipts print it
  int64_t tile_pixels;
  int64_t same_set_pixels;  // the same where all pixels want one set of L1
  bool joins_groups;        // has joined_kernels()
  bool finishes_tiles;      // has kernels for every TileOutput, not for kAccumulators alone
  const TileKernel* (*by_pixels)(bool signed_input, int64_t segment_steps, TileOutput output);
  FinishTile finish_tile;
};

constexpr Kernels kAvx512Vnni{"avx512_vnni",
                              kTilePixels,
                              kTilePixels / 2,
                              true,
                              true,
                              [](bool signed_input, int64_t segment_steps, TileOutput output) {
                                return tile_kernels(signed_input, segment_steps, output).data();
                              },
                              avx512::finish_tile};
constexpr Kernels kAvxVnni{
    "avx_vnni",
    avx_vnni::kTilePixels,
    avx_vnni::kTilePixels,  // it reads one run at a time
    false,
    false,
    [](bool signed_input, int64_t, TileOutput) { return avx_vnni::tile_kernels(signed_input).data(); },
    avx2::finish_tile};

// Whether 16 lanes hold whole groups whose inputs fit into one register: then a panel of several groups wastes nothing.
bool joins_groups(const ConvSpec& spec) {
  return spec.groups > 1 && 16 % group_outputs(spec) == 0 && group_inputs(spec) % 4 == 0 &&
         16 / group_outputs(spec) * group_inputs(spec) <= kJoinedBytes;
}

class Weight final : public PackedConv {
 public:
  Weight(const Kernels& kernels, const ConvSpec& spec, const ConvWeight& weight)
      : kernels_(kernels),
        spec_(spec),
        joined_(kernels.joins_groups && joins_groups(spec)),
        panels_(list_panels(spec, joined_)),
        phases_(conv_phases(spec)) {
    for (const ConvPhase& phase : phases_) packed_.push_back(pack_phase(spec, phase, panels_, weight));
  }

  int64_t bytes() const override {
    int64_t total = 0;
    for (const PhasePanels& packed : packed_) {
      total += static_cast<int64_t>(panels_.size()) *
               (packed.segments.panel_bytes() + kTileChannels * static_cast<int64_t>(2 * sizeof(int32_t)));
    }
    return total;
  }
  const char* kernel() const override { return kernels_.name; }
  std::shared_ptr<const ConvPlan> plan(const ConvProblem& problem) const override;

  Border input_border(const ImageLayout& in, const ImageLayout& out) const override {
    Border border = conv_border(phases_, in, out);
    for (const ConvPhase& phase : phases_) {
      const Segments wanted = segments(phase, in);
      border.tail_bytes = std::max(border.tail_bytes, 4 * stepped(wanted).steps_each - wanted.bytes);
    }
    // Both halves of a panel are read, even where the last one has channels for half of it only.
    if (joined_) border.tail_bytes = 2 * kJoinedBytes;
    return border;
  }

  Segments segments(const ConvPhase& phase, const ImageLayout& in) const {
    const bool rows = rows_are_contiguous(spec_) && in.pixel_pitch == spec_.in_channels;
    return rows ? row_segments(spec_) : tap_segments(spec_, phase);
  }

  const Kernels& kernels() const { return kernels_; }
  const ConvSpec& spec() const { return spec_; }
  bool joined() const { return joined_; }  // whether panels hold several groups
  const std::vector<Panel>& panels() const { return panels_; }
  const std::vector<ConvPhase>& phases() const { return phases_; }
  const std::vector<PhasePanels>& packed() const { return packed_; }

 private:
  const Kernels& kernels_;
  ConvSpec spec_;
  bool joined_;
  std::vector<Panel> panels_;
  std::vector<ConvPhase> phases_;
  std::vector<PhasePanels> packed_;  // of each phase
};

// Tiles that together fetch all of the panel that comes next into L2.
constexpr int64_t kFetchingTiles = 4;
// How far ahead of their use weights are fetched into L1 where a panel has fewer tiles: they come from beyond L2.
constexpr int64_t kAheadBeyondL2 = 16384;

// Pixels that lie a multiple of this apart share one set of L1, which has 8 to 12 places: more of them, read side by
// side, would push each other out at every step.
constexpr int64_t kSameSetBytes = 4096;

// A phase, cut for this image, with the weights and constants that its tiles use.
struct PlannedPhase {
  TiledPhase tiled;
  std::vector<int64_t> offsets;  // of the segments, in bytes from a pixel's base
  SteppedSegments segments;
  const int8_t* weight;
  AlignedBuffer<int8_t> repacked;  // where `weight` is not the packed one
  std::vector<int32_t> start;
};

class Plan final : public ConvPlan {
 public:
  Plan(std::shared_ptr<const Weight> weight, const ConvProblem& problem)
      : weight_(std::move(weight)),
        problem_(problem),
        multiplier_(spread_channels(problem.epilogue.multiplier, weight_->panels())),
        bias_(spread_channels(problem.epilogue.bias, weight_->panels())),
        signed_input_(problem.x_type == ElementType::kInt8),
        joined_(weight_->joined()),
        out_size_(problem.epilogue.output.type == ElementType::kFloat32 ? 4 : 1) {
    for (size_t i = 0; i < weight_->phases().size(); ++i) add_phase(weight_->phases()[i], weight_->packed()[i]);
    const OutputSpec& output = problem.epilogue.output;
    if (!weight_->kernels().finishes_tiles) {
      direct_output_ = TileOutput::kAccumulators;
    } else if (output.type == ElementType::kFloat32) {
      direct_ = output.activation.kind == numerics::Activation::kNone && !problem.residual;
      direct_output_ = TileOutput::kFloats;
    } else {
      direct_ = is_byte_clamp(output) && largest_value() < kLargestDirectValue &&
                (!problem.residual || problem.epilogue.residual.type == ElementType::kUInt8);
      direct_output_ = problem.residual ? TileOutput::kCodesWithResidual : TileOutput::kCodes;
      if (direct_) codes_ = code_vectors(output);
    }
    if (joined_) list_lane_inputs();
  }

  Border input_border() const override { return weight_->input_border(problem_.in, problem_.out); }
  int64_t tasks() const override { return static_cast<int64_t>(parts_.size()); }
  MemorySpan first_weights(int64_t task) const override {
    if (task >= tasks()) return {};
    const ConvPart& part = parts_[task];
    return panel_span(phases_[part.phase], part.panels.begin);
  }

  using ConvPlan::run;
  void run(const ConvOperands& operands, IndexRange tasks) const override;

 private:
  class Runner;

  static MemorySpan panel_span(const PlannedPhase& phase, int64_t panel) {
    const int64_t bytes = phase.segments.panel_bytes();
    const auto* begin = reinterpret_cast<const char*>(phase.weight) + panel * bytes;
    return {begin, begin + bytes};
  }

  // The weights that the thread of `task` will most likely read after it: each thread has a share of the tasks.
  MemorySpan weights_after(int64_t task, const ConvPlan* next) const {
    const int threads = problem_.threads;
    for (int thread = 0; thread < threads; ++thread) {
      const int64_t end = share_of(tasks(), threads, thread).end;
      if (task + 1 < end) return first_weights(task + 1);
      if (task + 1 == end && next != nullptr) {
        return next->first_weights(share_of(next->tasks(), threads, thread).begin);
      }
    }
    return {};
  }

  void add_phase(const ConvPhase& phase, const PhasePanels& packed) {
    const ConvSpec& spec = weight_->spec();
    const Segments segments = weight_->segments(phase, problem_.in);
    const SteppedSegments steps = stepped(segments);
    PlannedPhase planned{tile_phase(phase, problem_, tile_pixels(phase)),
                         segment_offsets(segments, phase, problem_.in),
                         steps,
                         packed.weight.get(),
                         {},
                         {}};
    if (planned.offsets.empty()) planned.offsets.push_back(0);
    if (steps.steps() != packed.segments.steps()) {
      planned.repacked = repack_by_taps(spec, phase, packed);
      planned.weight = planned.repacked.get();
    }
    const int32_t zero_point = problem_.x_zero_point + (signed_input_ ? 128 : 0);
    for (const int32_t sum : packed.sum) planned.start.push_back(-zero_point * sum);
    const auto panels = static_cast<int64_t>(weight_->panels().size());
    const PhaseWork work{planned.tiled.count(), panels, 4 * steps.steps(), panels * steps.panel_bytes(),
                         problem_.batch * problem_.in.height * problem_.in.width * spec.in_channels};
    if (work.tiles > 0) append_parts(static_cast<int64_t>(phases_.size()), work, problem_.threads, parts_);
    phases_.push_back(std::move(planned));
  }

  int64_t tile_pixels(const ConvPhase& phase) const {
    if (joined_) return kJoinedPixels;
    const Kernels& kernels = weight_->kernels();
    const bool same_set = phase.width.in_step * problem_.in.pixel_pitch % kSameSetBytes == 0;
    return same_set ? kernels.same_set_pixels : kernels.tile_pixels;
  }

  void list_lane_inputs() {
    const ConvSpec& spec = weight_->spec();
    for (int64_t step = 0; step < group_inputs(spec) / 4; ++step) {
      for (int64_t lane = 0; lane < kTileChannels; ++lane) {
        const int64_t group_of_half = lane % 16 / group_outputs(spec);
        lane_inputs_.push_back(static_cast<int32_t>(group_of_half * group_inputs(spec) / 4 + step));
      }
    }
  }

  const TileKernel* kernels(const PlannedPhase& phase, TileOutput output) const {
    if (joined_) return joined_kernels(output).data();
    return weight_->kernels().by_pixels(signed_input_, phase.segments.steps_each, output);
  }

  // Largest |v| that the layer can reach before rounding.
  float largest_value() const {
    float largest = 0.0f;
    for (const PhasePanels& packed : weight_->packed()) {
      for (size_t c = 0; c < multiplier_.size(); ++c) {
        const float acc = largest_accumulator(packed.magnitude[c]);
        largest = std::max(largest, std::fabs(multiplier_[c]) * acc + std::fabs(bias_[c]));
      }
    }
    return largest + largest_residual(problem_);
  }

  std::shared_ptr<const Weight> weight_;
  ConvProblem problem_;
  std::vector<float> multiplier_;
  std::vector<float> bias_;
  bool signed_input_;
  bool joined_;                       // panels of several groups
  std::vector<int32_t> lane_inputs_;  // of TileArgs
  int64_t out_size_;
  bool direct_ = false;  // whether the tile kernel does the whole output step, as direct_output_
  TileOutput direct_output_;
  CodeVectors codes_{};
  std::vector<PlannedPhase> phases_;
  std::vector<ConvPart> parts_;
};

// Runs parts of one phase on one set of images.
class Plan::Runner {
 public:
  Runner(const Plan& plan, const PlannedPhase& phase, const ConvOperands& operands)
      : plan_(plan),
        phase_(phase),
        x_(static_cast<const uint8_t*>(operands.x)),
        out_(static_cast<uint8_t*>(operands.out)),
        residual_(static_cast<const uint8_t*>(operands.residual)),
        row_scale_(operands.row_scale),
        panel_bytes_(phase.segments.panel_bytes()),
        direct_(plan.kernels(phase, plan.direct_output_)),
        indirect_(plan.kernels(phase, TileOutput::kAccumulators)) {
    const TiledPhase& tiled = phase.tiled;
    args_.x_step = tiled.in_step;
    args_.segments = phase.offsets.data();
    args_.segment_count = phase.segments.count;
    args_.segment_steps = phase.segments.steps_each;
    args_.codes = &plan.codes_;
    args_.out_step = tiled.out_step * plan.out_size_;
    args_.residual_step = tiled.residual_step;
    args_.residual_multiplier = plan.problem_.epilogue.residual.multiplier;
    args_.residual_zero_point = plan.problem_.epilogue.residual.zero_point;
    args_.accumulators = accumulators_;
    if (!plan.joined_) return;
    const ConvSpec& spec = plan.weight_->spec();
    args_.lane_inputs = plan.lane_inputs_.data();
    args_.half_offset = 16 / group_outputs(spec) * group_inputs(spec);
    args_.input_flip = plan.signed_input_ ? 0x80 : 0;
  }

  // `later`: weights that are needed when the part is done.
  void run(const ConvPart& part, const MemorySpan& later) {
    args_.weight_ahead = part.tiles.end - part.tiles.begin < kFetchingTiles ? kAheadBeyondL2 : kAheadInL2;
    for (int64_t p = part.panels.begin; p < part.panels.end; ++p) {
      start_panel(p);
      ahead_ = p + 1 < part.panels.end ? panel_span(phase_, p + 1) : later;
      for (int64_t t = part.tiles.begin; t < part.tiles.end; ++t) {
        start_tile(t);
        fetch_ahead();
        compute(p);
      }
    }
  }

 private:
  // Row scales where there are none.
  static constexpr float kOnes[kTilePixels] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};

  void start_panel(int64_t p) {
    args_.weight = phase_.weight + p * panel_bytes_;
    args_.start = phase_.start.data() + p * kTileChannels;
    args_.multiplier = plan_.multiplier_.data() + p * kTileChannels;
    args_.bias = plan_.bias_.data() + p * kTileChannels;
  }

  void start_tile(int64_t t) {
    const TiledPhase& tiled = phase_.tiled;
    const auto each = static_cast<int64_t>(tiled.tiles.size());
    const int64_t image = tiled.images == 1 ? 0 : t / each;
    tile_ = &tiled.tiles[t - image * each];
    image_x_ = x_ + image * tiled.in.image_pitch;
    image_out_ = out_ + image * tiled.out.image_pitch * plan_.out_size_;
    if (residual_ != nullptr) image_residual_ = residual_ + image * tiled.residual.image_pitch;
  }

  // The tile brings its share of the weights that come next into L2: kStepBytes for each 16 bytes of its pixels.
  void fetch_ahead() {
    const bool useful = ahead_.begin < ahead_.end;
    args_.prefetch = useful ? ahead_.begin : reinterpret_cast<const char*>(args_.weight);
    args_.prefetch_step = useful ? kStepBytes : 0;
    if (useful) ahead_.begin += panel_bytes_ / kFetchingTiles;
  }

  void compute(int64_t p) {
    const Panel& panel = plan_.weight_->panels()[p];
    for (int run = 0; run < 2; ++run) {
      args_.x[run] = image_x_ + tile_->in[run] + panel.in_channel;
      args_.out[run] = image_out_ + (tile_->out[run] + panel.out_channel) * plan_.out_size_;
      args_.row_scale[run] = row_scale_ == nullptr ? kOnes : row_scale_ + tile_->out[run] / phase_.tiled.out_step;
      if (residual_ != nullptr) args_.residual[run] = image_residual_ + tile_->residual[run] + panel.out_channel;
    }
    if (plan_.direct_ && panel.channels == kTileChannels) return direct_[tile_->pixels - 1](args_);
    indirect_[tile_->pixels - 1](args_);
    finish(panel);
  }

  void finish(const Panel& panel) {
    const int64_t first = (tile_->pixels + 1) / 2;
    for (int run = 0; run < 2; ++run) {
      Residual residual = plan_.problem_.epilogue.residual;
      residual.data = residual_ == nullptr ? nullptr : args_.residual[run];
      plan_.weight_->kernels().finish_tile({accumulators_ + run * first * kTileChannels,
                                            run == 0 ? first : tile_->pixels - first, panel.channels, args_.multiplier,
                                            args_.bias, args_.row_scale[run], residual, args_.residual_step,
                                            &plan_.problem_.epilogue.output, args_.out[run], args_.out_step});
    }
  }

  const Plan& plan_;
  const PlannedPhase& phase_;
  const uint8_t* x_;
  uint8_t* out_;
  const uint8_t* residual_;
  const float* row_scale_;
  int64_t panel_bytes_;
  const TileKernel* direct_;
  const TileKernel* indirect_;
  TileArgs args_{};
  MemorySpan ahead_;
  const PixelTile* tile_ = nullptr;
  const uint8_t* image_x_ = nullptr;
  uint8_t* image_out_ = nullptr;
  const uint8_t* image_residual_ = nullptr;
  alignas(64) int32_t accumulators_[kTilePixels * kTileChannels];
};

void Plan::run(const ConvOperands& operands, IndexRange tasks) const {
  for (int64_t task = tasks.begin; task < tasks.end; ++task) {
    const ConvPart& part = parts_[task];
    Runner(*this, phases_[part.phase], operands).run(part, weights_after(task, operands.next));
  }
}

std::shared_ptr<const ConvPlan> Weight::plan(const ConvProblem& problem) const {
  return std::make_shared<Plan>(std::static_pointer_cast<const Weight>(shared_from_this()), problem);
}

}  // namespace

std::shared_ptr<const PackedConv> pack_conv(const ConvSpec& spec, const ConvWeight& weight) {
  if (is_depthwise(spec)) return pack_depthwise(spec, weight);
  return std::make_shared<Weight>(kAvx512Vnni, spec, weight);
}

}  // namespace torchquant::kernels::avx512_vnni

namespace torchquant::kernels::avx_vnni {

// Four inputs of one channel do not lie side by side, so depthwise convolutions have nothing to give to the
// instruction.
std::shared_ptr<const PackedConv> pack_conv(const ConvSpec& spec, const ConvWeight& weight) {
  if (is_depthwise(spec)) return avx2::pack_conv(spec, weight);
  return std::make_shared<avx512_vnni::Weight>(avx512_vnni::kAvxVnni, spec, weight);
}

}  // namespace torchquant::kernels::avx_vnni

#endif  // defined(__x86_64__)
