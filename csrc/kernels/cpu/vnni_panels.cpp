// Packs convolution weights for the AVX512-VNNI tile kernel. Called through vnni_panels.h.
#include "kernels/cpu/vnni_panels.h"

#include <cstdlib>
#include <cstring>

namespace torchquant::kernels::avx512_vnni {
namespace {

// Where a panel holds the inputs of one tap for channel 0; channel n is 4 n bytes further on.
class TapBytes {
 public:
  TapBytes(const SteppedSegments& segments, const ConvSpec& spec, const ConvPhase& phase, int64_t tap) {
    const auto taps_each = static_cast<int64_t>(phase.taps.size()) / segments.count;
    segment_ = tap / taps_each * segments.steps_each * kStepBytes;
    first_ = static_cast<uint64_t>(tap % taps_each * group_inputs(spec));
  }
  int64_t of_input(int64_t i) const {
    const uint64_t byte = first_ + static_cast<uint64_t>(i);
    return segment_ + static_cast<int64_t>(byte / 4 * kStepBytes + byte % 4);
  }
  bool starts_a_step() const { return first_ % 4 == 0; }

 private:
  int64_t segment_;
  uint64_t first_;
};

// Four inputs at a time where they are neighbours on both sides: training packs a weight in every step.
void pack_tap(const int8_t* w, int64_t step, int64_t inputs, const TapBytes& bytes, int8_t* target) {
  int64_t i = 0;
  if (step == 1 && bytes.starts_a_step()) {
    for (; i + 4 <= inputs; i += 4) std::memcpy(target + bytes.of_input(i), w + i, 4);
  }
  for (; i < inputs; ++i) target[bytes.of_input(i)] = w[i * step];
}

AlignedBuffer<int8_t> zeros(int64_t bytes) {
  AlignedBuffer<int8_t> buffer = make_aligned<int8_t>(bytes);
  std::memset(buffer.get(), 0, bytes);
  return buffer;
}

}  // namespace

PhasePanels pack_phase(const ConvSpec& spec, const ConvPhase& phase, const std::vector<Panel>& panels,
                       const ConvWeight& weight) {
  const auto count = static_cast<int64_t>(panels.size());
  const SteppedSegments segments = stepped(rows_are_contiguous(spec) ? row_segments(spec) : tap_segments(spec, phase));
  PhasePanels packed{segments, zeros(count * segments.panel_bytes()), std::vector<int32_t>(count * kTileChannels),
                     std::vector<int32_t>(count * kTileChannels)};
  for (int64_t p = 0; p < count; ++p) {
    for (int64_t lane = 0; lane < panels[p].channels; ++lane) {
      const ChannelWeights source = channel_weights(spec, weight, panels[p].out_channel + lane);
      int8_t* target = packed.weight.get() + p * segments.panel_bytes() + 4 * lane;
      int32_t sum = 0;
      int32_t magnitude = 0;
      for (int64_t t = 0; t < static_cast<int64_t>(phase.taps.size()); ++t) {
        const int8_t* w = source.data + phase.taps[t].ky * weight.strides[2] + phase.taps[t].kx * weight.strides[3];
        pack_tap(w, source.step, group_inputs(spec), TapBytes(segments, spec, phase, t), target);
        for (int64_t i = 0; i < group_inputs(spec); ++i) {
          const int32_t value = w[i * source.step];
          sum += value;
          magnitude += std::abs(value);
        }
      }
      packed.sum[p * kTileChannels + lane] = sum;
      packed.magnitude[p * kTileChannels + lane] = magnitude;
    }
  }
  return packed;
}

AlignedBuffer<int8_t> repack_by_taps(const ConvSpec& spec, const ConvPhase& phase, const PhasePanels& packed) {
  const auto panels = static_cast<int64_t>(list_panels(spec).size());
  const SteppedSegments target = stepped(tap_segments(spec, phase));
  AlignedBuffer<int8_t> weight = zeros(panels * target.panel_bytes());
  for (int64_t p = 0; p < panels; ++p) {
    for (int64_t t = 0; t < static_cast<int64_t>(phase.taps.size()); ++t) {
      const TapBytes source_bytes(packed.segments, spec, phase, t);
      const TapBytes target_bytes(target, spec, phase, t);
      for (int64_t i = 0; i < group_inputs(spec); ++i) {
        const int8_t* from = packed.weight.get() + p * packed.segments.panel_bytes() + source_bytes.of_input(i);
        int8_t* to = weight.get() + p * target.panel_bytes() + target_bytes.of_input(i);
        for (int64_t n = 0; n < kTileChannels; ++n) to[4 * n] = from[4 * n];
      }
    }
  }
  return weight;
}

}  // namespace torchquant::kernels::avx512_vnni
