// Convolution weights in the layout of the AVX512-VNNI tile kernel. Called by integer_conv_vnni.cpp.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/aligned_buffer.h"
#include "kernels/cpu/conv_tiling.h"
#include "kernels/cpu/vnni_tile.h"
#include "kernels/quantized_conv.h"

namespace torchquant::kernels::avx512_vnni {

// How the inputs of one output pixel are cut into contiguous pieces: by kernel rows, which takes dense pixels, or by
// taps. Each piece is rounded up to whole steps of four bytes, with weights of 0 for what is read too much.
struct Segments {
  int64_t count;
  int64_t bytes;  // of inputs, before rounding

  int64_t steps_each() const { return (bytes + 3) / 4; }
  int64_t steps() const { return count * steps_each(); }
};

// The weights of one phase: [panel][step][32 channels][4 inputs]. A panel holds up to 32 channels of one group.
struct PhasePanels {
  ConvPhase phase;
  Segments segments;
  AlignedBuffer<int8_t> weight;
  std::vector<int32_t> sum;        // of weights, per channel of every panel
  std::vector<int32_t> magnitude;  // of absolute weights
};

struct PanelGrid {
  int64_t panels_per_group;
  int64_t panels;
  int64_t channels() const { return panels * kTileChannels; }
};

PanelGrid panel_grid(const ConvSpec& spec);

// Whether a kernel row of this convolution can be one segment, given dense pixels.
bool rows_are_contiguous(const ConvSpec& spec);

PhasePanels pack_phase(const ConvSpec& spec, ConvPhase phase, const ConvWeight& weight);

// The same weights cut by taps, for images whose pixels are not dense.
AlignedBuffer<int8_t> repack_by_taps(const ConvSpec& spec, const PhasePanels& panels);
Segments tap_segments(const ConvSpec& spec, const ConvPhase& phase);

}  // namespace torchquant::kernels::avx512_vnni
