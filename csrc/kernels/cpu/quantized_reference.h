// The entries of the reference table, defined in quantized_*_reference.cpp. Included by the files that make the tables:
// quantized_{reference,avx2,avx512}.cpp.
#pragma once

#include "kernels/quantized_kernels.h"

namespace torchquant::kernels::reference {

void unpack_int4(const StoredWeight& weight, IndexRange rows, int8_t* codes);
void linear_weight_only(const LinearWeightOnlyArgs& args, IndexRange channels);
void embedding(const EmbeddingArgs& args, IndexRange indices);
void max_pool(const MaxPoolArgs& args, IndexRange pixels);
void avg_pool(const AvgPoolArgs& args, IndexRange pixels);
void add(const AddArgs& args, IndexRange elements);
void mul(const MulArgs& args, IndexRange elements);
void lookup(const LookupArgs& args, IndexRange elements);
void add_image(const AddArgs& args, const PointwiseImages& images, IndexRange rows);
void mul_image(const MulArgs& args, const PointwiseImages& images, IndexRange rows);
void lookup_image(const LookupArgs& args, const PointwiseImages& images, IndexRange rows);
void quantize_image(const QuantizeImageArgs& args, IndexRange rows);
void dequantize_image(const DequantizeImageArgs& args, IndexRange rows);
void copy_image(const CopyImageArgs& args, IndexRange rows);
void resize_linear(const ResizeLinearArgs& args, IndexRange rows);
void attention(const AttentionArgs& args, IndexRange blocks, float* scratch);

// The table from which every other one starts. consteval: files with different flags call it, so it may leave no code.
consteval QuantizedKernels make_quantized_table(const char* name) {
  return {
      .name = name,
      .unpack_int4 = unpack_int4,
      .linear_weight_only = linear_weight_only,
      .linear_weight_only_packed = nullptr,
      .embedding = embedding,
      .max_pool = max_pool,
      .avg_pool = avg_pool,
      .add = add,
      .mul = mul,
      .lookup = lookup,
      .add_image = add_image,
      .mul_image = mul_image,
      .lookup_image = lookup_image,
      .quantize_image = quantize_image,
      .dequantize_image = dequantize_image,
      .copy_image = copy_image,
      .resize_linear = resize_linear,
      .attention = attention,
  };
}

}  // namespace torchquant::kernels::reference
