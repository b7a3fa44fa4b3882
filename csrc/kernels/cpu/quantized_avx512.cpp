// The tables of integer kernels for AVX-512 and AVX-512-VNNI, compiled with the flags of the first. Reached through
// kernels/quantized_kernels.h.
#include "kernels/cpu/attention_vector.h"
#include "kernels/cpu/bytes_avx512.h"
#include "kernels/cpu/quantized_image_vector.h"
#include "kernels/cpu/quantized_lookup_vector.h"
#include "kernels/cpu/quantized_pointwise_vector.h"
#include "kernels/cpu/quantized_pool_vector.h"
#include "kernels/cpu/vector_avx512.h"
#include "kernels/cpu/weight_only_vector.h"

namespace torchquant::kernels::avx512 {
namespace {

// A table of 256 bytes as two permutations of 128, for processors with VBMI: a tenth of the instructions.
class PermutedTable {
 public:
  TQ_HOST_DEVICE PermutedTable(const uint8_t* table, uint8_t flip) : flip_(Bytes::set(flip)) {
    for (int i = 0; i < 4; ++i) quarters_[i] = Bytes::load(table + i * 64);
  }

  __attribute__((target("avx512vbmi"))) void map(const uint8_t* x, uint8_t* out, int64_t n) const {
    int64_t i = 0;
    for (; i + Bytes::kWidth <= n; i += Bytes::kWidth) Bytes::store(out + i, find(Bytes::load(x + i)));
    if (i < n) Bytes::store(out + i, find(Bytes::load(x + i, n - i)), n - i);
  }

 private:
  __attribute__((target("avx512vbmi"))) __m512i find(__m512i codes) const {
    const __m512i index = _mm512_xor_si512(codes, flip_);
    const __m512i low = _mm512_permutex2var_epi8(quarters_[0], index, quarters_[1]);
    const __m512i high = _mm512_permutex2var_epi8(quarters_[2], index, quarters_[3]);
    return _mm512_mask_mov_epi8(low, _mm512_movepi8_mask(index), high);
  }

  __m512i flip_;
  __m512i quarters_[4];
};

using ShuffleLookup = QuantizedLookupVector<ShuffledTable<Bytes>>;
using PermuteLookup = QuantizedLookupVector<PermutedTable>;

void lookup(const LookupArgs& args, IndexRange elements) {
  __builtin_cpu_supports("avx512vbmi") ? PermuteLookup::dense(args, elements) : ShuffleLookup::dense(args, elements);
}

void lookup_image(const LookupArgs& args, const PointwiseImages& images, IndexRange rows) {
  __builtin_cpu_supports("avx512vbmi") ? PermuteLookup::image(args, images, rows)
                                       : ShuffleLookup::image(args, images, rows);
}

consteval QuantizedKernels make_table(const char* name) {
  QuantizedKernels table = reference::make_quantized_table(name);
  QuantizedPointwiseVector<Vector>::fill(table);
  QuantizedPoolVector<Vector, Bytes>::fill(table);
  QuantizedImageVector<Vector, Bytes>::fill(table);
  table.lookup = lookup;
  table.attention = AttentionVector<Vector>::attention;
  table.linear_weight_only_packed = WeightOnlyVector<Vector>::linear;
  table.lookup_image = lookup_image;
  return table;
}

}  // namespace

extern const QuantizedKernels quantized_table;
constinit const QuantizedKernels quantized_table = make_table("avx512");

}  // namespace torchquant::kernels::avx512

// Its own instruction serves only the engine of kernels/integer_conv.h.
namespace torchquant::kernels::avx512_vnni {

extern const QuantizedKernels quantized_table;
constinit const QuantizedKernels quantized_table = avx512::make_table("avx512_vnni");

}  // namespace torchquant::kernels::avx512_vnni
