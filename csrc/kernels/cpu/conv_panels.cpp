// Panels and segments of a convolution. Called through conv_panels.h.
#include "kernels/cpu/conv_panels.h"

#include <algorithm>

namespace torchquant::kernels {

std::vector<Panel> list_panels(const ConvSpec& spec, bool join_groups) {
  const int64_t outputs = group_outputs(spec);
  std::vector<Panel> panels;
  if (join_groups) {
    for (int64_t first = 0; first < spec.out_channels; first += kPanelChannels) {
      panels.push_back(
          {first / outputs * group_inputs(spec), first, std::min(kPanelChannels, spec.out_channels - first)});
    }
    return panels;
  }
  for (int64_t group = 0; group < spec.groups; ++group) {
    for (int64_t first = 0; first < outputs; first += kPanelChannels) {
      panels.push_back(
          {group * group_inputs(spec), group * outputs + first, std::min(kPanelChannels, outputs - first)});
    }
  }
  return panels;
}

std::vector<float> spread_channels(const float* values, const std::vector<Panel>& panels) {
  std::vector<float> spread(panels.size() * kPanelChannels, 0.0f);
  for (size_t p = 0; p < panels.size(); ++p) {
    std::copy_n(values + panels[p].out_channel, panels[p].channels, spread.begin() + p * kPanelChannels);
  }
  return spread;
}

ChannelWeights channel_weights(const ConvSpec& spec, const ConvWeight& weight, int64_t o) {
  if (!spec.transposed) return {weight.data + o * weight.strides[0], weight.strides[1]};
  const int64_t group = o / group_outputs(spec);
  return {weight.data + group * group_inputs(spec) * weight.strides[0] + o % group_outputs(spec) * weight.strides[1],
          weight.strides[0]};
}

bool rows_are_contiguous(const ConvSpec& spec) {
  return !spec.transposed && spec.groups == 1 && (spec.width.dilation == 1 || spec.width.kernel == 1);
}

Segments row_segments(const ConvSpec& spec) { return {spec.height.kernel, spec.width.kernel * group_inputs(spec)}; }

Segments tap_segments(const ConvSpec& spec, const ConvPhase& phase) {
  return {static_cast<int64_t>(phase.taps.size()), group_inputs(spec)};
}

std::vector<int64_t> segment_offsets(const Segments& segments, const ConvPhase& phase, const ImageLayout& in) {
  std::vector<int64_t> offsets;
  const auto taps = static_cast<int64_t>(phase.taps.size());
  for (int64_t s = 0; s < segments.count; ++s) {
    const ConvTap& tap = phase.taps[s * taps / segments.count];
    offsets.push_back(tap.row * in.row_pitch + tap.column * in.pixel_pitch);
  }
  return offsets;
}

}  // namespace torchquant::kernels
