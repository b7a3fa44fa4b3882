// Rearranges weights for the weight-only products; see weight_only.h.
#include "kernels/weight_only.h"

#include <cstring>

#include "numerics/int4.h"

namespace torchquant::kernels {
namespace {

// The stored byte of a code: itself for 8 bits, the nibble (code - quant_min) for 4.
struct CodeReader {
  const WeightOnlyShape& shape;
  const uint8_t* codes;

  uint32_t operator()(int64_t channel, int64_t k) const {
    if (shape.bits == 8) return codes[channel * shape.depth + k];
    const uint8_t* row = codes + channel * numerics::int4_bytes(shape.depth);
    return static_cast<uint32_t>(numerics::unpack_int4_value(row, k, 0));
  }
};

// Steps [first, first + steps) of 16 channels; what lies beyond the matrix stays 0.
void pack_chunk(const CodeReader& read, int64_t first_channel, int64_t channels, int64_t first, int64_t steps,
                uint8_t* chunk) {
  memset(chunk, 0, kWeightChunkBytes);
  for (int64_t c = 0; c < channels; ++c) {
    if (read.shape.bits == 8) {
      for (int64_t k = 0; k < steps; ++k) {
        chunk[k * kWeightBlock + c] = static_cast<uint8_t>(read(first_channel + c, first + k));
      }
    } else {
      uint32_t word = 0;
      for (int64_t k = 0; k < steps; ++k) word |= read(first_channel + c, first + k) << (4 * k);
      memcpy(chunk + c * sizeof(word), &word, sizeof(word));
    }
  }
}

// One value per channel of a block; 0 beyond the last channel.
void pack_header(const float* values, int64_t first_channel, int64_t channels, int64_t groups, int64_t group,
                 uint8_t* header) {
  float lanes[kWeightBlock] = {};
  for (int64_t c = 0; c < channels; ++c) lanes[c] = values[(first_channel + c) * groups + group];
  memcpy(header, lanes, sizeof(lanes));
}

}  // namespace

void pack_weight_only(const WeightOnlyShape& shape, const void* codes, const float* scale, const float* zero_point,
                      IndexRange blocks, uint8_t* packed) {
  const WeightOnlyLayout layout(shape);
  const CodeReader read{shape, static_cast<const uint8_t*>(codes)};
  for (int64_t block = blocks.begin; block < blocks.end; ++block) {
    const int64_t first_channel = block * kWeightBlock;
    const int64_t rest = shape.out_channels - first_channel;
    const int64_t channels = rest < kWeightBlock ? rest : kWeightBlock;
    for (int64_t group = 0; group < layout.groups; ++group) {
      uint8_t* out = packed + block * layout.block_bytes + group * layout.group_bytes;
      pack_header(scale, first_channel, channels, layout.groups, group, out);
      if (shape.has_zero_points) {
        pack_header(zero_point, first_channel, channels, layout.groups, group, out + kWeightBlock * sizeof(float));
      }
      for (int64_t chunk = 0; chunk < layout.chunks; ++chunk) {
        const int64_t first = chunk * layout.chunk_depth;
        const int64_t left = shape.group_size - first;
        pack_chunk(read, first_channel, channels, group * shape.group_size + first,
                   left < layout.chunk_depth ? left : layout.chunk_depth,
                   out + layout.header_bytes + chunk * kWeightChunkBytes);
      }
    }
  }
}

}  // namespace torchquant::kernels
