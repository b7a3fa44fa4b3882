// The table of integer kernels that the ops call. Each entry works on a part of the output, so that the caller splits
// the work over threads; entries of one table may be called concurrently.
//
// kernels/cpu/quantized_*_reference.cpp holds the portable reference that defines the results. The table of another
// instruction set replaces whole entries, keeps the reference's for the rest, and must give the same bits (named
// exceptions: docs/numerics.md).
#pragma once

#include <cstdint>

#include "kernels/attention.h"
#include "kernels/isa.h"
#include "kernels/quantized_image.h"
#include "kernels/quantized_linear.h"
#include "kernels/quantized_pointwise.h"
#include "kernels/quantized_pool.h"
#include "kernels/weight_only.h"

namespace torchquant::kernels {

struct QuantizedKernels {
  const char* name;  // of the instruction set, as receipts print it: "avx512"

  // Unpacks rows [rows.begin, rows.end) of 4-bit codes into `codes`, which holds the whole int8 matrix.
  void (*unpack_int4)(const StoredWeight& weight, IndexRange rows, int8_t* codes);

  void (*linear_weight_only)(const LinearWeightOnlyArgs& args, IndexRange channels);
  // The same on rearranged weights; null where the instruction set has no such kernel.
  void (*linear_weight_only_packed)(const PackedWeightOnlyArgs& args, IndexRange blocks);
  void (*embedding)(const EmbeddingArgs& args, IndexRange indices);

  void (*max_pool)(const MaxPoolArgs& args, IndexRange pixels);
  void (*avg_pool)(const AvgPoolArgs& args, IndexRange pixels);

  // Dense runs of any shape.
  void (*add)(const AddArgs& args, IndexRange elements);
  void (*mul)(const MulArgs& args, IndexRange elements);
  void (*lookup)(const LookupArgs& args, IndexRange elements);
  // The same on images with pitches; a lookup reads operand `a`.
  void (*add_image)(const AddArgs& args, const PointwiseImages& images, IndexRange rows);
  void (*mul_image)(const MulArgs& args, const PointwiseImages& images, IndexRange rows);
  void (*lookup_image)(const LookupArgs& args, const PointwiseImages& images, IndexRange rows);

  void (*quantize_image)(const QuantizeImageArgs& args, IndexRange rows);
  void (*dequantize_image)(const DequantizeImageArgs& args, IndexRange rows);
  void (*copy_image)(const CopyImageArgs& args, IndexRange rows);
  void (*resize_linear)(const ResizeLinearArgs& args, IndexRange rows);

  // `scratch` holds attention_scratch() floats.
  void (*attention)(const AttentionArgs& args, IndexRange blocks, float* scratch);
};

// The table of the instruction set that isa.h selected.
const QuantizedKernels& quantized_kernels();

// The table of one instruction set, which must be among available_isas(). For tests and benchmarks.
const QuantizedKernels& quantized_kernels(Isa isa);

}  // namespace torchquant::kernels
