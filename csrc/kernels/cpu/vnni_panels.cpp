// Packs convolution weights for the AVX512-VNNI tile kernel. Called through vnni_panels.h.
#include "kernels/cpu/vnni_panels.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <utility>

namespace torchquant::kernels::avx512_vnni {
namespace {

int64_t group_inputs(const ConvSpec& spec) { return spec.in_channels / spec.groups; }
int64_t group_outputs(const ConvSpec& spec) { return spec.out_channels / spec.groups; }

// Byte of a panel that holds input `byte` of segment `segment` for channel 0; channel n is 4 n bytes further on.
int64_t panel_byte(const Segments& segments, int64_t segment, int64_t byte) {
  return (segment * segments.steps_each() + byte / 4) * kStepBytes + byte % 4;
}

// Where tap t's inputs lie: segment and first byte in it.
struct Place {
  int64_t segment;
  int64_t byte;
};

Place tap_place(const Segments& segments, const std::vector<ConvTap>& taps, int64_t t, int64_t inputs) {
  const auto taps_each = static_cast<int64_t>(taps.size()) / segments.count;
  return {t / taps_each, t % taps_each * inputs};
}

Segments row_segments(const ConvSpec& spec) { return {spec.height.kernel, spec.width.kernel * group_inputs(spec)}; }

// First weight of output channel o, and the distance from one of its inputs to the next.
struct ChannelWeights {
  const int8_t* data;
  int64_t step;
};

ChannelWeights channel_weights(const ConvSpec& spec, const ConvWeight& weight, int64_t o) {
  if (!spec.transposed) return {weight.data + o * weight.strides[0], weight.strides[1]};
  const int64_t group = o / group_outputs(spec);
  return {weight.data + group * group_inputs(spec) * weight.strides[0] + o % group_outputs(spec) * weight.strides[1],
          weight.strides[0]};
}

}  // namespace

PanelGrid panel_grid(const ConvSpec& spec) {
  const int64_t per_group = (group_outputs(spec) + kTileChannels - 1) / kTileChannels;
  return {per_group, per_group * spec.groups};
}

bool rows_are_contiguous(const ConvSpec& spec) {
  return !spec.transposed && spec.groups == 1 && (spec.width.dilation == 1 || spec.width.kernel == 1);
}

Segments tap_segments(const ConvSpec& spec, const ConvPhase& phase) {
  // A phase without taps still needs something to read: one step of zero weights.
  if (phase.taps.empty()) return {1, 1};
  return {static_cast<int64_t>(phase.taps.size()), group_inputs(spec)};
}

PhasePanels pack_phase(const ConvSpec& spec, ConvPhase phase, const ConvWeight& weight) {
  const PanelGrid grid = panel_grid(spec);
  const int64_t inputs = group_inputs(spec);
  const Segments segments = rows_are_contiguous(spec) ? row_segments(spec) : tap_segments(spec, phase);
  const int64_t panel_bytes = segments.steps() * kStepBytes;
  PhasePanels packed{std::move(phase), segments, make_aligned<int8_t>(grid.panels * panel_bytes),
                     std::vector<int32_t>(grid.channels()), std::vector<int32_t>(grid.channels())};
  std::memset(packed.weight.get(), 0, grid.panels * panel_bytes);
  const std::vector<ConvTap>& taps = packed.phase.taps;
  for (int64_t o = 0; o < spec.out_channels; ++o) {
    const ChannelWeights source = channel_weights(spec, weight, o);
    const int64_t in_group = o % group_outputs(spec);
    const int64_t panel = o / group_outputs(spec) * grid.panels_per_group + in_group / kTileChannels;
    const int64_t lane = in_group % kTileChannels;
    int8_t* target = packed.weight.get() + panel * panel_bytes + 4 * lane;
    int32_t sum = 0;
    int32_t magnitude = 0;
    for (int64_t t = 0; t < static_cast<int64_t>(taps.size()); ++t) {
      const int8_t* w = source.data + taps[t].ky * weight.strides[2] + taps[t].kx * weight.strides[3];
      const Place place = tap_place(segments, taps, t, inputs);
      for (int64_t i = 0; i < inputs; ++i) {
        const int8_t value = w[i * source.step];
        target[panel_byte(segments, place.segment, place.byte + i)] = value;
        sum += value;
        magnitude += std::abs(value);
      }
    }
    packed.sum[panel * kTileChannels + lane] = sum;
    packed.magnitude[panel * kTileChannels + lane] = magnitude;
  }
  return packed;
}

AlignedBuffer<int8_t> repack_by_taps(const ConvSpec& spec, const PhasePanels& packed) {
  const PanelGrid grid = panel_grid(spec);
  const Segments target = tap_segments(spec, packed.phase);
  const int64_t inputs = group_inputs(spec);
  const int64_t target_bytes = target.steps() * kStepBytes;
  const int64_t source_bytes = packed.segments.steps() * kStepBytes;
  AlignedBuffer<int8_t> weight = make_aligned<int8_t>(grid.panels * target_bytes);
  std::memset(weight.get(), 0, grid.panels * target_bytes);
  for (int64_t panel = 0; panel < grid.panels; ++panel) {
    for (int64_t t = 0; t < static_cast<int64_t>(packed.phase.taps.size()); ++t) {
      const Place from = tap_place(packed.segments, packed.phase.taps, t, inputs);
      for (int64_t i = 0; i < inputs; ++i) {
        const int8_t* source =
            packed.weight.get() + panel * source_bytes + panel_byte(packed.segments, from.segment, from.byte + i);
        int8_t* out = weight.get() + panel * target_bytes + panel_byte(target, t, i);
        for (int64_t n = 0; n < kTileChannels; ++n) out[4 * n] = source[4 * n];
      }
    }
  }
  return weight;
}

}  // namespace torchquant::kernels::avx512_vnni
