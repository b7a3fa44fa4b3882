// The tables of integer kernels for AVX2 and AVX-VNNI, compiled with the flags of the first. Reached through
// kernels/quantized_kernels.h.
#include "kernels/cpu/attention_vector.h"
#include "kernels/cpu/bytes_avx2.h"
#include "kernels/cpu/quantized_image_vector.h"
#include "kernels/cpu/quantized_lookup_vector.h"
#include "kernels/cpu/quantized_pointwise_vector.h"
#include "kernels/cpu/quantized_pool_vector.h"
#include "kernels/cpu/vector_avx2.h"
#include "kernels/cpu/weight_only_vector.h"

namespace torchquant::kernels::avx2 {
namespace {

consteval QuantizedKernels make_table(const char* name) {
  using Lookup = QuantizedLookupVector<ShuffledTable<Bytes>>;
  QuantizedKernels table = reference::make_quantized_table(name);
  QuantizedPointwiseVector<Vector>::fill(table);
  QuantizedPoolVector<Vector, Bytes>::fill(table);
  QuantizedImageVector<Vector, Bytes>::fill(table);
  table.lookup = Lookup::dense;
  table.attention = AttentionVector<Vector>::attention;
  table.linear_weight_only_packed = WeightOnlyVector<Vector>::linear;
  table.lookup_image = Lookup::image;
  return table;
}

}  // namespace

extern const QuantizedKernels quantized_table;
constinit const QuantizedKernels quantized_table = make_table("avx2");

}  // namespace torchquant::kernels::avx2

// Its own instruction serves only the engine of kernels/integer_conv.h.
namespace torchquant::kernels::avx_vnni {

extern const QuantizedKernels quantized_table;
constinit const QuantizedKernels quantized_table = avx2::make_table("avx_vnni");

}  // namespace torchquant::kernels::avx_vnni
