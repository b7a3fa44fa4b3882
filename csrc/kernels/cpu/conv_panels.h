// How the convolution engines see weights: panels of 32 output channels, and the pieces of input that an output pixel
// multiplies with them. Plain arithmetic on shapes, for any instruction set. Called by kernels/cpu/integer_conv_*.cpp.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/cpu/conv_tiling.h"
#include "kernels/quantized_conv.h"

namespace torchquant::kernels {

inline constexpr int64_t kPanelChannels = 32;

inline int64_t group_inputs(const ConvSpec& spec) { return spec.in_channels / spec.groups; }
inline int64_t group_outputs(const ConvSpec& spec) { return spec.out_channels / spec.groups; }

// One filter per channel.
inline bool is_depthwise(const ConvSpec& spec) {
  return !spec.transposed && spec.groups == spec.in_channels && spec.groups == spec.out_channels;
}

// Up to 32 output channels of one group, as element offsets in a pixel.
struct Panel {
  int64_t in_channel;
  int64_t out_channel;
  int64_t channels;
};

// Panel after panel, group after group; the last of each group may be narrower. With `join_groups` a panel takes as
// many groups as it has channels for.
std::vector<Panel> list_panels(const ConvSpec& spec, bool join_groups = false);

// Per-channel values in the order of the panels; lanes beyond the last channel of a panel are 0.
std::vector<float> spread_channels(const float* values, const std::vector<Panel>& panels);

// First weight of output channel o, and the distance from one of its inputs to the next.
struct ChannelWeights {
  const int8_t* data;
  int64_t step;
};
ChannelWeights channel_weights(const ConvSpec& spec, const ConvWeight& weight, int64_t o);

// How the inputs of one output pixel are cut into contiguous pieces: by kernel rows, which takes dense pixels, or by
// taps.
struct Segments {
  int64_t count;
  int64_t bytes;
};

// Whether a kernel row of this convolution can be one segment, given dense pixels.
bool rows_are_contiguous(const ConvSpec& spec);
Segments row_segments(const ConvSpec& spec);
Segments tap_segments(const ConvSpec& spec, const ConvPhase& phase);

// Where each segment starts, in elements from what tap (0, 0) reads.
std::vector<int64_t> segment_offsets(const Segments& segments, const ConvPhase& phase, const ImageLayout& in);

}  // namespace torchquant::kernels
