// Convolution weights in the layout of the AVX512-VNNI tile kernel. Called by integer_conv_vnni.cpp.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/aligned_buffer.h"
#include "kernels/cpu/conv_panels.h"
#include "kernels/cpu/vnni_tile.h"

namespace torchquant::kernels::avx512_vnni {

static_assert(kTileChannels == kPanelChannels);

// Segments rounded up to whole steps of four bytes, with weights of 0 for what is read too much.
struct SteppedSegments {
  int64_t count;
  int64_t steps_each;

  int64_t steps() const { return count * steps_each; }
  int64_t panel_bytes() const { return steps() * kStepBytes; }
};

// A phase without taps still has one step, of zero weights, because the kernel needs something to read.
inline SteppedSegments stepped(const Segments& segments) {
  if (segments.count == 0) return {1, 1};
  return {segments.count, (segments.bytes + 3) / 4};
}

// The weights of one phase: [panel][step][32 channels][4 inputs].
struct PhasePanels {
  SteppedSegments segments;
  AlignedBuffer<int8_t> weight;
  std::vector<int32_t> sum;        // of weights, per channel of every panel
  std::vector<int32_t> magnitude;  // of absolute weights
};

PhasePanels pack_phase(const ConvSpec& spec, const ConvPhase& phase, const std::vector<Panel>& panels,
                       const ConvWeight& weight);

// The weights of pack_phase() cut by taps, for images whose pixels are not dense.
AlignedBuffer<int8_t> repack_by_taps(const ConvSpec& spec, const ConvPhase& phase, const PhasePanels& packed);

}  // namespace torchquant::kernels::avx512_vnni
