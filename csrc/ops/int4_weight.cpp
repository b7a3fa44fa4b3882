// Packs and unpacks 4-bit weights; see int4_weight.h.
#include "ops/int4_weight.h"

#include <ATen/ops/empty.h>
#include <c10/util/accumulate.h>

#include "numerics/int4.h"
#include "ops/quantized_common.h"

namespace torchquant::ops {

at::Tensor pack_int4(const at::Tensor& codes, int64_t quant_min) {
  check_dtype("pack_int4", "codes", codes, at::kChar);
  TORCH_CHECK(codes.dim() >= 1, "pack_int4: codes must have at least one dimension, got shape ", codes.sizes());
  const at::Tensor dense = codes.contiguous();
  const int64_t rows = codes.size(0);
  const int64_t columns = c10::multiply_integers(codes.sizes().slice(1));
  const int8_t* data = dense.const_data_ptr<int8_t>();
  for (int64_t i = 0; i < dense.numel(); ++i) {
    TORCH_CHECK(data[i] >= quant_min && data[i] <= quant_min + 15, "pack_int4: codes must lie in [", quant_min, ", ",
                quant_min + 15, "], got ", static_cast<int64_t>(data[i]));
  }
  const int64_t row_bytes = numerics::int4_bytes(columns);
  const at::Tensor packed = at::empty({rows, row_bytes}, codes.options().dtype(at::kByte));
  uint8_t* bytes = packed.mutable_data_ptr<uint8_t>();
  for (int64_t row = 0; row < rows; ++row) {
    numerics::pack_int4(data + row * columns, columns, static_cast<int32_t>(quant_min), bytes + row * row_bytes);
  }
  return packed;
}

at::Tensor unpack_int4(const at::Tensor& packed, at::IntArrayRef shape, int64_t quant_min) {
  check_dtype("unpack_int4", "packed", packed, at::kByte);
  TORCH_CHECK(!shape.empty(), "unpack_int4: shape must have at least one dimension, got ", shape);
  const int64_t columns = c10::multiply_integers(shape.slice(1));
  const int64_t expected[] = {shape[0], numerics::int4_bytes(columns)};
  TORCH_CHECK(packed.sizes() == at::IntArrayRef(expected), "unpack_int4: packed must have shape ",
              at::IntArrayRef(expected), " for a weight of shape ", shape, ", got ", packed.sizes());
  return int8_weight(packed, shape[0], columns, 4, quant_min).view(shape);
}

}  // namespace torchquant::ops
