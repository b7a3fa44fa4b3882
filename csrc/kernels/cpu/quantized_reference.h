// Declares the entries of the reference table; defined in quantized_*_reference.cpp, collected in
// kernels/quantized_kernels.cpp.
#pragma once

#include "kernels/quantized_kernels.h"

namespace torchquant::kernels::reference {

void unpack_int4(const StoredWeight& weight, IndexRange rows, int8_t* codes);
void linear(const LinearArgs& args, IndexRange rows, IndexRange channels);
void linear_dynamic(const LinearDynamicArgs& args, IndexRange rows, IndexRange channels);
void linear_weight_only(const LinearWeightOnlyArgs& args, IndexRange channels);
void embedding(const EmbeddingArgs& args, IndexRange indices);
void arrange_conv_weight(const ConvGeometry& geometry, const ConvWeight& weight, IndexRange channels, int8_t* arranged);
void conv(const ConvArgs& args, IndexRange pixels);
void max_pool(const MaxPoolArgs& args, IndexRange pixels);
void avg_pool(const AvgPoolArgs& args, IndexRange pixels);
void add(const AddArgs& args, IndexRange elements);
void mul(const MulArgs& args, IndexRange elements);
void lookup(const LookupArgs& args, IndexRange elements);

}  // namespace torchquant::kernels::reference
