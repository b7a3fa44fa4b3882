// Reference add, mul and table lookup over dense runs. Reached through kernels/quantized_kernels.h.
#include <cmath>

#include "kernels/cpu/quantized_reference.h"
#include "kernels/cpu/quantized_tile_reference.h"

namespace torchquant::kernels::reference {
namespace {

constexpr int64_t kChunk = 1024;

void centre_operand(const Operand& operand, int64_t offset, int64_t n, int16_t* centred) {
  with_code_type(operand.type, [&](auto* code) {
    centre(static_cast<decltype(code)>(operand.data) + offset, n, operand.zero_point, centred);
  });
}

// Centres both operands chunk by chunk, combines them with fn(a, b) and stores the results.
template <typename Fn>
void combine(const Operand& a, const Operand& b, const OutputSpec& output, void* out, IndexRange elements, Fn&& fn) {
  int16_t centred_a[kChunk];
  int16_t centred_b[kChunk];
  float v[kChunk];
  for (int64_t begin = elements.begin; begin < elements.end; begin += kChunk) {
    const int64_t count = std::min(kChunk, elements.end - begin);
    centre_operand(a, begin, count, centred_a);
    centre_operand(b, begin, count, centred_b);
    for (int64_t i = 0; i < count; ++i) v[i] = fn(centred_a[i], centred_b[i]);
    store_values(v, count, output, out, begin);
  }
}

// The index is the code's distance from the smallest code of its type; flipping the sign bit does that for int8.
template <typename Entry>
void lookup_entries(const LookupArgs& args, IndexRange elements) {
  const uint8_t flip = args.x_type == ElementType::kInt8 ? 0x80 : 0;
  const auto* x = static_cast<const uint8_t*>(args.x);
  const auto* table = static_cast<const Entry*>(args.table);
  auto* out = static_cast<Entry*>(args.out);
  for (int64_t i = elements.begin; i < elements.end; ++i) out[i] = table[x[i] ^ flip];
}

}  // namespace

void add(const AddArgs& args, IndexRange elements) {
  combine(args.a, args.b, args.output, args.out, elements, [&](int16_t a, int16_t b) {
    return fmaf(static_cast<float>(b), args.b_multiplier, static_cast<float>(a) * args.a_multiplier);
  });
}

void mul(const MulArgs& args, IndexRange elements) {
  combine(args.a, args.b, args.output, args.out, elements, [&](int16_t a, int16_t b) {
    return static_cast<float>(static_cast<int32_t>(a) * static_cast<int32_t>(b)) * args.multiplier;
  });
}

void lookup(const LookupArgs& args, IndexRange elements) {
  switch (args.element_size) {
    case 1:
      return lookup_entries<uint8_t>(args, elements);
    case 2:
      return lookup_entries<uint16_t>(args, elements);
    default:
      return lookup_entries<uint32_t>(args, elements);
  }
}

}  // namespace torchquant::kernels::reference
