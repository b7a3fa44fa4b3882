// int4 buffers: two codes a byte, low nibble first, each stored as code - quant_min. Called by kernels that read packed
// weights and by the converter, which writes them.
#pragma once

#include <cstdint>

#include "numerics/macros.h"

namespace torchquant::numerics {

// Bytes that `count` codes take; an odd count leaves the last high nibble 0.
TQ_HOST_DEVICE int64_t int4_bytes(int64_t count) { return (count + 1) / 2; }

TQ_HOST_DEVICE int32_t unpack_int4_value(const uint8_t* packed, int64_t index, int32_t quant_min) {
  const int32_t byte = packed[index / 2];
  return ((index % 2 == 0) ? (byte & 0xF) : (byte >> 4)) + quant_min;
}

TQ_HOST_DEVICE void unpack_int4(const uint8_t* packed, int64_t count, int32_t quant_min, int8_t* codes) {
  for (int64_t i = 0; i < count / 2; ++i) {
    codes[2 * i] = static_cast<int8_t>((packed[i] & 0xF) + quant_min);
    codes[2 * i + 1] = static_cast<int8_t>((packed[i] >> 4) + quant_min);
  }
  if (count % 2 != 0) codes[count - 1] = static_cast<int8_t>(unpack_int4_value(packed, count - 1, quant_min));
}

// Codes must lie in [quant_min, quant_min + 15].
TQ_HOST_DEVICE void pack_int4(const int8_t* codes, int64_t count, int32_t quant_min, uint8_t* packed) {
  for (int64_t i = 0; i < int4_bytes(count); ++i) {
    const int32_t low = codes[2 * i] - quant_min;
    const int32_t high = 2 * i + 1 < count ? codes[2 * i + 1] - quant_min : 0;
    packed[i] = static_cast<uint8_t>(low | (high << 4));
  }
}

}  // namespace torchquant::numerics
